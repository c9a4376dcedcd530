"""Answers questions about telemetry: from merged series where they hold the answer, else from the windows themselves.

Invariants:
- nothing is averaged: counts and histograms add, percentiles are those of the sum;
- an answer says what it was read from; a span is widened to whole minutes or hours only where single windows would be
  too many, and the answer says that too;
- memory is bounded by MAX_ROWS groups and steps, whatever the number of windows.
The interval of an accuracy has the device as its unit: the ratio of sums over devices with its linearised variance
(Cochran, Sampling Techniques, 6.3) and Student's t, joined with Wilson's interval, which covers what few devices that
all agree leave out. Where single devices can no longer be seen there is no interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from scipy import stats
from sqlalchemy import Engine, select

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement, Window
from fleet_server.api.telemetry_query import Question, grain_for, labels_of, widened
from fleet_server.database.tables import devices
from fleet_server.errors import InvalidRequestError
from fleet_server.merging.reading import merged_windows
from fleet_server.telemetry_store.merge import regroup
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.port import Slice, TelemetryStore

MAX_ROWS = 20_000
"""Steps x groups of one answer."""
MAX_WINDOWS = 50_000
"""Single windows read for one answer."""
CONFIDENCE = 0.95
_QUANTILES = (("p50_us", 0.5), ("p90_us", 0.9), ("p95_us", 0.95), ("p99_us", 0.99), ("p999_us", 0.999))
_NO_OUTCOMES, _NO_SHADOW, _NO_ESTIMATE = Outcomes(), ShadowAgreement(), EstimatedAccuracy()

Judged = dict[str, tuple[int, int]]
"""Device -> outcomes that were right and wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Rows by time, then group; `read_from` is a grain or "windows". `question` is the one that was answered."""

    question: Question
    read_from: str
    rows: list[dict[str, Any]]


def read_series(
    engine: Engine, store: TelemetryStore, where: Slice, question: Question, *, of_devices: bool = False
) -> Series:
    """The series of a slice. `of_devices` asks for what only single devices tell: the interval of the accuracy.

    Raises InvalidRequestError for more rows or windows than an answer has room for.
    """
    must_see_devices = of_devices or question.needs_devices or where.devices is not None
    grain = grain_for(question, of_devices=must_see_devices)
    if grain is None:
        reading = _Reading(engine, store, where, question)
        rows = reading.from_windows()
        if rows is not None:
            return Series(question=question, read_from="windows", rows=rows)
        grain = Grain.DEVICE_HOUR if must_see_devices else Grain.FLEET_MINUTE
        whole = widened(question, grain.span_ns)
        if whole is None:
            unit = "hours" if must_see_devices else "minutes"
            raise InvalidRequestError(
                f"the span holds more than {MAX_WINDOWS} windows: narrow it, or ask for steps of whole {unit}"
            )
        question = whole
    where = replace(where, start_ns=question.start_ns, end_ns=question.end_ns)
    rows = _Reading(engine, store, where, question).from_merged(grain)
    return Series(question=question, read_from=grain.value, rows=rows)


class _Reading:
    """One answer being read."""

    def __init__(self, engine: Engine, store: TelemetryStore, where: Slice, question: Question) -> None:
        self._engine, self._store, self._where, self._question = engine, store, where, question
        self._groups: set[tuple[int, MergedKey]] = set()
        self._judged: dict[tuple[int, MergedKey], Judged] = defaultdict(dict)
        self._labels = self._read_labels()

    def from_merged(self, grain: Grain) -> list[dict[str, Any]]:
        where = self._where
        cohort = where.cohort
        if grain is Grain.DEVICE_HOUR and cohort is not None:
            where = replace(where, cohort=None)
        parts = merged_windows(self._engine, self._store, where, grain)
        if grain is Grain.DEVICE_HOUR:
            parts = self._of_cohort(parts, cohort)
        return self._rows(parts)

    def from_windows(self) -> list[dict[str, Any]] | None:
        """None where there are too many windows."""
        where = replace(self._where, cohort=None)
        too_many = False

        def parts() -> Iterator[MergedWindow]:
            nonlocal too_many
            with closing(self._store.each_window(where)) as windows:
                for number, window in enumerate(windows):
                    if number >= MAX_WINDOWS:
                        too_many = True
                        return
                    yield part_of(window)

        rows = self._rows(self._of_cohort(parts(), self._where.cohort))
        return None if too_many else rows

    def _rows(self, parts: Iterable[MergedWindow]) -> list[dict[str, Any]]:
        step_ns = self._question.step_ns
        merged = regroup(self._noted(parts), self._key_of, step_ns)
        rows = []
        for one in merged:
            group = dict(zip(self._question.group_by, self._group_values(one.key), strict=True))
            judged = self._judged.get((one.start_ns, one.key))
            rows.append({"start_ns": one.start_ns, **group, **figures(one, judged)})
        return rows

    def _noted(self, parts: Iterable[MergedWindow]) -> Iterator[MergedWindow]:
        step_ns = self._question.step_ns
        for part in parts:
            place = (part.start_ns // step_ns * step_ns, self._key_of(part.key))
            self._groups.add(place)
            if len(self._groups) > MAX_ROWS:
                raise InvalidRequestError(f"the answer has more than {MAX_ROWS} rows: narrow it, or group by less")
            if part.key.device and part.outcomes is not None:
                of_group = self._judged[place]
                correct, wrong = of_group.get(part.key.device, (0, 0))
                of_group[part.key.device] = (correct + part.outcomes.correct, wrong + part.outcomes.wrong)
            yield part

    def _key_of(self, key: MergedKey) -> MergedKey:
        """The group of a series as a key; what is not grouped by is "". Values of labels lie in `cohort`, as JSON."""
        by = self._question.group_by
        cohort = key.cohort if "cohort" in by else ""
        if key.device and ("cohort" in by or self._question.labels):
            labels = self._labels.get(key.device, {})
            cohort = labels.get("cohort", "") if "cohort" in by else ""
            if self._question.labels:
                values = (cohort, *labels_of(labels, self._question.labels))
                cohort = msgspec.json.encode(values).decode()
        return MergedKey(
            model=key.model if "model" in by else "",
            version=key.version if "version" in by else "",
            variant=key.variant if "variant" in by else "",
            arm=key.arm if "arm" in by else "",
            device=key.device if "device" in by else "",
            cohort=cohort,
        )

    def _group_values(self, key: MergedKey) -> list[str]:
        labels = dict(zip(("cohort", *self._question.labels), [key.cohort], strict=False))
        if self._question.labels:
            labels = dict(zip(("cohort", *self._question.labels), msgspec.json.decode(key.cohort), strict=True))
        return [
            str(
                labels[name.removeprefix("label:")]
                if name.startswith("label:") or name == "cohort"
                else getattr(key, name)
            )
            for name in self._question.group_by
        ]

    def _of_cohort(self, parts: Iterable[MergedWindow], cohort: str | None) -> Iterator[MergedWindow]:
        for part in parts:
            if cohort is None or self._labels.get(part.key.device, {}).get("cohort", "") == cohort:
                yield part

    def _read_labels(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of the slice's devices, where the question needs any."""
        wanted = self._question.labels or "cohort" in self._question.group_by or self._where.cohort is not None
        if not wanted:
            return {}
        query = select(devices.c.device, devices.c.labels).where(devices.c.fleet == self._where.fleet)
        with self._engine.connect() as connection:
            return {row.device: row.labels for row in connection.execute(query) if row.labels}


