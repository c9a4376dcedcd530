"""One merged window while it is summed: everything but its sketches. Pure.

Invariants: the order of parts changes no sum; counts are exact integers and floats are summed exactly; of too many
names the first in order are kept, whichever came first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar

from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement, Window
from fleet_server.telemetry_store.device_count import estimate, hash_of, smallest, unpack_hashes
from fleet_server.telemetry_store.merged import MergedKey, MergedWindow
from fleet_server.telemetry_store.port import MAX_INT64

MAX_ERROR_KINDS = 256
MAX_CLASSES = 4_096
MAX_BATCH_SIZES = 1_024
OTHER_ERRORS = "other"
"""Where errors beyond MAX_ERROR_KINDS are counted."""

N = TypeVar("N", int, str)


def bounded(count: int) -> int:
    """A count, at most what a signed 64-bit column holds."""
    return min(count, MAX_INT64)


class Counts(Generic[N]):
    """Counts by name; beyond `limit` names those first in order are kept."""

    __slots__ = ("_limit", "by_name", "left_out", "overflowed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.by_name: dict[N, int] = {}
        self.left_out = 0
        self.overflowed = False

    def add(self, counts: Mapping[N, int]) -> None:
        known = self.by_name
        for name, count in counts.items():
            known[name] = known.get(name, 0) + count
        if len(known) > 2 * self._limit:
            self.settle()

    def settle(self) -> dict[N, int]:
        """The counts in order of their names, at most `limit` of them and none above what a column holds."""
        names = sorted(self.by_name)
        kept = {name: bounded(self.by_name[name]) for name in names[: self._limit]}
        for name in names[self._limit :]:
            self.overflowed = True
            self.left_out += self.by_name[name]
        self.by_name = kept
        return kept


class _ExactSum:
    """The sum of floats as the exactly rounded one, whatever their order (Shewchuk 1997, as in `math.fsum`)."""

    __slots__ = ("_partials",)

    def __init__(self) -> None:
        self._partials: list[float] = []

    def add(self, value: float) -> None:
        kept = 0
        for partial in self._partials:
            larger, smaller = (value, partial) if abs(value) >= abs(partial) else (partial, value)
            value = larger + smaller
            rest = smaller - (value - larger)
            if rest:
                self._partials[kept] = rest
                kept += 1
        self._partials[kept:] = [value]

    @property
    def value(self) -> float:
        return math.fsum(self._partials)


_MAX_FLOAT = 2.0**960
"""Floats beyond this are refused: 2**63 of them could not be summed."""


class GroupSums:
    """One merged window while it is summed.

    Its sketches are with whoever sums them: `number` is its own, `features` and `score` the rows of its bin sketches.
    """

    __slots__ = (
        "batch_sizes", "classes", "compared", "confidence_sum", "correct", "count", "devices",
        "devices_at_least", "devices_cut", "disagreed", "errors", "estimated", "features", "first_end_ns", "key",
        "last_end_ns", "number", "outcomes", "refused", "score", "shadow", "squared_error_count", "squared_error_sum",
        "start_ns", "variance_sum", "windows", "wrong",
    )  # fmt: skip  # in order

    def __init__(self, number: int, start_ns: int, key: MergedKey) -> None:
        self.number, self.start_ns, self.key = number, start_ns, key
        self.windows = self.count = self.refused = self.first_end_ns = self.last_end_ns = 0
        self.errors: Counts[str] = Counts(MAX_ERROR_KINDS)
        self.batch_sizes: Counts[int] = Counts(MAX_BATCH_SIZES)
        self.classes: Counts[int] = Counts(MAX_CLASSES)
        self.features: dict[str, int] = {}
        self.score = -1
        self.devices: set[int] = set()
        self.devices_at_least = 0
        self.shadow = self.outcomes = self.devices_cut = False
        self.compared = self.disagreed = self.correct = self.wrong = self.squared_error_count = self.estimated = 0
        self.squared_error_sum, self.confidence_sum, self.variance_sum = _ExactSum(), _ExactSum(), _ExactSum()

    def note_ends(self, first_ns: int, last_ns: int) -> None:
        self.first_end_ns = min(self.first_end_ns or first_ns, first_ns)
        self.last_end_ns = max(self.last_end_ns, last_ns)

    def note_devices(self, part: MergedWindow) -> None:
        self.devices_at_least = max(self.devices_at_least, part.devices)
        if part.key.device:
            self.devices.add(hash_of(part.key.device))
            return
        hashes = unpack_hashes(part.device_hashes)
        self.devices.update(hashes)
        self.devices_cut = self.devices_cut or len(hashes) < part.devices

    def add(self, part: Window | MergedWindow) -> None:
        """Everything but sketches."""
        self.count += part.count
        if part.errors:
            self.errors.add(part.errors)
        if part.batch_sizes:
            self.batch_sizes.add(part.batch_sizes)
        if part.classes:
            self.classes.add(part.classes)
        if part.shadow is not None:
            self.shadow = True
            self.compared += part.shadow.compared
            self.disagreed += part.shadow.disagreed
        if part.outcomes is not None:
            self._add_outcomes(part.outcomes)
        if part.estimated_accuracy is not None:
            self._add_estimate(part.estimated_accuracy)

    def _add_outcomes(self, known: Outcomes) -> None:
        self.outcomes = True
        self.correct += known.correct
        self.wrong += known.wrong
        if not 0.0 <= known.squared_error_sum <= _MAX_FLOAT:
            self.refused += 1
            return
        if known.squared_error_count:
            self.squared_error_count += known.squared_error_count
            self.squared_error_sum.add(known.squared_error_sum)

    def _add_estimate(self, known: EstimatedAccuracy) -> None:
        if not (abs(known.confidence_sum) <= _MAX_FLOAT and abs(known.variance_sum) <= _MAX_FLOAT):
            self.refused += 1
            return
        if known.count:
            self.estimated += known.count
            self.confidence_sum.add(known.confidence_sum)
            self.variance_sum.add(known.variance_sum)

    def device_count(self) -> int:
        if self.key.device:
            return 1
        if not self.devices_cut:
            return len(self.devices)
        return max(self.devices_at_least, estimate(smallest(self.devices)))

    def settled_errors(self) -> dict[str, int]:
        """Errors by kind."""
        kept = self.errors.settle()
        if self.errors.left_out:
            kept = {**kept, OTHER_ERRORS: bounded(kept.get(OTHER_ERRORS, 0) + self.errors.left_out)}
        return dict(sorted(kept.items()))

    def settled_shadow(self) -> ShadowAgreement | None:
        """How shadows agreed, None where none ran."""
        if not self.shadow:
            return None
        return ShadowAgreement(compared=bounded(self.compared), disagreed=bounded(self.disagreed))

    def settled_outcomes(self) -> Outcomes | None:
        """The outcomes, None where none were learnt."""
        if not self.outcomes:
            return None
        return Outcomes(
            correct=bounded(self.correct),
            wrong=bounded(self.wrong),
            squared_error_sum=self.squared_error_sum.value,
            squared_error_count=bounded(self.squared_error_count),
        )

    def settled_estimate(self) -> EstimatedAccuracy | None:
        """The label-free accuracy, None where nothing was estimated."""
        if not self.estimated:
            return None
        return EstimatedAccuracy(
            count=bounded(self.estimated),
            confidence_sum=self.confidence_sum.value,
            variance_sum=self.variance_sum.value,
        )

    def settled_refused(self) -> int:
        """Sketches and sums that are in nothing."""
        return bounded(self.refused + self.batch_sizes.overflowed + self.classes.overflowed)
