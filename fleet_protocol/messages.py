"""Every message between a device and the fleet server, one frozen struct each.

Telemetry travels as MessagePack, packed where that is smaller (`packing`), control as JSON, both from the same
structs. Equal messages have equal bytes. Rules, in the order `decode` applies them:
0. `schema` is the first field of every payload;
1. a payload above its kind's limit, packed or unpacked, is refused before it is parsed;
2. a later major `schema` is refused (UnsupportedSchema), also when the rest does not parse;
3. unknown fields are ignored, known ones must have their type and range (MalformedMessage).
Times are UTC nanoseconds since 1970; every other unit ends the field's name.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.errors import MalformedMessage, UnsupportedSchema
from fleet_protocol.names import ArmName, BootId, DeviceId, FleetId, ModelName, Sha256, VariantName, Version
from fleet_protocol.packing import pack, unpack

SCHEMA = 1
"""The major schema of every message; raised only for a change an older reader must not guess at."""

MAX_TELEMETRY_BYTES = 64 * 1024
MAX_CONTROL_BYTES = 256 * 1024
MAX_DETAIL_CHARS = 2_000
MAX_LABELS = 64
MAX_COVERED = 100_000

MAIN_ARM = "main"
"""The arm of a model that has no other; rollouts look at this one."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Sequence = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Generation = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL_CHARS)]
ShortText = Annotated[str, Meta(max_length=64)]
LabelKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z")]
LabelValue = Annotated[str, Meta(max_length=128)]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=MAX_LABELS)]
SketchBytes = Annotated[bytes, Meta(max_length=32 * 1024)]


def _current_schema() -> int:
    return SCHEMA  # a factory, because omit_defaults would leave a plain default out of the payload


class Phase(StrEnum):
    """Where a device is with one model's update. DESIGN.md draws the machine."""

    PENDING = "PENDING"
    ACKED = "ACKED"
    DOWNLOADING = "DOWNLOADING"
    STAGED = "STAGED"
    WARMING = "WARMING"
    PROBATION = "PROBATION"
    HEALTHY = "HEALTHY"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    REVERTED = "REVERTED"
    SUPERSEDED = "SUPERSEDED"
    LOST = "LOST"

    @property
    def is_end(self) -> bool:
        """Whether an update that is here moves no further by itself."""
        return self in _ENDS

    @property
    def is_failure(self) -> bool:
        """Whether this end says that the update did not succeed on this device."""
        return self in _FAILURES


_FAILURES = frozenset({Phase.REJECTED, Phase.FAILED, Phase.REVERTED, Phase.LOST})
_ENDS = _FAILURES | {Phase.HEALTHY, Phase.SUPERSEDED}


class Outcomes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Truths learnt in this window about predictions that this version and arm made, whenever it made them."""

    correct: Count = 0
    wrong: Count = 0
    squared_error_sum: Annotated[float, Meta(ge=0)] = 0.0
    squared_error_count: Count = 0


class EstimatedAccuracy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Label-free accuracy: sums of the calibrated confidence p and of p(1 - p) over `count` predictions."""

    count: Count = 0
    confidence_sum: float = 0.0
    variance_sum: float = 0.0


class ShadowAgreement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often a shadowed candidate answered otherwise than the model that served."""

    compared: Count = 0
    disagreed: Count = 0


class Resources(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The agent process and its machine at the end of a window; None is "this machine cannot tell".

    `cpu_percent` is the agent's, of one core; `machine_cpu_percent` the machine's, of all its cores.
    """

    cpu_percent: float | None = None
    rss_bytes: Count | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    disk_free_bytes: Count | None = None
    machine_cpu_percent: float | None = None
    battery_percent: float | None = None


class OutboxStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The device's outbox at the end of a window; `dropped` and `merged` count since the agent's first start."""

    depth: Count = 0
    dropped: Count = 0
    merged: Count = 0


class Window(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one device saw of one model version and arm over one span.

    (device, boot_id, sequence) is its identity. `covers` lists the sequences of windows that were
    merged into this one under outbox pressure; they will never arrive by themselves. `embedding_sums` are those of
    `fleet_protocol.embedding_sums` over `embedding_count` samples.
    """

    schema: int = field(default_factory=_current_schema)
    device: DeviceId
    boot_id: BootId
    sequence: Sequence
    model: ModelName
    version: Version
    variant: VariantName
    arm: ArmName
    start_ns: TimeNs
    end_ns: TimeNs
    count: Count = 0
    errors: Annotated[dict[str, Count], Meta(max_length=64)] = field(default_factory=dict)
    latency: SketchBytes = b""
    queue_wait: SketchBytes = b""
    batch_sizes: Annotated[dict[int, Count], Meta(max_length=256)] = field(default_factory=dict)
    features: Annotated[dict[str, SketchBytes], Meta(max_length=256)] = field(default_factory=dict)
    classes: Annotated[dict[int, Count], Meta(max_length=4096)] = field(default_factory=dict)
    score: SketchBytes = b""
    embedding_count: Count = 0
    embedding_sums: SketchBytes = b""
    shadow: ShadowAgreement | None = None
    outcomes: Outcomes | None = None
    estimated_accuracy: EstimatedAccuracy | None = None
    resources: Resources | None = None
    outbox: OutboxStatus | None = None
    covers: Annotated[list[Sequence], Meta(max_length=MAX_COVERED)] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.end_ns < self.start_ns:
            raise ValueError("a window's end_ns lies before its start_ns")