def part_of(window: Window) -> MergedWindow:
    """One window as a merged one, in the nanosecond in which it ended."""
    return MergedWindow(
        key=MergedKey(
            model=window.model,
            version=window.version,
            variant=window.variant,
            arm=window.arm,
            device=window.device,
        ),
        start_ns=max(0, window.end_ns - 1),
        windows=1,
        devices=1,
        first_end_ns=window.end_ns,
        last_end_ns=window.end_ns,
        count=window.count,
        errors=window.errors,
        latency=window.latency,
        queue_wait=window.queue_wait,
        classes=window.classes,
        shadow=window.shadow,
        outcomes=window.outcomes,
        estimated_accuracy=window.estimated_accuracy,
    )


def figures(one: MergedWindow, judged: Judged | None) -> dict[str, Any]:
    """What a merged window says, in numbers; null where nothing was counted.

    `errors` are inferences that failed, `count` those that were answered. `devices` are different ones.
    """
    errors, outcomes = sum(one.errors.values()), one.outcomes or _NO_OUTCOMES
    shadow, estimate = one.shadow or _NO_SHADOW, one.estimated_accuracy or _NO_ESTIMATE
    right, told = outcomes.correct, outcomes.correct + outcomes.wrong
    lower, upper = accuracy_interval(judged) if judged else (None, None)
    queue = LatencyHistogram.from_bytes(one.queue_wait)
    return {
        "windows": one.windows,
        "devices": one.devices,
        "count": one.count,
        "errors": errors,
        "error_rate": _share(errors, one.count + errors),
        "correct": right,
        "wrong": outcomes.wrong,
        "accuracy": _share(right, told),
        "accuracy_lower": lower,
        "accuracy_upper": upper,
        "estimated_accuracy": _share(estimate.confidence_sum, estimate.count),
        "estimated_accuracy_count": estimate.count,
        "shadow_compared": shadow.compared,
        "shadow_disagreed": shadow.disagreed,
        "shadow_disagreement": _share(shadow.disagreed, shadow.compared),
        **latency_figures(LatencyHistogram.from_bytes(one.latency)),
        "queue_p95_us": finite(queue.quantile_us(0.95)),
        "sketches_refused": one.refused,
    }


def latency_figures(latency: LatencyHistogram) -> dict[str, float | None]:
    """Quantiles, mean and maximum in microseconds; null where nothing was counted."""
    quantiles = {name: finite(latency.quantile_us(level)) for name, level in _QUANTILES}
    return {**quantiles, "mean_us": finite(latency.mean_us), "max_us": finite(latency.max_us)}


def accuracy_interval(judged: Mapping[str, tuple[int, int]]) -> tuple[float | None, float | None]:
    """Where the accuracy lies, with CONFIDENCE, over devices' outcomes (right, wrong); None without any."""
    pairs = [(right, right + wrong) for right, wrong in judged.values() if right + wrong]
    told = sum(number for _, number in pairs)
    if not told:
        return None, None
    share = sum(right for right, _ in pairs) / told
    lower, upper = _wilson(share, told)
    if len(pairs) > 1:
        spread = math.fsum((right - share * number) ** 2 for right, number in pairs)
        error = math.sqrt(spread * len(pairs) / (len(pairs) - 1)) / told
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(pairs) - 1)) * error
        lower, upper = min(lower, share - half), max(upper, share + half)
    return max(0.0, lower), min(1.0, upper)


def _wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's interval of a share of `number` independent trials (Wilson 1927)."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    scale = 1 + z * z / number
    middle = (share + z * z / (2 * number)) / scale
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number)) / scale
    return middle - half, middle + half


def finite(value: float | None) -> float | None:
    """The value; None for what JSON has no form for."""
    return value if value is not None and math.isfinite(value) else None


def _share(part: float, whole: float) -> float | None:
    return finite(part / whole) if whole else None
