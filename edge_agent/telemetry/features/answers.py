"""How unusual an answer is: the one number of a sample's answer that a bundle's score reference is about.

| task | the score of a sample |
|---|---|
| classification | the highest of its class scores |
| anomaly | the single number it is answered with, else the mean squared error of its reconstruction |
| regression | the value it is answered with |

What has no such number (several values, text) has no score: None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.telemetry.features.extractors import Values, flat_samples

Tensors = Mapping[str, NDArray[Any]]


def answer_scores(task: str, inputs: Tensors, outputs: Tensors) -> Values | None:
    """The score of every sample: float64 `[n]`, or None where answers of this kind have none."""
    if task == "classification":
        return _highest(outputs)
    single = next((a for a in outputs.values() if a.ndim and a.size == len(a) and a.dtype.kind == "f"), None)
    if single is not None:
        return single.reshape(len(single)).astype(np.float64)
    return _reconstruction_errors(inputs, outputs) if task == "anomaly" else None


def _highest(outputs: Tensors) -> Values | None:
    for array in outputs.values():
        if array.ndim == 2 and array.shape[1] >= 2 and array.dtype.kind == "f":
            highest: Values = array.max(axis=1).astype(np.float64)
            return highest
    return None


def _reconstruction_errors(inputs: Tensors, outputs: Tensors) -> Values | None:
    for output in outputs.values():
        for source in inputs.values():
            if output.shape == source.shape and output.ndim >= 2 and output.dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    error = flat_samples(output).astype(np.float64) - flat_samples(source)
                    errors: Values = np.einsum("ij,ij->i", error, error) / max(error.shape[1], 1)
                return errors
    return None
