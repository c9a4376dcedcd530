"""What a rollout is allowed to do: to whom, in which steps, and which evidence stops it.

Invariants:
1. a policy is parsed and checked when it is written, never when it is needed;
2. an unknown field is refused, because a misspelt guard would be no guard; every error names the JSON path
   and what is allowed there;
3. stages only grow and end with every device; there is at least one gate, and each at most once;
4. what contradicts itself is refused: an exclusion of everybody, a rate that shrinks, a deadline before the bakes end.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.errors import InvalidName
from fleet_protocol.maintenance import is_known_zone
from fleet_protocol.messages import MAX_LABELS, LabelKey, LabelValue, MaintenanceHours, Probation
from fleet_protocol.names import check_name
from fleet_server.errors import InvalidRequestError
from fleet_server.rollouts.gate_policies import (
    GATES,
    DriftGate,
    ErrorRateGate,
    Gate,
    LatencyGate,
    LossesGate,
    MemoryGate,
    OutcomeAccuracyGate,
    ShadowDisagreementGate,
    TemperatureGate,
    UpdateFailuresGate,
    gate_name,
)
from fleet_server.rollouts.policy_file import MAX_POLICY_BYTES, read_json_object

__all__ = [
    "GATES",
    "MAX_POLICY_BYTES",
    "ControlPolicy",
    "DriftGate",
    "ErrorRateGate",
    "Gate",
    "LatencyGate",
    "LossesGate",
    "MaintenancePolicy",
    "MemoryGate",
    "OutcomeAccuracyGate",
    "ProbationPolicy",
    "RatePolicy",
    "RetryPolicy",
    "RolloutPolicy",
    "SegmentPolicy",
    "Selector",
    "ShadowDisagreementGate",
    "Stage",
    "TemperatureGate",
    "UpdateFailuresGate",
    "gate_name",
    "parse_policy",
    "policy_document",
]

MAX_STAGES = 20
MAX_STAGE_DEVICES = 10_000_000
MAX_BAKE_S = 30 * 86_400
MAX_DEPLOY_DEADLINE_S = 30 * 86_400
MAX_BAKE_EXTENSIONS = 100
MAX_DEADLINE_S = 365 * 86_400
MAX_PATTERNS = 1_000
MAX_EXCLUSIONS = 20

Patterns = Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=MAX_PATTERNS)]


class Selector(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which devices: those for which everything named here holds. Empty is the whole fleet.

    - `labels`: KEY = VALUE, or KEY = a list of values of which one must hold.
    - `devices`: device ids, shell patterns allowed ("camera-*").
    - `cpu`: shell patterns for the reported CPU signature. One must match.
    - `runs`: versions of the model that is rolled out, one of which the device reports as active; "" is none.
    - `min_agent_version`: the reported agent version is this one or later.
    - `online`: whether the device is connected now.
    """

    labels: Annotated[dict[LabelKey, LabelValue | list[LabelValue]], Meta(max_length=MAX_LABELS)] = field(
        default_factory=dict
    )
    devices: Patterns = field(default_factory=list)
    cpu: Patterns = field(default_factory=list)
    runs: Annotated[list[Annotated[str, Meta(max_length=80)]], Meta(max_length=MAX_PATTERNS)] = field(
        default_factory=list
    )
    min_agent_version: Annotated[str, Meta(max_length=80)] = ""
    online: bool | None = None

    def __post_init__(self) -> None:
        for key, wanted in self.labels.items():
            if wanted == []:
                raise ValueError(f"`labels`: {key!r} allows no value; name at least one, or leave the label out")
        for version in filter(None, self.runs):
            _check_version("runs", version)
        if self.min_agent_version:
            _check_version("min_agent_version", self.min_agent_version)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a device with `labels` is meant, as far as labels go."""
        return all(
            labels.get(key) in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in self.labels.items()
        )


class Stage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many devices in all have the candidate (a percentage or a count), and how long it is watched then."""

    percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    count: Annotated[int, Meta(ge=1, le=MAX_STAGE_DEVICES)] | None = None
    bake_s: Annotated[float, Meta(gt=0, le=MAX_BAKE_S)]
    needs_approval: bool = False
    """Whether an approver must let the rollout into this stage."""

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.count is None):
            raise ValueError("a stage has either `percent` or `count`")


class ControlPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices held on the incumbent for comparison until the last stage has passed; then they get the candidate too.

    `percent` of the selected devices, rounded down, so that a handful of devices has no control.
    """

    percent: Annotated[float, Meta(ge=0, le=50)] = 10.0


class RatePolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast devices are exposed within a stage. The rate grows by `growth` with every `grow_every` healthy devices.

    `per_minute` None exposes a stage at once. `max_per_minute` None leaves growth unbounded.
    """

    per_minute: Annotated[float, Meta(gt=0, le=10_000_000)] | None = None
    growth: Annotated[float, Meta(ge=1, le=10)] = 1.0
    grow_every: Annotated[int, Meta(ge=1, le=MAX_STAGE_DEVICES)] = 100
    max_per_minute: Annotated[float, Meta(gt=0, le=10_000_000)] | None = None

    def __post_init__(self) -> None:
        if self.per_minute is None:
            if self.growth != 1 or self.max_per_minute is not None:
                raise ValueError("`growth` and `max_per_minute` need a `per_minute` to begin with")
        elif self.max_per_minute is not None and self.max_per_minute < self.per_minute:
            raise ValueError(f"`max_per_minute` {self.max_per_minute:g} is below `per_minute` {self.per_minute:g}")


class RetryPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a device whose update FAILED is given it again within its stage, and how long after."""

    attempts: Annotated[int, Meta(ge=0, le=20)] = 0
    after_s: Annotated[float, Meta(ge=0, le=7 * 86_400)] = 300.0


class SegmentPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verdicts segment by segment: a segment whose gate fails is rolled back alone, the others go on.

    `by` is "hardware" (the CPU signature) or a label's key. Segments below `min_devices` exposed devices are not judged
    alone.
    """

    by: LabelKey = "hardware"
    min_devices: Annotated[int, Meta(ge=1, le=MAX_STAGE_DEVICES)] = 10


