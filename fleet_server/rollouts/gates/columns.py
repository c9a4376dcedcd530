"""The evidence of one look as columns, one entry a device: what the gates compute with. One pass over the devices.

"Not measured" is NaN. Counts are floats: sums of whatever devices send never overflow, and are exact up to 2^53.
Classes beyond the MAX_CLASSES most predicted are one class: that only makes two distributions more alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.messages import Phase
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

MAX_CLASSES = 64
_NOTHING = Measures()
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureColumns:
    """`Measures` as columns `[devices]`."""

    count: Values
    errors: Values
    correct: Values
    wrong: Values
    p95_us: Values
    rss_bytes: Values
    temperature_c: Values
    shadow_compared: Values
    shadow_disagreed: Values

    @classmethod
    def of(cls, measures: Sequence[Measures]) -> MeasureColumns:
        """The columns of one Measures a device."""
        table = np.array(
            [
                (m.count, m.errors, m.correct, m.wrong, m.p95_us, m.rss_bytes, m.temperature_c, m.shadow_compared,
                 m.shadow_disagreed)
                for m in measures
            ],
            dtype=np.float64,
        ).reshape(-1, len(fields(cls)))  # fmt: skip  # None becomes NaN
        return cls(**{field.name: table[:, index] for index, field in enumerate(fields(cls))})

    def select(self, which: Flags) -> MeasureColumns:
        """Those devices alone."""
        return MeasureColumns(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Devices of one look, either the exposed or the control's, as columns `[devices]`."""

    devices: Sequence[DeviceEvidence]
    candidate: MeasureColumns
    incumbent: MeasureColumns
    has_incumbent: Flags
    expected_accuracy: Values
    watched_s: Values
    silent_after_s: Values

    @classmethod
    def of(cls, devices: Sequence[DeviceEvidence]) -> Columns:
        """The columns of these devices."""
        return cls(
            devices=devices,
            candidate=MeasureColumns.of([device.candidate for device in devices]),
            incumbent=MeasureColumns.of([device.incumbent or _NOTHING for device in devices]),
            has_incumbent=np.array([device.incumbent is not None for device in devices], dtype=np.bool_),
            expected_accuracy=_column(devices, lambda device: device.expected_accuracy),
            watched_s=_column(devices, lambda device: device.watched_s),
            silent_after_s=_column(devices, lambda device: device.silent_after_s),
        )

    def select(self, which: Flags) -> Columns:
        """Those devices alone."""
        return Columns(
            devices=[self.devices[index] for index in np.flatnonzero(which).tolist()],
            candidate=self.candidate.select(which),
            incumbent=self.incumbent.select(which),
            has_incumbent=self.has_incumbent[which],
            expected_accuracy=self.expected_accuracy[which],
            watched_s=self.watched_s[which],
            silent_after_s=self.silent_after_s[which],
        )

    @property
    def size(self) -> int:
        """How many devices."""
        return len(self.devices)

    @cached_property
    def phases(self) -> list[Phase]:
        """Where each device is with its update."""
        return [device.phase for device in self.devices]

    @cached_property
    def half(self) -> Flags:
        """One of two halves `[devices]`, by the device's name: always the same."""
        return np.array([crc32(device.device.encode()) & 1 for device in self.devices], dtype=np.bool_)


def split(evidence: Evidence) -> tuple[Columns, Columns]:
    """The columns of the exposed devices, and those of the control."""
    devices = evidence.devices
    return (
        Columns.of([device for device in devices if not device.is_control]),
        Columns.of([device for device in devices if device.is_control]),
    )


def class_counts(*groups: Columns) -> list[tuple[Values, Values]]:
    """Per group the predictions by class `[devices, classes]`: (candidate, incumbent), the same classes everywhere."""
    tables = [
        [measures.classes for measures in side]
        for group in groups
        for side in (
            [device.candidate for device in group.devices],
            [device.incumbent or _NOTHING for device in group.devices],
        )
    ]
    everything = [classes for table in tables for classes in table]
    rows = np.repeat(np.arange(len(everything)), [len(classes) for classes in everything])
    names = np.fromiter(chain.from_iterable(everything), dtype=np.int64, count=rows.size)
    counts = np.fromiter(
        chain.from_iterable(classes.values() for classes in everything), dtype=np.float64, count=rows.size
    )
    known, places = np.unique(names, return_inverse=True)
    if known.size > MAX_CLASSES:
        by_count = np.argsort(-np.bincount(places, weights=counts, minlength=known.size), kind="stable")
        rank = np.empty_like(by_count)
        rank[by_count] = np.arange(known.size)
        places = np.minimum(rank, MAX_CLASSES - 1)[places]
    width = max(1, min(known.size, MAX_CLASSES))
    dense = np.bincount(rows * width + places, weights=counts, minlength=len(everything) * width)
    shaped: Values = dense.astype(np.float64, copy=False).reshape(-1, width)
    ends = np.cumsum([len(table) for table in tables]).tolist()
    found = [shaped[end - len(table) : end] for end, table in zip(ends, tables, strict=True)]
    return list(zip(found[::2], found[1::2], strict=True))


def _column(devices: Sequence[DeviceEvidence], read: Callable[[DeviceEvidence], float | None]) -> Values:
    return np.array([_NAN if (value := read(device)) is None else value for device in devices], dtype=np.float64)
