"""The samples a model is calibrated and measured with: arrays named after its inputs, and labels.

Invariants: every array of a `Samples` has the same number of samples on axis 0, at least one and at most
MAX_SAMPLES; nothing in a data file is unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InvalidInputError
from edge_agent.runtime.tensors import conform
from fleet_protocol.manifest import TensorSpec
from quantize.errors import InvalidDataError, InvalidModelError, InvalidOptionError

MAX_SAMPLES = 1_000_000
MAX_BATCH_SAMPLES = 128
_SPLIT_SEED = 1

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """`inputs` by name, each `[n, ...]`, and the truth where it is known: `labels`, class numbers int64 `[n]` or
    target values float `[n, ...]`.
    """

    inputs: Inputs
    labels: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        sizes = {len(array) if array.ndim else 0 for array in self._arrays().values()}
        if len(sizes) != 1 or not 1 <= min(sizes) <= MAX_SAMPLES:
            shapes = {name: array.shape for name, array in self._arrays().items()}
            raise InvalidDataError(
                f"all arrays need the same number of samples on axis 0, 1 to {MAX_SAMPLES:,}, not {shapes}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.inputs, **({} if self.labels is None else {"labels": self.labels})}

    def take(self, places: NDArray[np.int64]) -> Samples:
        """The samples at `places` `[k]`, in that order."""
        inputs = {name: array[places] for name, array in self.inputs.items()}
        return Samples(inputs=inputs, labels=None if self.labels is None else self.labels[places])

    def sha256(self) -> str:
        """The digest that names this data in a lineage: over every array's name, type, shape and bytes."""
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_samples(path: Path, specs: Sequence[TensorSpec], *, labels: str | None = None) -> Samples:
    """The arrays of an npz that are named after the model's inputs, and the array called `labels`.

    Raises InvalidOptionError when the file cannot be read, InvalidDataError when it does not fit the model,
    InvalidModelError when the model takes no batches.
    """
    wanted = [spec.name for spec in specs] + ([] if labels is None else [labels])
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InvalidOptionError(f"{path} is a single array: save it with numpy.savez under the input's name")
        with loaded as archive:
            missing = [name for name in wanted if name not in archive.files]
            if missing:
                raise InvalidDataError(
                    f"{path} lacks the arrays {', '.join(missing)}; it has {', '.join(archive.files) or 'none'}"
                )
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in wanted}
    except OSError as error:
        raise InvalidOptionError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise InvalidDataError(f"{path} is not an npz file of plain arrays: write it with numpy.savez") from None
    truth = None if labels is None else arrays.pop(labels)
    if truth is not None and (not truth.ndim or truth.dtype.kind not in "iuf"):
        raise InvalidDataError(f"{labels} in {path} must be numbers, one row a sample, not {truth.dtype} {truth.shape}")
    if truth is not None and truth.dtype.kind in "iu":
        truth = truth.astype(np.int64)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.ndim and not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            raise InvalidDataError(
                f"{name} in {path} holds NaN or infinity, first in sample {bad}: remove such samples"
            )
    samples = Samples(inputs=arrays, labels=truth)
    next(batches(samples.inputs, specs))
    return samples


def arrays_of(path: Path) -> list[str]:
    """The names of the arrays in an npz; none when it is no such file, which `load_samples` will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def concatenated(first: Samples, second: Samples) -> Samples:
    """The samples of both; with labels where both have them."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    inputs = {name: np.concatenate([array, second.inputs[name]]) for name, array in first.inputs.items()}
    return Samples(inputs=inputs, labels=labels)


def split(samples: Samples, count: int, *, seed: int = _SPLIT_SEED) -> list[Samples]:
    """`count` parts of about equal size without a common sample, the same for the same data and seed.

    Raises InvalidDataError when there are fewer samples than parts.
    """
    if len(samples) < count:
        raise InvalidDataError(
            f"{len(samples)} samples cannot be split into {count} parts, one to calibrate and others to measure with:"
            " give more, or other files to --labels and --final"
        )
    order = np.random.default_rng(seed).permutation(len(samples)).astype(np.int64)
    return [samples.take(part) for part in np.array_split(order, count)]


def batches(inputs: Inputs, specs: Sequence[TensorSpec]) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples in batches the model takes, as its types: one at a time when its batch is fixed at 1.

    Raises InvalidModelError when the model's batch is fixed at another size, and InvalidDataError for
    samples of another shape or type.
    """
    fixed = {spec.shape[0] for spec in specs if spec.shape} - {-1}
    if fixed - {1} or not all(spec.shape for spec in specs):
        raise InvalidModelError("the model's batch (axis 0 of every input) must be dynamic or 1: export it again")
    size = 1 if fixed else MAX_BATCH_SAMPLES
    count = len(next(iter(inputs.values())))
    for start in range(0, count, size):
        try:
            yield conform(specs, {name: array[start : start + size] for name, array in inputs.items()})
        except InvalidInputError as error:
            raise InvalidDataError(f"the samples do not fit the model: {error}") from None