class EventKind(StrEnum):
    """What an event tells."""

    PHASE_CHANGED = "phase_changed"
    REVERTED = "reverted"
    OUTBOX_OVERFLOW = "outbox_overflow"
    MODEL_LOAD_FAILED = "model_load_failed"
    DESIRED_REFUSED = "desired_refused"
    AGENT_STARTED = "agent_started"
    PROVIDER_FALLBACK = "provider_fallback"


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened once on a device. Shares its sequence numbers with windows."""

    schema: int = field(default_factory=_current_schema)
    device: DeviceId
    boot_id: BootId
    sequence: Sequence
    at_ns: TimeNs
    kind: EventKind
    model: ShortText = ""
    bundle: ShortText = ""
    phase: Phase | None = None
    detail: Detail = ""


class Presence(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Online, published on connect; offline, published by the broker as last will or by a clean stop."""

    schema: int = field(default_factory=_current_schema)
    device: DeviceId
    boot_id: BootId
    online: bool
    at_ns: TimeNs


FAULT_WRONG, FAULT_NOT_LOADED = "wrong answers", "does not load"
FAULT_NO_MEMORY, FAULT_DAMAGED = "no memory", "damaged file"
"""Why a device did not keep a variant. The last two are its own trouble, and say nothing about the variant."""


class VariantFigures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device found out about one variant of the bundle that it warmed.

    `right` says that its golden vectors held; otherwise `fault` is one of the FAULT words, and another word speaks
    against the variant. `p50_us`, of a run on one sample where the model takes one, and `memory_bytes` are 0 where they
    were not measured.
    """

    variant: VariantName
    right: bool
    p50_us: Annotated[float, Meta(ge=0)] = 0.0
    memory_bytes: Count = 0
    fault: ShortText = ""


class ModelReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device says about one arm of one model. Digests are of bundles; "" is none (a model from a plain file).

    A report without an arm is that of an agent which knows one arm only. `weight` is relative to the other arms that
    answer; a shadow answers nobody. `variants` are the figures of the `active` bundle's candidates, where the device
    measured them.
    """

    model: ModelName
    phase: Phase
    active: Sha256 | None = None
    version: str = ""
    variant: str = ""
    desired: Sha256 | None = None
    error: Detail = ""
    arm: ArmName = MAIN_ARM
    shadow: bool = False
    weight: Annotated[float, Meta(ge=0)] = 1.0
    variants: Annotated[list[VariantFigures], Meta(max_length=16)] = field(default_factory=list)


