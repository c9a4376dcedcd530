"""What a bundle's reference describes, and what devices counted of it. Pure.

A signal is one thing that can drift: a feature of the inputs, the predicted classes, the winning score. Invariants:
- devices and reference are counted in the same cells, the reference's;
- values under or over the reference's range belong to its first and last bin, for they lie beyond its edges;
- missing, NaN and infinite values are in no cell: they are a fault of the data, told apart from drift;
- a torn sketch is counted and left out, and never takes the rest of its window with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import OVER, UNDER, BinSketch, Edges, check_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError

MAX_COUNT = 2**40
"""A cell of one window counts no more, so that no sum over windows and cells leaves an int64."""

Counts = NDArray[np.int64]


class SignalKind(StrEnum):
    """Where a signal is seen."""

    FEATURE = "feature"
    CLASSES = "classes"
    SCORE = "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A thing that can drift, and how often each of its cells occurs in the reference; `edges` None for classes."""

    name: str
    kind: SignalKind
    reference: Counts
    edges: Edges | None


@dataclass(slots=True, kw_only=True)
class Counted:
    """What devices counted of one signal: cells by device; values in no cell, and beyond the range; torn sketches."""

    by_device: dict[str, Counts] = field(default_factory=dict)
    unusable: int = 0
    beyond: int = 0
    torn: int = 0


def read_manifest(document: Mapping[str, Any]) -> Manifest:
    """The manifest in a catalogue entry. Raises InvalidRequestError when it is not one."""
    try:
        return msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(
            f"the published manifest cannot be read ({error}): publish the version again"
        ) from None


def signals_of(manifest: Manifest) -> list[Signal]:
    """Everything the manifest has a reference for: features in its order, then classes, then the score.

    Raises InvalidRequestError when a reference does not add up.
    """
    signals = [
        _numeric(feature.name, SignalKind.FEATURE, feature.edges, feature.counts) for feature in manifest.features
    ]
    if manifest.classes:
        reference = np.array(manifest.classes, dtype=np.int64)
        signals.append(Signal(name="classes", kind=SignalKind.CLASSES, reference=reference, edges=None))
    if manifest.score is not None:
        signals.append(_numeric("score", SignalKind.SCORE, manifest.score.edges, manifest.score.counts))
    return signals


def count_signals(signals: Iterable[Signal], windows: Iterable[Window]) -> list[Counted]:
    """Sum windows of one model version per signal and device, in the order of `signals`."""
    known = list(signals)
    counted = [Counted() for _ in known]
    for window in windows:
        for signal, sums in zip(known, counted, strict=True):
            _add(signal, sums, window)
    return counted


def _numeric(name: str, kind: SignalKind, edges: list[float], counts: list[int]) -> Signal:
    try:
        checked = check_edges(edges)
    except SketchError as error:
        raise InvalidRequestError(f"the reference of {name!r} is not usable: {error}; rebuild the bundle") from None
    if len(counts) != len(checked) - 1:
        raise InvalidRequestError(
            f"the reference of {name!r} has {len(counts)} counts for {len(checked) - 1} bins: rebuild the bundle"
        )
    return Signal(name=name, kind=kind, reference=np.array(counts, dtype=np.int64), edges=checked)


def _add(signal: Signal, sums: Counted, window: Window) -> None:
    if signal.edges is None:
        cells = np.zeros(len(signal.reference), dtype=np.int64)
        for index, count in window.classes.items():
            if 0 <= index < len(cells):
                cells[index] = min(count, MAX_COUNT)
            else:
                sums.beyond += count
    else:
        data = window.score if signal.kind is SignalKind.SCORE else window.features.get(signal.name, b"")
        if not data:
            return
        try:
            sketch = BinSketch.from_bytes(signal.edges, data)
        except SketchError:
            sums.torn += 1
            return
        cells, outside = np.minimum(sketch.bins, MAX_COUNT), np.minimum(sketch.outside, MAX_COUNT)
        cells[0] += outside[UNDER]
        cells[-1] += outside[OVER]
        beyond = int(outside[UNDER] + outside[OVER])
        sums.beyond += beyond
        sums.unusable += int(outside.sum()) - beyond
    if cells.any():
        before = sums.by_device.get(window.device)
        sums.by_device[window.device] = cells if before is None else before + cells


def windows_by_version(windows: Iterable[Window]) -> dict[str, list[Window]]:
    """Windows of one model, grouped by version."""
    grouped: defaultdict[str, list[Window]] = defaultdict(list)
    for window in windows:
        grouped[window.version].append(window)
    return dict(grouped)
