"""What a question about telemetry asks for, checked: its span, step, groups and filters. Pure.

A question has one of each or one clear error (InvalidRequestError) that says what was wrong and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store.merged import Grain

MAX_POINTS = 2_000
"""Steps of one answer."""
MAX_GROUPS_BY = 8
MAX_STEP_S = 366 * 86_400
DEFAULT_SPAN_S = 3_600
DEFAULT_STEP_S = 60
MAX_NS = 2**63 - 1
KEYS = ("model", "version", "variant", "arm", "cohort", "device")
_OF_DEVICES = "label:"
_NS = 10**9
_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_STEP = re.compile(r"([0-9]{1,9})(s|m|min|h|d|)")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A span (start_ns, end_ns] in steps, grouped. `labels` are those among `group_by`, without their "label:"."""

    start_ns: int
    end_ns: int
    step_ns: int
    group_by: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels to group by."""
        return tuple(each.removeprefix(_OF_DEVICES) for each in self.group_by if each.startswith(_OF_DEVICES))

    @property
    def needs_devices(self) -> bool:
        """Whether only series of single devices can answer."""
        return "device" in self.group_by or bool(self.labels)

    def is_on(self, span_ns: int) -> bool:
        """Whether span and step are whole multiples of `span_ns`."""
        return not (self.start_ns % span_ns or self.end_ns % span_ns or self.step_ns % span_ns)


def grain_for(question: Question, *, of_devices: bool) -> Grain | None:
    """The coarsest merged series that answers exactly; None where only single windows do."""
    if of_devices:
        return Grain.DEVICE_HOUR if question.is_on(Grain.DEVICE_HOUR.span_ns) else None
    fitting = (grain for grain in (Grain.FLEET_HOUR, Grain.FLEET_MINUTE) if question.is_on(grain.span_ns))
    return next(fitting, None)


def widened(question: Question, span_ns: int) -> Question | None:
    """The question over whole spans; None where its step is not made of them."""
    if question.step_ns % span_ns:
        return None
    return Question(
        start_ns=question.start_ns // span_ns * span_ns,
        end_ns=-(-question.end_ns // span_ns) * span_ns,
        step_ns=question.step_ns,
        group_by=question.group_by,
    )


def parse_span(
    now_ns: int, *, start: str | None, end: str | None, start_ns: int | None = None, end_ns: int | None = None
) -> tuple[int, int]:
    """The span asked for, by default the last hour. Raises InvalidRequestError when it is empty or told twice."""
    begin, stop = _one("start", start, start_ns), _one("end", end, end_ns)
    stop = now_ns if stop is None else stop
    begin = max(0, stop - DEFAULT_SPAN_S * _NS) if begin is None else begin
    if begin >= stop:
        raise InvalidRequestError("start must lie before end")
    return begin, stop


def parse_question(
    span: tuple[int, int], *, step: str | None, step_s: int | None, group_by: Sequence[str], allowed: Sequence[str]
) -> Question:
    """The question over a span; `allowed` are keys that can be grouped by, "label" for every label."""
    if step is not None and step_s is not None:
        raise InvalidRequestError("step and step_s are both given: use one")
    seconds = step_s if step_s is not None else parse_step_s(step) if step is not None else DEFAULT_STEP_S
    start_ns, end_ns = span
    if (end_ns - start_ns) / (seconds * _NS) > MAX_POINTS:
        raise InvalidRequestError(f"the span holds more than {MAX_POINTS} steps: take a longer step or a shorter span")
    return Question(start_ns=start_ns, end_ns=end_ns, step_ns=seconds * _NS, group_by=parse_group_by(group_by, allowed))


def parse_time(name: str, text: str) -> int:
    """UTC nanoseconds of nanoseconds or an RFC 3339 time, such as 2026-03-01T09:40:00Z. Raises InvalidRequestError."""
    if text.isascii() and text.isdecimal():
        at_ns = int(text[:20])
    else:
        # a plus sign that was not escaped in a query arrives as a space
        spelt = text[:-6] + text[-6:].replace(" ", "+") if len(text) > 19 else text
        try:
            moment = datetime.fromisoformat(spelt)
        except ValueError:
            raise InvalidRequestError(
                f"{name} is {text[:60]!r}: use UTC nanoseconds, or RFC 3339 such as 2026-03-01T09:40:00Z"
            ) from None
        if moment.tzinfo is None:
            raise InvalidRequestError(f"{name} is {text[:60]!r}, in no time zone: end it with Z or an offset")
        whole = moment.astimezone(UTC).replace(microsecond=0)
        at_ns = int(whole.timestamp()) * _NS + moment.microsecond * 1_000
    if not 0 <= at_ns <= MAX_NS:
        raise InvalidRequestError(f"{name} is {text[:60]!r}: times lie between 1970 and 2262")
    return at_ns


def parse_step_s(text: str) -> int:
    """Seconds of a step such as 60, 30s, 5m, 1h or 1d. Raises InvalidRequestError."""
    found = _STEP.fullmatch(text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 1 <= seconds <= MAX_STEP_S:
        raise InvalidRequestError(f"step is {text[:40]!r}: use 1s to {MAX_STEP_S // 86_400}d, such as 60, 30s, 5m, 1h")
    return seconds


def parse_group_by(given: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """Keys to group by, of one text with commas or several, each once. Raises InvalidRequestError."""
    keys = [key.strip() for text in given for key in text.split(",") if key.strip()]
    if len(keys) > MAX_GROUPS_BY:
        raise InvalidRequestError(f"group_by names {len(keys)} keys, at most {MAX_GROUPS_BY}")
    for key in keys:
        is_label = "label" in allowed and key.startswith(_OF_DEVICES)
        if not (key in allowed or (is_label and _LABEL_KEY.fullmatch(key.removeprefix(_OF_DEVICES)))):
            choices = ", ".join("label:KEY" if each == "label" else each for each in allowed)
            raise InvalidRequestError(f"group_by is {key[:80]!r}: use {choices}")
    return tuple(dict.fromkeys(keys))


def labels_of(labels: Mapping[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    """A device's values of these labels, "" where it has none."""
    return tuple(str(labels.get(key, "")) for key in keys)


def _one(name: str, text: str | None, value_ns: int | None) -> int | None:
    if text is not None and value_ns is not None:
        raise InvalidRequestError(f"{name} and {name}_ns are both given: use one")
    return parse_time(name, text) if text is not None else value_ns