class MaintenancePolicy(MaintenanceHours, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When devices may begin an update, as the protocol has it, but read strictly."""

    def __post_init__(self) -> None:
        if self.time_zone and not is_known_zone(self.time_zone):
            raise ValueError(
                f"`time_zone` {self.time_zone!r} is not in the time zone database: use a name such as "
                'Europe/Paris, or "" for each device\'s own'
            )


class ProbationPolicy(Probation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device's own trial of the candidate, as the protocol has it, but read strictly."""


def _default_stages() -> list[Stage]:
    return [Stage(percent=percent, bake_s=3600.0) for percent in (5.0, 25.0, 100.0)]


def _default_gates() -> list[Gate]:
    return [UpdateFailuresGate(), LossesGate(), ErrorRateGate(), OutcomeAccuracyGate()]


class RolloutPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole policy. An empty object is a valid one: 5, 25, 100 % of the fleet, an hour each, the usual gates.

    - `selector`, `exclude`: who is meant, and who of these is not.
    - `start_at`: RFC 3339 with its offset; "" starts at once.
    - `maintenance`: devices update only within these hours of theirs.
    - `jitter_s`: each device waits a random time up to this before it downloads.
    - `deploy_deadline_s`: a device whose update has not ended by then is LOST.
    - `deadline_s`: a rollout that is not over so long after its start pauses; 0 is no deadline.
    - `approvals`: how many different approvers, none of them its author, must approve; 0 with `require_approval` is 1,
      and any number asks for them as `require_approval` does.
    - `salt` decides which devices come first; "" takes one from the rollout's id, so that not the same devices are
      first every time.
    """

    selector: Selector = field(default_factory=Selector)
    exclude: Annotated[list[Selector], Meta(max_length=MAX_EXCLUSIONS)] = field(default_factory=list)
    stages: Annotated[list[Stage], Meta(min_length=1, max_length=MAX_STAGES)] = field(default_factory=_default_stages)
    control: ControlPolicy = field(default_factory=ControlPolicy)
    rate: RatePolicy = field(default_factory=RatePolicy)
    jitter_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    start_at: Annotated[str, Meta(max_length=40)] = ""
    maintenance: MaintenancePolicy | None = None
    deadline_s: Annotated[float, Meta(ge=0, le=MAX_DEADLINE_S)] = 0.0
    deploy_deadline_s: Annotated[float, Meta(gt=0, le=MAX_DEPLOY_DEADLINE_S)] = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    gates: Annotated[list[Gate], Meta(min_length=1)] = field(default_factory=_default_gates)
    segments: SegmentPolicy | None = None
    on_fail: Literal["rollback", "pause"] = "rollback"
    on_inconclusive: Literal["pause", "rollback"] = "pause"
    max_bake_extensions: Annotated[int, Meta(ge=0, le=MAX_BAKE_EXTENSIONS)] = 3
    probation: ProbationPolicy = field(default_factory=ProbationPolicy)
    require_approval: bool = False
    approvals: Annotated[int, Meta(ge=0, le=20)] = 0
    salt: Annotated[str, Meta(max_length=64)] = ""

    def __post_init__(self) -> None:
        _check_stages(self.stages)
        names = [gate_name(gate) for gate in self.gates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`$.gates`: `{name}` is there {names.count(name)} times, keep one")
        for index, excluded in enumerate(self.exclude):
            if excluded == Selector():
                raise ValueError(f"`$.exclude[{index}]`: excludes every device; say which, or leave it out")
        _check_times(self)

    @property
    def start_ns(self) -> int:
        """`start_at` as UTC nanoseconds, 0 for "at once"."""
        return int(datetime.fromisoformat(self.start_at).timestamp()) * 10**9 if self.start_at else 0


def _check_version(where: str, version: str) -> None:
    try:
        check_name("version", version)
    except InvalidName as error:
        raise ValueError(f"`{where}`: {error}") from None


def _check_times(policy: RolloutPolicy) -> None:
    try:
        is_time = not policy.start_at or (_RFC_3339.fullmatch(policy.start_at) is not None and policy.start_ns > 0)
    except (ValueError, OverflowError):
        is_time = False
    if not is_time:
        raise ValueError(
            f"`$.start_at`: {policy.start_at!r} is no time: use RFC 3339 with the offset, 2026-03-01T22:00:00+01:00"
        )
    if policy.jitter_s >= policy.deploy_deadline_s:
        raise ValueError(
            f"`$.jitter_s`: with {policy.jitter_s:g} s devices are lost before they begin: stay below "
            f"`deploy_deadline_s`, {policy.deploy_deadline_s:g}"
        )
    bakes_s = sum(stage.bake_s for stage in policy.stages)
    if policy.deadline_s and policy.deadline_s <= bakes_s:
        raise ValueError(
            f"`$.deadline_s`: {policy.deadline_s:g} s are over before the stages have baked for {bakes_s:g} s"
        )


def _check_stages(stages: list[Stage]) -> None:
    for index, (earlier, later) in enumerate(itertools.pairwise(stages), start=1):
        _check_growth(index, earlier, later)
    if stages[-1].percent != 100:
        raise ValueError("`$.stages`: the last stage must be `percent` 100, so that the rollout ends with every device")


def _check_growth(index: int, earlier: Stage, later: Stage) -> None:
    if later.count is not None:
        if earlier.count is None:
            raise ValueError(f"`$.stages[{index}]`: a `count` after a `percent` may shrink: put counts first")
        if later.count <= earlier.count:
            raise ValueError(f"`$.stages[{index}].count`: must grow beyond {earlier.count} of the stage before")
    elif earlier.percent is not None and later.percent is not None and later.percent <= earlier.percent:
        raise ValueError(f"`$.stages[{index}].percent`: must grow beyond {earlier.percent:g} of the stage before")


def parse_policy(document: bytes | str | Mapping[str, Any]) -> RolloutPolicy:
    """The policy in a JSON document. Raises InvalidRequestError, which names the path and what is allowed."""
    try:
        checked = document if isinstance(document, Mapping) else read_json_object(document)
        return _DECODER.decode(msgspec.json.encode(checked))
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"policy: {_explain(str(error))}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(f"policy: not JSON: {error}") from None


def policy_document(policy: RolloutPolicy) -> dict[str, Any]:
    """The policy as plain JSON, every default written out; `parse_policy` reads it back."""
    document: dict[str, Any] = msgspec.to_builtins(policy)
    return document


_DECODER = msgspec.json.Decoder(RolloutPolicy)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")
_UNKNOWN_GATE = re.compile(r"Invalid value '(?P<gate>.*)' - at `(?P<path>\$\.gates\[[^`]*\.gate)`")


def _explain(message: str) -> str:
    """msgspec's message, with what is allowed where it only says what is not."""
    if unknown := _UNKNOWN_GATE.search(message):
        names = ", ".join(gate_name(gate) for gate in GATES)
        return f"`{unknown['path']}`: {unknown['gate'][:80]!r} is no gate; allowed: {names}"
    unknown = _UNKNOWN_FIELD.search(message)
    if unknown is None:
        return message + ("; allowed: pause" if "`$.on_inconclusive`" in message else "")
    path = unknown["path"] or "$"
    kinds = _structs_at(path)
    near = difflib.get_close_matches(unknown["field"], [name for kind in kinds for name in kind.__struct_fields__], n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    allowed = "; ".join(_allowed_fields(kind) for kind in kinds)
    return f"`{path}`: unknown field `{unknown['field'][:80]}`; {hint}allowed: {allowed}"


def _structs_at(path: str) -> list[type[Struct]]:
    if path.startswith("$.gates"):
        return list(GATES)
    below: dict[str, type[Struct]] = {
        "$.selector": Selector,
        "$.exclude": Selector,
        "$.stages": Stage,
        "$.control": ControlPolicy,
        "$.rate": RatePolicy,
        "$.maintenance": MaintenancePolicy,
        "$.retry": RetryPolicy,
        "$.segments": SegmentPolicy,
        "$.probation": ProbationPolicy,
    }
    return [next((kind for prefix, kind in below.items() if path.startswith(prefix)), RolloutPolicy)]


def _allowed_fields(kind: type[Struct]) -> str:
    tag = kind.__struct_config__.tag
    return (f"{tag} has " if tag else "") + ", ".join(kind.__struct_fields__)
