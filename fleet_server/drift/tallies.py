"""What the devices of one population counted, signal by signal: read as a stream, kept as sums. Pure.

Windows and merged hours look alike here (`Record`). Each belongs to a unit, the device, or the span itself where one
device is looked at alone; and to a step of time. Kept are each unit's counts `[units, cells]`, and for every record the
sums of the signal's few scores, from which timelines and onsets are made. Invariants:
- sketches of many records are decoded together: no loop per sketch;
- values under or over the reference's range belong to its first and last bin, for they lie beyond its edges;
- missing, NaN and infinite values are in no cell: they are a fault of the data, told apart from drift;
- a torn sketch is counted and left out, and never takes the rest of its record with it;
- memory grows with units and records, at a few numbers a record and signal, never with the sketches' bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import OVER, UNDER
from fleet_protocol.embedding_sums import FEATURE_SCALE
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, Window
from fleet_server.drift.evidence import EmbeddingSums
from fleet_server.drift.findings import SignalKind
from fleet_server.drift.signals import Counts, Matrix, Reference, Signal
from fleet_server.telemetry_store.merged import MergedWindow
from fleet_server.telemetry_store.sketches import decode_sparse_many, decode_sums_many

MAX_COUNT = 2**40
"""A cell of one record counts no more, so that no sum over records and cells leaves an int64."""
RECORDS_PER_CHUNK = 4_096
HOUR_NS = 3_600 * 10**9
EMBEDDING_SCORES = 16
"""Random features whose course over time is kept: any of them see what all of them see, only less sharply."""
_OUTSIDE = 5

Record = Window | MergedWindow
Steps = NDArray[np.int64]
Sums = NDArray[np.floating[Any]]
_Rows = tuple[Steps, Steps, Matrix, Sums]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A signal's scores over time: record r of `units[r]` in `steps[r]` has `totals[r]` values with sums `sums[r]`."""

    units: Steps
    steps: Steps
    totals: Matrix
    sums: Sums


