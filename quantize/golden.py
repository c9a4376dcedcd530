"""Golden vectors: a few inputs and what each variant answered, so that a device can tell that it answers alike.

The file is an npz of plain arrays: `input:<name>` `[k, ...]` as the model takes it, and
`output:<variant>:<name>` `[k, ...]` as floats. The same arrays give the same bytes.

The tolerance of a variant is measured: the model is run again in the ways another device may run it (without
graph optimisation, with the optimisations of other levels, with the u8u8 kernels), and the greatest difference
is doubled and rounded up to a multiple of the floor of its kind.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.manifest import TensorSpec
from quantize.data import Inputs, batches
from quantize.errors import InvalidModelError
from quantize.evaluation import loaded, run_all

GOLDEN_SAMPLES = 8
INT8_TOLERANCE_FLOOR = 0.02
FP32_TOLERANCE_FLOOR = 0.001
_SAFETY = 2.0

Outputs = Mapping[str, NDArray[Any]]


def golden_inputs(inputs: Inputs, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """At most GOLDEN_SAMPLES samples as the model's types, spread evenly over `inputs` `[n, ...]`.

    They are one batch, because a device runs them at once: a single sample when the model's batch is fixed at 1.
    """
    places = np.unique(np.linspace(0, _count(inputs) - 1, GOLDEN_SAMPLES).astype(np.int64))
    return next(batches({name: array[places] for name, array in inputs.items()}, specs))


def golden_outputs(model: bytes, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """What the agent's runtime answers, as floats `[k, ...]` by output name. Raises InvalidModelError."""
    with loaded(model) as runnable:
        return {name: _as_floats(name, array) for name, array in run_all(runnable, inputs).items()}


def golden_file(inputs: Inputs, outputs: Mapping[str, Outputs]) -> bytes:
    """The npz of the golden `inputs` and of each variant's `outputs` for them."""
    arrays = {f"input:{name}": array for name, array in inputs.items()}
    for variant, named in outputs.items():
        arrays |= {f"output:{variant}:{name}": array for name, array in named.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def measure_tolerance(model: bytes, inputs: Inputs, *, floor: float) -> float:
    """The largest absolute difference from the golden outputs that a right device may show, at least `floor`."""
    golden = golden_outputs(model, inputs)
    if not all(np.isfinite(array).all() for array in golden.values()):
        raise InvalidModelError("the model answers its golden inputs with NaN or infinity: choose other samples")
    worst = 0.0
    for other in _other_ways(model, inputs, list(golden)):
        for name, array in golden.items():
            difference = np.abs(np.asarray(other[name], dtype=np.float64) - array)
            worst = float(difference.max(initial=worst))
    if not math.isfinite(worst):
        raise InvalidModelError("the model's golden answers are not finite at every optimisation level: ship another")
    steps = max(1, math.ceil(_SAFETY * worst / floor - 1e-9))
    return round(steps * floor, 9)


def _other_ways(model: bytes, inputs: Inputs, names: list[str]) -> list[dict[str, NDArray[Any]]]:
    import onnxruntime as ort

    level = ort.GraphOptimizationLevel
    answers = []
    for optimisation, u8u8 in (
        (level.ORT_DISABLE_ALL, "0"),
        (level.ORT_ENABLE_BASIC, "0"),
        (level.ORT_ENABLE_ALL, "1"),
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = optimisation
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", u8u8)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        rows = [session.run(names, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(_count(inputs))]
        answers.append({name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)})
    return answers


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _as_floats(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        return array
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    raise InvalidModelError(f"output {name!r} is {array.dtype}: golden vectors compare numbers")