class Reported(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device runs, retained. Within one boot_id only a higher sequence replaces an older report.

    `time_zone` is the IANA name of the device's own, "" where it has none. `root_version` is the trust root it holds,
    0 for plain keys. `certificate_expires_ns` is 0 without a certificate. `held_back` is why nothing new may begin on
    the newest desired state, such as its expiry.
    """

    schema: int = field(default_factory=_current_schema)
    device: DeviceId
    boot_id: BootId
    sequence: Sequence
    at_ns: TimeNs
    generation: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    models: Annotated[list[ModelReport], Meta(max_length=256)] = field(default_factory=list)
    agent_version: str = ""
    cpu_signature: str = ""
    onnxruntime_version: ShortText = ""
    labels: Labels = field(default_factory=dict)
    time_zone: ShortText = ""
    root_version: Count = 0
    certificate_expires_ns: TimeNs = 0
    held_back: Detail = ""


class Probation(Struct, frozen=True, kw_only=True):
    """What a newly active model must show on the device, against the incumbent where there is one.

    `max_memory_ratio` bounds the model's memory over the incumbent's. `max_shadow_disagreement` is the share of answers
    in which a candidate may differ from the incumbent on the same inputs. A run that takes longer than `hang_timeout_s`
    hangs.
    """

    duration_s: Annotated[float, Meta(ge=0, le=7 * 86_400)] = 60.0
    max_error_rate_increase: Annotated[float, Meta(ge=0, le=1)] = 0.05
    max_p95_latency_ratio: Annotated[float, Meta(gt=0)] = 3.0
    min_inferences: Count = 20
    max_machine_restarts: Annotated[int, Meta(ge=0, le=100)] = 2
    max_memory_ratio: Annotated[float, Meta(gt=0)] = 3.0
    max_shadow_disagreement: Annotated[float, Meta(ge=0, le=1)] = 1.0
    hang_timeout_s: Annotated[float, Meta(gt=0, le=3_600)] = 30.0


class MaintenanceHours(Struct, frozen=True, kw_only=True):
    """When a device may begin an update: from `start` to `end` (exclusive, the next day's where it is not later).

    `days` are those on which the hours begin, empty for every day. `time_zone` is an IANA name, "" the device's own.
    """

    start: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
    end: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
    days: Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Meta(max_length=7)] = field(
        default_factory=list
    )
    time_zone: ShortText = ""


class Assignment(Struct, frozen=True, kw_only=True):
    """One bundle a device should run, and how: the arm it serves, the arm's weight, or shadow.

    `variant` is the one that devices with its CPU found fastest: it is fetched and confirmed first, the others only
    when it does not hold. "" is not known: the device measures every candidate.
    """

    model: ModelName
    version: Version
    bundle: Sha256
    arm: ArmName = MAIN_ARM
    weight: Annotated[float, Meta(gt=0, le=1)] = 1.0
    shadow: bool = False
    variant: ShortText = ""


class Desired(Struct, frozen=True, kw_only=True):
    """What one device should run. Always inside a signed envelope; see `fleet_protocol.envelope`.

    `generation` only grows per device. `retry` lists bundle digests the device may take out of quarantine.
    After `expires_ns` (0: never) nothing new is begun on its word; what runs stays. `root_version` is the newest trust
    root that the server knows, 0 for plain keys. `maintenance` None is any time.
    """

    schema: int = field(default_factory=_current_schema)
    fleet: FleetId
    device: DeviceId
    generation: Generation
    issued_at_ns: TimeNs
    assignments: Annotated[list[Assignment], Meta(max_length=256)]
    not_before_ns: TimeNs = 0
    deadline_ns: TimeNs = 0
    jitter_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    probation: Probation = field(default_factory=Probation)
    retry: Annotated[list[Sha256], Meta(max_length=256)] = field(default_factory=list)
    expires_ns: TimeNs = 0
    root_version: Count = 0
    maintenance: MaintenanceHours | None = None


class Stored(Struct, frozen=True, kw_only=True):
    """The server's word that records of one boot are committed: inclusive ranges of sequences."""

    schema: int = field(default_factory=_current_schema)
    device: DeviceId
    boot_id: BootId
    ranges: Annotated[list[tuple[Sequence, Sequence]], Meta(max_length=10_000)]


Message = Window | Event | Presence | Reported | Desired | Stored
M = TypeVar("M", bound=Message)


class _SchemaOnly(Struct):
    schema: int = SCHEMA


_PACKED = (Window,)
_TABLES = ("errors", "batch_sizes", "features", "classes")
_MSGPACK_ENCODER = msgspec.msgpack.Encoder()
_JSON_ENCODER = msgspec.json.Encoder()
_DECODERS: dict[type, Any] = {}


def _decoder(kind: type) -> Any:
    """Made at the first message of a kind: a device that hears none does not pay for it at every start."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = (msgspec.msgpack if kind in _PACKED else msgspec.json).Decoder(kind)
    return decoder


@cache
def _schema_decoder(packed: bool) -> Any:
    return (msgspec.msgpack if packed else msgspec.json).Decoder(_SchemaOnly)


def encode(message: Message) -> bytes:
    """The payload of a message: packed MessagePack for a window, JSON for everything else."""
    if isinstance(message, Window):
        return pack(encode_plain(message))
    return _JSON_ENCODER.encode(message)


def encode_plain(window: Window) -> bytes:
    """A window as MessagePack that is not packed; `decode` takes it as well."""
    return _MSGPACK_ENCODER.encode(_in_order(window))


def _in_order(window: Window) -> Window:
    """The same window with every table in the order of its keys, on which its bytes must not depend."""
    tables: dict[str, dict[Any, Any]] = {name: getattr(window, name) for name in _TABLES}
    unordered = {name: table for name, table in tables.items() if len(table) > 1 and list(table) != sorted(table)}
    if not unordered:
        return window
    return msgspec.structs.replace(window, **{name: dict(sorted(table.items())) for name, table in unordered.items()})


def decode(kind: type[M], payload: bytes) -> M:
    """The message of type `kind` in `payload`.

    Raises UnsupportedSchema for a later major schema and MalformedMessage for anything else that is wrong.
    """
    packed = kind in _PACKED
    limit = MAX_TELEMETRY_BYTES if packed else MAX_CONTROL_BYTES
    if len(payload) > limit:
        raise MalformedMessage(f"{kind.__name__} of {len(payload)} bytes exceeds the limit of {limit}")
    if packed:
        payload = unpack(payload, limit=limit)
    try:
        message = cast(M, _decoder(kind).decode(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_schema(kind, _peek_schema(payload, packed))
        raise MalformedMessage(f"not a {kind.__name__}: {error}") from None
    _check_schema(kind, message.schema)
    return message


def _check_schema(kind: type, schema: int) -> None:
    if schema > SCHEMA:
        raise UnsupportedSchema(f"{kind.__name__} has schema {schema}, this release reads up to {SCHEMA}: upgrade it")
    if schema < 1:
        raise MalformedMessage(f"not a {kind.__name__}: schema {schema} does not exist")


def _peek_schema(payload: bytes, packed: bool) -> int:
    try:
        return int(_schema_decoder(packed).decode(payload).schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SCHEMA