class Counted:
    """What units counted of one signal: cells by unit; values in no cell, and beyond the range; torn sketches."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.scores = signal.scores
        self.unusable = self.beyond = self.torn = 0
        self._names: list[str] = []
        self._cells = np.zeros((0, len(signal.reference)), dtype=np.int64)
        self._course: list[_Rows] = []

    @property
    def cells(self) -> Counts:
        """Counts `[units, cells]`."""
        return self._cells[: len(self._names)]

    @property
    def by_device(self) -> dict[str, Counts]:
        """The counts of each unit that counted anything."""
        return {name: cells for name, cells in zip(self._names, self.cells, strict=True) if cells.any()}

    @property
    def course(self) -> Course:
        """The scores over time."""
        return _joined(self._course, self.scores.shape[1])

    def add(self, names: list[str], units: Steps, steps: Steps, records: Sequence[Record]) -> None:
        """Count records `[n]` of `units[n]`, which are places in `names`, in `steps[n]`."""
        self._names = names
        if len(names) > len(self._cells):
            grown = np.zeros((2 * len(names), self._cells.shape[1]), dtype=np.int64)
            grown[: len(self._cells)] = self._cells
            self._cells = grown
        cells = self._of_classes(records) if self.signal.edges is None else self._of_sketches(records)
        totals = cells.sum(axis=1)
        there = np.flatnonzero(totals)
        if not len(there):
            return
        cells = cells[there]
        order = np.argsort(units[there], kind="stable")
        present, first = np.unique(units[there][order], return_index=True)
        self._cells[present] += np.add.reduceat(cells[order], first, axis=0)
        sums = (cells @ self.scores).astype(np.float32)
        self._course.append((units[there], steps[there], totals[there].astype(np.float64), sums))

    def _of_classes(self, records: Sequence[Record]) -> Counts:
        cells = np.zeros((len(records), len(self.signal.reference)), dtype=np.int64)
        for row, record in enumerate(records):
            for index, count in record.classes.items():
                if 0 <= index < cells.shape[1]:
                    cells[row, index] = min(count, MAX_COUNT)
                else:
                    self.beyond += count
        return cells

    def _of_sketches(self, records: Sequence[Record]) -> Counts:
        bins = len(self.signal.reference)
        is_score, name = self.signal.kind is SignalKind.SCORE, self.signal.name
        blobs = [record.score if is_score else record.features.get(name, b"") for record in records]
        found = decode_sparse_many(blobs, bins + _OUTSIDE)
        dense = np.zeros((len(records), bins + _OUTSIDE), dtype=np.int64)
        dense[found.owners, found.places] = found.counts
        self.torn += len(found.refused)
        cells, outside = dense[:, :bins], dense[:, bins:]
        cells[:, 0] += outside[:, UNDER]
        cells[:, -1] += outside[:, OVER]
        beyond = int(outside[:, (UNDER, OVER)].sum())
        self.beyond += beyond
        self.unusable += int(outside.sum()) - beyond
        return cells


class Tally:
    """Everything that one population counted of a version's signals, and which records it was.

    `step_ns` is the length of a step of time; `unit_of` names a record's unit, its device by default.
    """

    def __init__(self, reference: Reference, *, step_ns: int, unit_of: Callable[[Record], str] | None = None) -> None:
        self.reference = reference
        self.step_ns = step_ns
        self.counted = [Counted(signal) for signal in reference.signals]
        self.names: list[str] = []
        self.variants: dict[str, str] = {}
        self.records = self.windows = self.values = 0
        self._unit_of = unit_of or device_of
        self._places: dict[str, int] = {}
        self._outcomes: list[_Rows] = []
        self._estimates: list[_Rows] = []
        self._embedding = np.zeros((0, len(reference.embedding.sums) if reference.embedding else 0), dtype=np.int64)
        self._embedding_counts = np.zeros(0, dtype=np.int64)
        self._embedding_course: list[_Rows] = []
        self.torn_embeddings = 0

    def __iter__(self) -> Iterator[Counted]:
        return iter(self.counted)

    def add_all(self, records: Iterable[Record]) -> Tally:
        """Count records, a chunk at a time."""
        stream = iter(records)
        while chunk := list(islice(stream, RECORDS_PER_CHUNK)):
            self._add(chunk)
        return self

    def unit_counts(self, signal: int) -> Counts:
        """The counts `[units, cells]` of a signal, in the order of `names`."""
        cells = self.counted[signal].cells
        if len(cells) == len(self.names):
            return cells
        return np.vstack([cells, np.zeros((len(self.names) - len(cells), cells.shape[1]), dtype=np.int64)])

    @property
    def embedding(self) -> EmbeddingSums:
        """The embedding sums of each unit, in the order of `names`."""
        size = len(self.names)
        return EmbeddingSums(sums=self._embedding[:size], counts=self._embedding_counts[:size])

    @property
    def embedding_course(self) -> Course:
        """The first few random features over time."""
        return _joined(self._embedding_course, EMBEDDING_SCORES)

    @property
    def outcomes(self) -> Course:
        """Outcomes known: `totals` were judged, `sums[:, 0]` of them were right."""
        return _joined(self._outcomes, 1)

    @property
    def estimates(self) -> Course:
        """Confidence: `totals` predictions, `sums` of the confidence p and of p(1 - p)."""
        return _joined(self._estimates, 2)

    def sums_by_unit(self, course: Course) -> tuple[Matrix, Matrix]:
        """(totals `[units]`, sums `[units, scores]`) of a course, in the order of `names`."""
        totals = np.bincount(course.units, course.totals, minlength=len(self.names))
        columns = [
            np.bincount(course.units, course.sums[:, column], minlength=len(self.names))
            for column in range(course.sums.shape[1])
        ]
        return totals.astype(np.float64), np.stack(columns, axis=1).astype(np.float64)

    def _add(self, records: Sequence[Record]) -> None:
        units = np.fromiter((self._place(record) for record in records), dtype=np.int64, count=len(records))
        ends = np.fromiter(
            (record.end_ns - 1 if isinstance(record, Window) else record.start_ns for record in records),
            dtype=np.int64,
            count=len(records),
        )
        steps = ends // self.step_ns
        self.records += len(records)
        self.windows += sum(1 if isinstance(record, Window) else record.windows for record in records)
        self.values += sum(min(record.count, MAX_COUNT) for record in records)
        for counted in self.counted:
            counted.add(self.names, units, steps, records)
        self._add_accuracies(records, units, steps)
        if self.reference.embedding is not None:
            self._add_embedding(records, units, steps)

    def _place(self, record: Record) -> int:
        name = self._unit_of(record)
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = len(self.names)
            self.names.append(name)
        self.variants[name] = record.variant if isinstance(record, Window) else record.key.variant
        return place

    def _add_accuracies(self, records: Sequence[Record], units: Steps, steps: Steps) -> None:
        known = [(row, record.outcomes) for row, record in enumerate(records) if record.outcomes is not None]
        judged = [(row, *_judged(outcomes)) for row, outcomes in known]
        self._outcomes.extend(_rows(units, steps, [(row, right + wrong, (right,)) for row, right, wrong in judged]))
        sure = [(row, record.estimated_accuracy) for row, record in enumerate(records) if record.estimated_accuracy]
        self._estimates.extend(
            _rows(units, steps, [(row, e.count, (e.confidence_sum, e.variance_sum)) for row, e in sure if _is_sound(e)])
        )

    def _add_embedding(self, records: Sequence[Record], units: Steps, steps: Steps) -> None:
        features = self._embedding.shape[1]
        rows = [row for row, record in enumerate(records) if record.embedding_count and record.embedding_sums]
        found = decode_sums_many([records[row].embedding_sums for row in rows])
        kept = np.flatnonzero(found.widths == features)
        sums = found.values[found.starts[kept][:, None] + np.arange(features)]
        self.torn_embeddings += len(rows) - len(kept)
        if len(self.names) > len(self._embedding):
            grown = np.zeros((2 * len(self.names), features), dtype=np.int64)
            grown[: len(self._embedding)] = self._embedding
            counts = np.zeros(2 * len(self.names), dtype=np.int64)
            counts[: len(self._embedding_counts)] = self._embedding_counts
            self._embedding, self._embedding_counts = grown, counts
        if not len(kept):
            return
        places = np.array(rows)[kept]
        counts = np.array([min(records[row].embedding_count, MAX_COUNT) for row in places], dtype=np.int64)
        np.add.at(self._embedding, units[places], sums)
        np.add.at(self._embedding_counts, units[places], counts)
        first = np.zeros((len(kept), EMBEDDING_SCORES), dtype=np.float32)
        first[:, : min(features, EMBEDDING_SCORES)] = sums[:, :EMBEDDING_SCORES] / FEATURE_SCALE
        self._embedding_course.append((units[places], steps[places], counts.astype(np.float64), first))


def count_signals(signals: Iterable[Signal], windows: Iterable[Window]) -> Tally:
    """Sum windows of one model version per signal and device, in the order of `signals`."""
    reference = Reference(model="", version="", signals=tuple(signals))
    return Tally(reference, step_ns=HOUR_NS).add_all(windows)


def device_of(record: Record) -> str:
    """The device that a record is from."""
    return record.device if isinstance(record, Window) else record.key.device


def span_of(record: Record) -> str:
    """When a record ended, as text that sorts by time."""
    return f"{record.end_ns if isinstance(record, Window) else record.start_ns:020d}"


def in_time(names: Sequence[str]) -> Steps:
    """The order of units that are spans, oldest first."""
    return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


def _judged(outcomes: Outcomes) -> tuple[int, int]:
    return min(outcomes.correct, MAX_COUNT), min(outcomes.wrong, MAX_COUNT)


def _is_sound(estimate: EstimatedAccuracy) -> bool:
    """Whether sums are those of probabilities: a device that claims otherwise says nothing."""
    count = min(estimate.count, MAX_COUNT)
    return count > 0 and 0 <= estimate.confidence_sum <= count * 1.000001 and 0 <= estimate.variance_sum <= count


def _rows(units: Steps, steps: Steps, found: Sequence[tuple[int, int, tuple[float, ...]]]) -> list[_Rows]:
    rows = np.array([row for row, total, _ in found if total], dtype=np.int64)
    if not len(rows):
        return []
    totals = np.array([min(total, MAX_COUNT) for _, total, _ in found if total], dtype=np.float64)
    sums = np.array([values for _, total, values in found if total], dtype=np.float64)
    return [(units[rows], steps[rows], totals, sums)]


def _joined(parts: Sequence[_Rows], scores: int) -> Course:
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Course(units=none, steps=none, totals=np.zeros(0), sums=np.zeros((0, scores), dtype=np.float32))
    units, steps, totals, sums = (np.concatenate([part[column] for part in parts]) for column in range(4))
    return Course(units=units, steps=steps, totals=totals, sums=sums)
