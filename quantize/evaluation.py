"""Run a model over samples with the runtime that will serve it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AgentError
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import TensorSpec
from quantize.data import Inputs, batches
from quantize.errors import InvalidModelError

CLEAN_DB = 200.0
"""The signal-to-noise ratio of outputs that do not differ."""


@contextmanager
def loaded(model: bytes) -> Iterator[Model]:
    """The model in the agent's runtime, from memory. Raises InvalidModelError when it does not load or run."""
    with tempfile.TemporaryDirectory(prefix="edge-quantize-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model)
        try:
            yield Model.load(path)
        except AgentError as error:
            raise InvalidModelError(f"the agent's runtime cannot run the model: {error}") from None


def run_all(model: Model, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The outputs for all samples, each `[n, ...]`. Raises InvalidModelError when an output has no batch axis."""
    parts = [model.run(batch) for batch in batches(inputs, model.inputs)]
    count = len(next(iter(inputs.values())))
    outputs: dict[str, NDArray[Any]] = {}
    for spec in model.outputs:
        pieces = [part[spec.name] for part in parts]
        if not all(piece.ndim for piece in pieces) or sum(map(len, pieces)) != count:
            raise InvalidModelError(f"output {spec.name!r} does not have one entry per sample on axis 0")
        outputs[spec.name] = np.concatenate(pieces)
    return outputs


def scores_output(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """The output that holds one score per class: the first of shape `[n, classes]` and a float type.

    Raises InvalidModelError when there is none.
    """
    for spec in outputs:
        if len(spec.shape) == 2 and spec.shape[1] >= 2 and spec.datatype.startswith("FP"):
            return spec
    raise InvalidModelError("no output is a float tensor [n, classes]: the model is not a classifier")


def signal_to_noise_db(clean: Mapping[str, NDArray[Any]], noisy: Mapping[str, NDArray[Any]]) -> float:
    """The power of the clean float outputs over that of the difference, in dB."""
    signal = noise = 0.0
    for name, array in clean.items():
        if array.dtype.kind == "f":
            reference = array.astype(np.float64)
            signal += float(np.square(reference).sum())
            noise += float(np.square(reference - noisy[name].astype(np.float64)).sum())
    if noise <= 0 or signal <= 0:
        return CLEAN_DB if noise <= 0 else -CLEAN_DB
    return min(CLEAN_DB, 10.0 * float(np.log10(signal / noise)))
