"""Whether rows of several calls may share one run: shown by runs, not believed of a signature.

Invariants: the answer is True only when every input and output has a free first axis, two different samples came
out of one run of both as they came out of runs of their own, and their answers did differ, so that a mixture would
have shown. Samples are the same on every start. Anything unexpected is False: a model that never shares a run is
right, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InferenceError
from edge_agent.runtime.tensors import NUMPY_TYPES
from fleet_protocol.manifest import TensorSpec

RELATIVE_TOLERANCE = 1e-3
"""Of an output's largest value: kernels for several rows add in another order."""
MAX_SAMPLE_VALUES = 4_000_000
"""A model whose smallest input is larger is not tried."""
_SCALES = (1.0, 0.05, 30.0)
_MAX_INTEGER = 2

Arrays = Mapping[str, NDArray[Any]]
Execute = Callable[[Arrays], Mapping[str, NDArray[Any]]]


def zeros(specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """An input of zeros, with 1 for every variable dimension."""
    return {
        spec.name: np.full(_smallest(spec), "", dtype=object)
        if spec.datatype == "BYTES"
        else np.zeros(_smallest(spec), dtype=NUMPY_TYPES[spec.datatype])
        for spec in specs
    }


def sample(specs: Sequence[TensorSpec], *, seed: int, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """A made-up input, the same for the same seed, with 1 for every variable dimension; no BYTES.

    Floats are between -scale/2 and scale/2, integers 0 or 1, which index every table of two or more.
    """
    arrays = {}
    for place, spec in enumerate(specs):
        dtype, shape = NUMPY_TYPES[spec.datatype], _smallest(spec)
        noise = _noise(int(np.prod(shape)), seed=seed * 31 + place).reshape(shape)
        if dtype.kind == "f":
            arrays[spec.name] = ((noise - 0.5) * scale).astype(dtype)
        else:
            arrays[spec.name] = (noise * _MAX_INTEGER).astype(dtype)
    return arrays


def rows_are_independent(execute: Execute, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether `execute` treats the rows of its inputs' first axis one by one."""
    if not _has_free_rows(inputs) or not _has_free_rows(outputs):
        return False
    try:
        for scale in _SCALES:
            pair = [sample(inputs, seed=seed, scale=scale) for seed in (1, 2)]
            alone = [execute(one) for one in pair]
            together = execute({spec.name: np.concatenate([one[spec.name] for one in pair]) for spec in inputs})
            if not all(_rows_match(together[out.name], [one[out.name] for one in alone]) for out in outputs):
                return False
            # a saturated answer would look the same whatever was mixed into it: ask again with other values
            if any(not _close(alone[0][out.name], alone[1][out.name]) for out in outputs):
                return True
    except (InferenceError, KeyError, IndexError):
        return False
    return False


def _has_free_rows(specs: Sequence[TensorSpec]) -> bool:
    return bool(specs) and all(
        spec.datatype != "BYTES"
        and bool(spec.shape)
        and spec.shape[0] == -1
        and 0 < np.prod(_smallest(spec), dtype=np.int64) <= MAX_SAMPLE_VALUES
        for spec in specs
    )


def _rows_match(together: NDArray[Any], alone: Sequence[NDArray[Any]]) -> bool:
    expected = np.concatenate(list(alone)) if all(len(one) == 1 for one in alone) else None
    return expected is not None and together.shape == expected.shape and _close(together, expected)


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    finite = np.abs(other[np.isfinite(other)])
    largest = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(one, other, rtol=0.0, atol=RELATIVE_TOLERANCE * largest, equal_nan=True))


def _smallest(spec: TensorSpec) -> list[int]:
    return [max(size, 1) for size in spec.shape]


def _noise(count: int, *, seed: int) -> NDArray[np.float64]:
    # a hash of the place: numpy.random would bring its generators into every agent's memory
    mixed = np.arange(count, dtype=np.uint64) + np.uint64(seed * 0x9E3779B9 + 0x1234567)
    for factor in (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(29))) * factor
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53))
