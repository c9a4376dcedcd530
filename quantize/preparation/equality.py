"""Whether two ONNX models compute the same numbers, seen by running both on the same inputs.

The inputs are made up from a seed (and those of the caller where there are some): as wide as images of bytes, and as
narrow as standardised values; token ids stay within the smallest table they could index. How near is near enough
is the model's own condition: at most RELATIVE_TOLERANCE of the greatest number of an output, or, for a model that
amplifies rounding, SENSITIVITY times what the original itself moves by when its inputs move by one part in a million.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from quantize.errors import InvalidModelError
from quantize.preparation.graph import Graph

RELATIVE_TOLERANCE = 1e-5
SENSITIVITY = 4.0
BATCH = 3
_NUDGE = 1e-6
_SEED = 7
_SILENT = 4

Arrays = Mapping[str, NDArray[Any]]

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def open_session(model: bytes, *, optimised: bool = True) -> Any:
    """An ONNX Runtime session on one thread of the CPU. Raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def made_up_inputs(
    session: Any, *, batch: int, id_limit: int, wide: bool, seed: int = _SEED
) -> dict[str, NDArray[Any]]:
    """Random inputs for a session, `batch` where the batch varies.

    Floats are standard normal, or uniform in 0 to 255 where `wide`; integers are below `id_limit`.
    Raises InvalidModelError for an input that is not a tensor of numbers.
    """
    randomness = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        dtype = _TYPES.get(value.type)
        if dtype is None:
            raise InvalidModelError(f"input {value.name!r} is {value.type}: only tensors of numbers can be quantized")
        shape = [size if isinstance(size, int) and size > 0 else (batch if axis == 0 else 1)
                 for axis, size in enumerate(value.shape)]  # fmt: skip
        if issubclass(dtype, np.floating):
            drawn: NDArray[Any] = randomness.uniform(0, 255, size=shape) if wide else randomness.normal(size=shape)
        else:
            drawn = randomness.integers(0, 2 if dtype is np.bool_ else id_limit, size=shape)
        feeds[value.name] = np.asarray(drawn).astype(dtype)
    return feeds


def id_limit(graph: Graph) -> int:
    """The number of rows of the smallest float table that ids may index, 2 where there is none; at most 127."""
    rows = [
        graph.constants()[node.input[0]].dims[0]
        for node in graph.by_operator("Gather")
        if graph.is_constant(node.input[0])
        and graph.constants()[node.input[0]].data_type in (TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8)
        and len(graph.constants()[node.input[0]].dims) > 1
        and not graph.is_constant(node.input[1])
    ]
    return max(1, min([*rows, 127])) if rows else 2


class Reference:
    """What the original answers, to hold rewrites against. Raises InvalidModelError when it does not load or run."""

    def __init__(self, model: bytes, *, samples: Arrays | None = None) -> None:
        try:
            session = open_session(model)
            limit = id_limit(Graph.of_bytes(model))
            feeds = [
                made_up_inputs(session, batch=BATCH, id_limit=limit, wide=wide, seed=_SEED + wide)
                for wide in (False, True)
            ]
            if samples is not None:
                feeds.append({name: np.asarray(array) for name, array in samples.items()})
            answers = [session.run(None, feed) for feed in feeds]
            nudged = [session.run(None, _nudged(feed)) for feed in feeds]
        except InvalidModelError:
            raise
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's failures have no common base
            raise InvalidModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None
        self._names = [value.name for value in session.get_outputs()]
        self._cases = [
            (feed, answer, [_tolerance(a, b) for a, b in zip(answer, other, strict=True)])
            for feed, answer, other in zip(feeds, answers, nudged, strict=True)
        ]

    def difference(self, candidate: bytes) -> str | None:
        """Why `candidate` is not the same model, in words; None when it is."""
        try:
            session = open_session(candidate)
            for feed, expected, tolerances in self._cases:
                found = session.run(self._names, feed)
                for name, a, b, tolerance in zip(self._names, expected, found, tolerances, strict=True):
                    reason = _difference(name, a, b, tolerance)
                    if reason is not None:
                        return reason
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's failures have no common base
            return f"ONNX Runtime cannot run it: {first_line(error)}"
        return None


def first_line(error: Exception) -> str:
    """An error's first line, shortened."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _nudged(feed: Arrays) -> dict[str, NDArray[Any]]:
    randomness = np.random.default_rng(_SEED)
    nudged: dict[str, NDArray[Any]] = {}
    for name, array in feed.items():
        if array.dtype.kind == "f":
            array = (array * (1 + _NUDGE * randomness.choice([-1.0, 1.0], size=array.shape))).astype(array.dtype)  # noqa: PLW2901
        nudged[name] = array
    return nudged


def _tolerance(answer: Any, nudged: Any) -> float:
    if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f" or not answer.size:
        return 0.0
    finite = np.isfinite(answer) & np.isfinite(nudged)
    moved = float(np.abs(np.where(finite, answer - nudged, 0)).max())
    return max(RELATIVE_TOLERANCE * float(np.abs(np.where(finite, answer, 0)).max()), SENSITIVITY * moved)


def _difference(name: str, expected: Any, found: Any, tolerance: float) -> str | None:
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        return None if isinstance(found, type(expected)) and found == expected else f"output {name!r} differs"
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"output {name!r} is {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
    if expected.dtype.kind != "f":
        return None if np.array_equal(expected, found) else f"output {name!r} differs"
    if np.allclose(expected, found, rtol=0, atol=tolerance, equal_nan=True):
        return None
    worst = float(np.nanmax(np.abs(expected.astype(np.float64) - found)))
    return f"output {name!r} differs by {worst:.3g}, more than {tolerance:.3g}"


def same_shape(left: Sequence[int | None] | None, right: Sequence[int | None] | None) -> bool:
    """Whether two shapes are known and surely equal: at most the batch varies."""
    if left is None or right is None or len(left) != len(right):
        return False
    unknown = [axis for axis, (a, b) in enumerate(zip(left, right, strict=True)) if a is None or b is None]
    fixed = all(a == b for a, b in zip(left, right, strict=True) if a is not None and b is not None)
    return fixed and unknown in ([], [0])
