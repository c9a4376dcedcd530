"""Which two populations a question is about, and what they are called. Pure.

A question names the seen side and what it is held against. Short forms (`AGAINST`): `reference`, `last-week` (the
seven days before), `same-hours` (the same hours of the week in earlier weeks, for fleets with day and night), `fleet`
(a device against all others), `version:1.0.0`, `selector:site=lisbon`. Whatever the expected side does not say for
itself is as on the seen side.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from fleet_server.drift.findings import Population
from fleet_server.errors import InvalidRequestError
from fleet_server.rollouts.policy import Selector

AGAINST = ("reference", "last-week", "same-hours", "fleet", "version:VERSION", "selector:KEY=VALUE")
SAME_HOURS_WEEKS = 4
"""Earlier weeks whose same hours are a reference; those that the store no longer has are left out by themselves."""
DAY_NS = 86_400 * 10**9
WEEK_NS = 7 * DAY_NS
_HOUR_NS = 3_600 * 10**9
MAX_LABELS_IN_SELECTOR = 16

Text = Annotated[str, Meta(max_length=256)]
TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Side(Struct, frozen=True, kw_only=True):
    """One side of a question; "" and None are not narrowed."""

    version: Text = ""
    variant: Text = ""
    arm: Text = ""
    selector: Text = ""
    device: Text = ""
    start_ns: TimeNs | None = None
    end_ns: TimeNs | None = None


class Question(Struct, frozen=True, kw_only=True):
    """What is asked: the seen side beside model, version and span, and the other by its short form or in full."""

    seen: Side = field(default_factory=Side)
    against: Text = ""
    expected: Side = field(default_factory=Side)
    detail: bool = False


def parse_selector(text: str) -> Selector:
    """The selector in "site=lisbon,hardware=pi". Raises InvalidRequestError."""
    labels: dict[str, str | list[str]] = {}
    for part in text.split(",") if text else []:
        key, is_pair, value = part.strip().partition("=")
        if not (is_pair and key and value) or key in labels:
            raise InvalidRequestError(f"the selector {text[:64]!r} is not KEY=VALUE[,KEY=VALUE...], each key once")
        labels[key] = value
    if len(labels) > MAX_LABELS_IN_SELECTOR:
        raise InvalidRequestError(f"a selector names at most {MAX_LABELS_IN_SELECTOR} labels")
    return Selector(labels=labels)


def seen_population(question: Question, *, model: str, version: str, start_ns: int, end_ns: int) -> Population:
    """The seen side. Raises InvalidRequestError for a malformed selector or an empty span."""
    side = question.seen
    return _checked(
        Population(
            model=model,
            version=version,
            variant=side.variant,
            arm=side.arm,
            selector=side.selector,
            device=side.device,
            start_ns=start_ns,
            end_ns=end_ns,
        )
    )


def expected_population(question: Question, seen: Population) -> Population:
    """The other side. Raises InvalidRequestError for what does not exist, or is the seen side itself."""
    side, against = question.expected, question.against
    named = msgspec.structs.replace(
        seen,
        version=side.version or seen.version,
        variant=side.variant or seen.variant,
        arm=side.arm or seen.arm,
        selector=side.selector or ("" if side.device else seen.selector),
        device=side.device or ("" if side.selector else seen.device),
        start_ns=seen.start_ns if side.start_ns is None else side.start_ns,
        end_ns=seen.end_ns if side.end_ns is None else side.end_ns,
    )
    is_named = side != Side()
    kind, is_of, name = against.partition(":")
    if is_named and against:
        raise InvalidRequestError("say `against` or the parts of the expected side, not both")
    if is_named:
        found = named
    elif against in ("", "reference"):
        return Population(model=seen.model, version=seen.version, is_reference=True)
    elif against == "last-week":
        found = msgspec.structs.replace(seen, start_ns=max(0, seen.start_ns - WEEK_NS), end_ns=seen.start_ns)
    elif against == "same-hours":
        earliest = max(0, seen.start_ns - SAME_HOURS_WEEKS * WEEK_NS)
        found = msgspec.structs.replace(seen, same_hours=True, start_ns=earliest, end_ns=max(1, seen.end_ns - WEEK_NS))
        if seen.end_ns - seen.start_ns > WEEK_NS:
            raise InvalidRequestError("same-hours compares with earlier weeks: take a span of at most a week")
    elif against == "fleet" and seen.device:
        found = msgspec.structs.replace(seen, device="")
    elif kind == "version" and is_of and name:
        found = msgspec.structs.replace(seen, version=name)
    elif kind == "selector" and is_of and name:
        found = msgspec.structs.replace(seen, selector=name, device="")
    elif against == "fleet":
        raise InvalidRequestError("against `fleet` a device is compared: name the device too")
    else:
        raise InvalidRequestError(f"against {against[:64]!r} is not possible: there are {', '.join(AGAINST)}")
    if found == seen:
        raise InvalidRequestError("both sides of the comparison are the same: change the version, devices or span")
    return _checked(found)


def hour_spans(population: Population) -> list[tuple[int, int]]:
    """The spans of a population, (start_ns, end_ns] each: one, or the same hours of each earlier week, oldest first."""
    if not population.same_hours:
        return [(population.start_ns, population.end_ns)]
    length = (population.end_ns - population.start_ns) % WEEK_NS or WEEK_NS
    ends = [population.end_ns - week * WEEK_NS for week in range(SAME_HOURS_WEEKS)]
    return [(max(0, end - length), end) for end in sorted(ends) if end > 0]


def name_of(population: Population, beside: Population | None = None) -> str:
    """What a population is called in a sentence; `beside` another, only by what it differs in."""
    if population.is_reference:
        return "the reference"
    if population.same_hours:
        return "the same hours of earlier weeks"
    parts = []
    if beside is None or (population.model, population.version) != (beside.model, beside.version):
        parts.append(f"{population.model} {population.version}")
    if population.device and (beside is None or population.device != beside.device):
        parts.append(f"device {population.device}")
    elif beside is not None and beside.device and not population.device:
        parts.append(f"devices at {population.selector}" if population.selector else "the rest of the fleet")
    elif population.selector and (beside is None or population.selector != beside.selector):
        parts.append(f"devices at {population.selector}" if parts else f"{population.selector}")
    for what, value in (("variant", population.variant), ("arm", population.arm)):
        if value and (beside is None or value != getattr(beside, what)):
            parts.append(f"{what} {value}")
    if beside is not None and (population.start_ns, population.end_ns) != (beside.start_ns, beside.end_ns):
        gap, length = beside.start_ns - population.end_ns, population.end_ns - population.start_ns
        is_last_week = 0 <= gap < 2 * _HOUR_NS and abs(length - WEEK_NS) < 2 * _HOUR_NS  # rounded to whole hours
        parts.append("the week before" if is_last_week else "another time")
    return ", ".join(parts) or "the same devices"


def _checked(population: Population) -> Population:
    parse_selector(population.selector)
    if population.start_ns >= population.end_ns:
        raise InvalidRequestError("the start of each side must lie before its end")
    return population
