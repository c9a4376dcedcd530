"""Measure a variant with the runtime that will serve it: its metric on labelled samples, its latency, its size."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AgentError
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import TensorSpec
from quantize.data import Inputs, Samples, batches
from quantize.errors import InvalidModelError
from quantize.metrics import Metric

LATENCY_RUNS = 300
WARM_UP_RUNS = 30


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A variant's metrics by name over `samples` labelled samples, and its latency for one sample, here and now."""

    metrics: dict[str, float]
    samples: int
    p50_us: float
    p90_us: float
    size_bytes: int


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


def measure(model: bytes, samples: Samples, metric: Metric) -> Measurement:
    """Run `model` over `samples` and measure it. Raises InvalidDataError or InvalidModelError when they do not fit."""
    with loaded(model) as runnable:
        value = metric(run_all(runnable, samples.inputs), samples)
        latencies_us = _latencies_us(runnable, samples)
    p50_us, p90_us = np.percentile(latencies_us, [50, 90])
    return Measurement(
        metrics={metric.name: value},
        samples=len(samples),
        p50_us=float(p50_us),
        p90_us=float(p90_us),
        size_bytes=len(model),
    )


def _latencies_us(model: Model, samples: Samples) -> list[float]:
    one = next(batches(samples.take(np.zeros(1, dtype=np.int64)).inputs, model.inputs))
    for _ in range(WARM_UP_RUNS):
        model.run(one)
    latencies = []
    for _ in range(LATENCY_RUNS):
        start = time.perf_counter_ns()
        model.run(one)
        latencies.append((time.perf_counter_ns() - start) / 1000)
    return latencies
