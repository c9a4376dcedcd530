"""Golden vectors: a few inputs and what each variant answered, so that a device can tell that it answers alike.

The file is an npz of plain arrays: `input:<name>` `[k, ...]` as the model takes it, and
`output:<variant>:<name>` `[k, ...]` as floats. The same arrays give the same bytes.

The samples are spread over what the model tells apart: one of each class in turn where the truth is known, else over
the range of its answers' scores. They are few, and fewer where they are large.

The tolerance of a variant is measured: the model is run again in the ways another device may run it (without
graph optimisation, with the optimisations of other levels, with the u8u8 kernels), and the greatest difference
is doubled and rounded up to a multiple of the floor of its kind. The floors are for probabilities; of other answers
they are a share of their range (`tolerance_scale`).
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
from quantize.references import evenly_spread

GOLDEN_SAMPLES = 8
MAX_GOLDEN_SAMPLES = 16
MAX_GOLDEN_BYTES = 2 * 1024**2
INT8_TOLERANCE_FLOOR = 0.02
FP32_TOLERANCE_FLOOR = 0.001
_SAFETY = 2.0
_ROUNDING = 1e-6

Outputs = Mapping[str, NDArray[Any]]


def golden_limit(sample_bytes: int, specs: Sequence[TensorSpec]) -> int:
    """How many samples may be golden, each of `sample_bytes` with its answers: 1 to MAX_GOLDEN_SAMPLES.

    They are one batch, because a device runs them at once: a single sample when the model's batch is fixed at 1.
    """
    if any(spec.shape and spec.shape[0] == 1 for spec in specs):
        return 1
    return max(1, min(MAX_GOLDEN_SAMPLES, MAX_GOLDEN_BYTES // max(sample_bytes, 1)))


def places_over_classes(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The places of samples of every class in turn, by their `labels` `[n]`: GOLDEN_SAMPLES, or one of each class where
    there are more, but at most `limit`. Classes that do not fit are left out evenly.
    """
    classes = np.unique(labels)
    classes = classes[evenly_spread(len(classes), limit)]
    of_class = [np.flatnonzero(labels == number) for number in classes]
    in_turn = [places[turn] for turn in range(GOLDEN_SAMPLES) for places in of_class if turn < len(places)]
    return np.sort(np.array(in_turn[: min(limit, max(GOLDEN_SAMPLES, len(classes)))], dtype=np.int64))


def places_over_scores(scores: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """The places of at most GOLDEN_SAMPLES and `limit` samples from the least to the greatest of `scores` `[n]`, evenly
    by rank; the middle one when one is asked for.
    """
    order = np.argsort(scores, kind="stable").astype(np.int64)
    count = min(limit, GOLDEN_SAMPLES)
    return order[[len(order) // 2]] if count == 1 else order[evenly_spread(len(order), count)]


def golden_inputs(inputs: Inputs, specs: Sequence[TensorSpec], places: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The samples at `places` of `inputs` `[n, ...]` as the model's types: one batch."""
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


def tolerance_scale(task: str, outputs: Outputs) -> float:
    """What a tolerance's floor is a share of: 1 for a classifier's probabilities, else the range of the golden answers.

    `outputs` are those of `golden_outputs`. Of several outputs the widest counts, because one tolerance is for all.
    """
    floats = [array.astype(np.float64) for array in outputs.values() if array.dtype.kind == "f" and array.size]
    if not floats:
        return 1.0
    if task == "classification" and all(array.min() >= -_ROUNDING and array.max() <= 1 + _ROUNDING for array in floats):
        return 1.0
    ranges = [float(np.ptp(array)) or float(np.abs(array).max()) for array in floats]
    return max(ranges) or 1.0


def measure_tolerance(model: bytes, inputs: Inputs, *, floor: float) -> float:
    """The largest absolute difference from the golden outputs that a right device may show, at least `floor`."""
    golden = golden_outputs(model, inputs)
    if not all(np.isfinite(array).all() for array in golden.values()):
        raise InvalidModelError("the model answers its golden inputs with NaN or infinity: choose other samples")
    worst = 0.0
    others = _other_ways(model, inputs, list(golden))
    if not others:
        raise InvalidModelError("the model loads in one way of ONNX Runtime only: no tolerance can be measured")
    for other in others:
        for name, array in golden.items():
            difference = np.abs(np.asarray(other[name], dtype=np.float64) - array)
            worst = float(difference.max(initial=worst))
    if not math.isfinite(worst):
        raise InvalidModelError("the model's golden answers are not finite at every optimisation level: ship another")
    steps = max(1, math.ceil(_SAFETY * worst / floor - 1e-9))
    return float(f"{steps * floor:.9g}")


def _other_ways(model: bytes, inputs: Inputs, names: list[str]) -> list[dict[str, NDArray[Any]]]:
    """The answers in those other ways in which the model loads: not every quantized graph does with u8u8 kernels."""
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
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001, S112 - ONNX Runtime's own; a way in which it loads nothing is no device's way
            continue
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
