"""One calibration: a single pass over samples, then every kind of range without running the model again.

Invariants:
1. At most MAX_CALIBRATION_SAMPLES samples are used, chosen by `seed` when there are more; the same model, samples and
   seed give the same calibration.
2. A value that is not finite is an error that names the tensor; no range is ever made from one. The one exception is
   an attention mask: a tensor that holds -inf, or a stand-in as low as MASK_BELOW, has no range an integer could
   cover. It is in `masks`, and whoever quantizes leaves the nodes around it in float.
3. What `to_bytes` writes, `from_bytes` reads back equal; bytes that are torn are an error.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.calibration.activations import Activations
from quantize.calibration.observer import BINS, Observer
from quantize.calibration.ranges import Histogram, entropy_range, percentile_range
from quantize.data import Inputs, Samples
from quantize.errors import InvalidDataError
from quantize.scheme import Ranges

MAX_CALIBRATION_SAMPLES = 2_000
MASK_BELOW = -1e30
"""No activation of a trained network is this low; exporters write it where -inf is meant."""
NORMALISATIONS = ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The statistics of every float tensor that calibration saw, by name.

    `averages` are moving averages of the least and greatest value per sample. `channel_maxima` holds the greatest
    magnitude of each entry of the last axis, for the outputs of layer normalisations alone. `key` names the model,
    the samples and the seed.
    """

    key: str
    samples: int
    histograms: Mapping[str, Histogram]
    averages: Mapping[str, tuple[float, float]]
    masks: frozenset[str]
    channel_maxima: Mapping[str, NDArray[np.float32]]
    _read: dict[Ranges, Mapping[str, tuple[float, float]]] = field(default_factory=dict, compare=False, repr=False)

    def ranges(self, kind: Ranges) -> Mapping[str, tuple[float, float]]:
        """The range (least, greatest) of each tensor, read off as `kind` says; once, then remembered."""
        if kind not in self._read:
            self._read[kind] = {name: self._range(name, kind) for name in self.histograms}
        return self._read[kind]

    def _range(self, name: str, kind: Ranges) -> tuple[float, float]:
        histogram = self.histograms[name]
        if kind is Ranges.MOVING_AVERAGE:
            return self.averages[name]
        if kind is Ranges.PERCENTILE:
            return percentile_range(histogram)
        if kind is Ranges.ENTROPY:
            return entropy_range(histogram)
        return histogram.lowest, histogram.highest

    def to_bytes(self) -> bytes:
        """All of it as an npz file."""
        names = list(self.histograms)
        extremes = [(self.histograms[name].lowest, self.histograms[name].highest) for name in names]
        arrays: dict[str, NDArray[Any]] = {
            "key": np.array(self.key),
            "samples": np.array(self.samples),
            "names": np.array(names, dtype=np.str_),
            "counts": np.array([self.histograms[name].counts for name in names], dtype=np.int64).reshape(-1, BINS),
            "widths": np.array([self.histograms[name].width for name in names], dtype=np.float64),
            "extremes": np.array(extremes, dtype=np.float64).reshape(-1, 2),
            "averages": np.array([self.averages[name] for name in names], dtype=np.float64).reshape(-1, 2),
            "masks": np.array(sorted(self.masks), dtype=np.str_),
            "normalised": np.array(list(self.channel_maxima), dtype=np.str_),
        }
        for place, maxima in enumerate(self.channel_maxima.values()):
            arrays[f"maxima_{place}"] = maxima
        written = io.BytesIO()
        np.savez_compressed(written, allow_pickle=False, **arrays)
        return written.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Calibration:
        """What `to_bytes` wrote. Raises InvalidDataError for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                names = [str(name) for name in archive["names"]]
                counts, widths, extremes = archive["counts"], archive["widths"], archive["extremes"]
                averages, normalised = archive["averages"], archive["normalised"]
                return cls(
                    key=str(archive["key"]),
                    samples=int(archive["samples"]),
                    histograms={
                        name: Histogram(counts=counted, width=float(width), lowest=float(low), highest=float(high))
                        for name, counted, width, (low, high) in zip(names, counts, widths, extremes, strict=True)
                    },
                    averages={name: (float(a), float(b)) for name, (a, b) in zip(names, averages, strict=True)},
                    masks=frozenset(str(name) for name in archive["masks"]),
                    channel_maxima={str(name): archive[f"maxima_{place}"] for place, name in enumerate(normalised)},
                )
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, TypeError) as error:
            raise InvalidDataError(f"this is not a stored calibration ({error}): calibrate again") from None


def calibrate(prepared: bytes, inputs: Inputs, *, seed: int = 0, progress: Progress | None = None) -> Calibration:
    """Run `prepared` once over at most MAX_CALIBRATION_SAMPLES of `inputs` (`[n, ...]` by name).

    `progress(done, all)` is called after each batch. Raises InvalidDataError for samples that do not fit, hold or
    cause a value that is not finite (the tensor is named); InvalidModelError when the model does not run.
    """
    key = calibration_key(prepared, inputs, seed)
    chosen = chosen_samples(inputs, seed)
    for name, array in chosen.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidDataError(f"input {name!r} holds values that are not finite: remove those calibration samples")
    count = len(next(iter(chosen.values())))
    activations = Activations(model=prepared)
    normalised = _normalised(prepared)
    outputs = {output.name for output in onnx.load_from_string(prepared).graph.output}
    observers: dict[str, Observer] = {}
    maxima: dict[str, NDArray[np.float32]] = {}
    masks: set[str] = set()
    done = 0
    for size, batch in activations.batches(chosen):
        tensors = {name: array for name, array in batch.items() if array.dtype == np.float32}
        for name, values in {**tensors, **activations(batch)}.items():
            if not values.size:
                continue
            low, high = observers.setdefault(name, Observer()).observe(np.atleast_1d(values), size)
            if math.isnan(low) or (not math.isfinite(high)) or (not math.isfinite(low) and name in outputs):
                raise InvalidDataError(
                    f"tensor {name!r} is not finite on calibration samples {done} to {done + size - 1}:"
                    " look for a division by zero or an overflow there"
                )
            if low <= MASK_BELOW:
                masks.add(name)
            if name in normalised and values.ndim:
                peaks = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
                maxima[name] = np.maximum(maxima[name], peaks) if name in maxima else peaks
        done += size
        if progress is not None:
            progress(done, count)
    kept = {name: observer for name, observer in observers.items() if name not in masks and observer.average}
    return Calibration(
        key=key,
        samples=count,
        histograms={name: observer.histogram for name, observer in kept.items()},
        averages={name: observer.average for name, observer in kept.items() if observer.average is not None},
        masks=frozenset(masks),
        channel_maxima=maxima,
    )


def chosen_samples(inputs: Inputs, seed: int, most: int = MAX_CALIBRATION_SAMPLES) -> Inputs:
    """At most `most` of the samples, drawn without replacement by `seed`, in their order."""
    samples = Samples(inputs=inputs)
    if len(samples) <= most:
        return inputs
    places = np.random.default_rng(seed).choice(len(samples), size=most, replace=False)
    return samples.take(np.sort(places)).inputs


def calibration_key(prepared: bytes, inputs: Inputs, seed: int) -> str:
    """The key of the calibration that `calibrate` makes of these: to know a stored one again before making it."""
    return hashlib.sha256(prepared + f" {Samples(inputs=inputs).sha256()} {seed}".encode()).hexdigest()


def _normalised(prepared: bytes) -> frozenset[str]:
    nodes = onnx.load_from_string(prepared).graph.node
    return frozenset(node.output[0] for node in nodes if node.op_type in NORMALISATIONS)
