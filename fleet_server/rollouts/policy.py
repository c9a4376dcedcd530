"""What a rollout is allowed to do: to whom, in which steps, and which evidence stops it.

Invariants:
1. a policy is parsed and checked when it is written, never when it is needed;
2. an unknown field is refused, because a misspelt guard would be no guard; every error names the JSON path
   and what is allowed there;
3. stages only grow and end with every device; there is at least one gate, and each at most once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.messages import Labels, Probation
from fleet_server.errors import InvalidRequestError

MAX_POLICY_BYTES = 64 * 1024
MAX_STAGES = 20
MAX_STAGE_DEVICES = 10_000_000
MAX_BAKE_S = 30 * 86_400
MAX_DEPLOY_DEADLINE_S = 30 * 86_400
MAX_BAKE_EXTENSIONS = 100

Share = Annotated[float, Meta(ge=0, lt=1)]
Margin = Annotated[float, Meta(gt=0, lt=1)]
Alpha = Annotated[float, Meta(gt=0, le=0.5)]


class Selector(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which devices: those that carry every one of these labels. Empty is the whole fleet."""

    labels: Labels = field(default_factory=dict)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a device with `labels` is meant."""
        return all(labels.get(key) == value for key, value in self.labels.items())


class Stage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many devices in all have the candidate (a percentage or a count), and how long it is watched then."""

    percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    count: Annotated[int, Meta(ge=1, le=MAX_STAGE_DEVICES)] | None = None
    bake_s: Annotated[float, Meta(gt=0, le=MAX_BAKE_S)]

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.count is None):
            raise ValueError("a stage has either `percent` or `count`")


class UpdateFailuresGate(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="gate", tag="update_failures"
):
    """Fails when more than `max_share` of the exposed devices ended rejected, failed, reverted or lost."""

    max_share: Share = 0.05


class ErrorRateGate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="gate", tag="error_rate"):
    """Guards the share of inferences that fail: at most `max_increase` above the incumbent's."""

    max_increase: Margin = 0.02
    alpha: Alpha = 0.05


class OutcomeAccuracyGate(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="gate", tag="outcome_accuracy"
):
    """Guards the share of outcomes that are correct: at most `max_drop` below the incumbent's.

    `min_outcomes` is what a pass needs at least; a fail needs only its interval.
    """

    max_drop: Margin = 0.05
    alpha: Alpha = 0.05
    min_outcomes: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 50


Gate = UpdateFailuresGate | ErrorRateGate | OutcomeAccuracyGate


class ProbationPolicy(Probation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device's own trial of the candidate, as the protocol has it, but read strictly."""


def gate_name(gate: Gate) -> str:
    """The gate's name in a policy and in its results."""
    return str(gate.__struct_config__.tag)


def _default_stages() -> list[Stage]:
    return [Stage(percent=percent, bake_s=3600.0) for percent in (5.0, 25.0, 100.0)]


def _default_gates() -> list[Gate]:
    return [UpdateFailuresGate(), ErrorRateGate(), OutcomeAccuracyGate()]


class RolloutPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole policy. An empty object is a valid one: 5, 25, 100 % of the fleet, an hour each, every gate.

    `deploy_deadline_s`: a device whose update has not ended by then is LOST. `salt` decides which devices come
    first; "" takes one from the rollout's id, so that not the same devices are first every time.
    """

    selector: Selector = field(default_factory=Selector)
    stages: Annotated[list[Stage], Meta(min_length=1, max_length=MAX_STAGES)] = field(default_factory=_default_stages)
    gates: Annotated[list[Gate], Meta(min_length=1)] = field(default_factory=_default_gates)
    on_inconclusive: Literal["pause"] = "pause"
    max_bake_extensions: Annotated[int, Meta(ge=0, le=MAX_BAKE_EXTENSIONS)] = 3
    deploy_deadline_s: Annotated[float, Meta(gt=0, le=MAX_DEPLOY_DEADLINE_S)] = 3600.0
    probation: ProbationPolicy = field(default_factory=ProbationPolicy)
    require_approval: bool = False
    salt: Annotated[str, Meta(max_length=64)] = ""

    def __post_init__(self) -> None:
        for index, (earlier, later) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=1):
            _check_growth(index, earlier, later)
        if self.stages[-1].percent != 100:
            raise ValueError(
                "`$.stages`: the last stage must be `percent` 100, so that the rollout ends with every device"
            )
        names = [gate_name(gate) for gate in self.gates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`$.gates`: `{name}` is there {names.count(name)} times, keep one")


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
    if isinstance(document, Mapping):
        try:
            document = msgspec.json.encode(document)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequestError(f"policy: not JSON: {error}") from None
    if len(document) > MAX_POLICY_BYTES:
        raise InvalidRequestError(f"policy: {len(document)} bytes exceed the limit of {MAX_POLICY_BYTES}")
    try:
        return _DECODER.decode(document)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"policy: {_explain(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"policy: not JSON: {error}") from None


def policy_document(policy: RolloutPolicy) -> dict[str, Any]:
    """The policy as plain JSON, every default written out; `parse_policy` reads it back."""
    document: dict[str, Any] = msgspec.to_builtins(policy)
    return document


_DECODER = msgspec.json.Decoder(RolloutPolicy)
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")
_UNKNOWN_GATE = re.compile(r"Invalid value '(?P<gate>.*)' - at `(?P<path>\$\.gates\[[^`]*\.gate)`")


def _explain(message: str) -> str:
    """msgspec's message, with what is allowed where it only says what is not."""
    if unknown := _UNKNOWN_GATE.search(message):
        names = ", ".join(gate_name(gate) for gate in _default_gates())
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
        return [type(gate) for gate in _default_gates()]
    below: dict[str, type[Struct]] = {"$.selector": Selector, "$.stages": Stage, "$.probation": ProbationPolicy}
    return [next((kind for prefix, kind in below.items() if path.startswith(prefix)), RolloutPolicy)]


def _allowed_fields(kind: type[Struct]) -> str:
    tag = kind.__struct_config__.tag
    return (f"{tag} has " if tag else "") + ", ".join(kind.__struct_fields__)
