"""Run a model on samples so that chosen tensors in its middle come out, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_agent.runtime.session import ORT_FAILURES, one_line
from edge_agent.runtime.tensors import ORT_TYPES
from fleet_protocol.manifest import TensorSpec
from quantize.data import MAX_BATCH_SAMPLES, Inputs, batches
from quantize.errors import InvalidModelError

MAX_BATCH_BYTES = 64_000_000
"""All tensors of one batch together; a single sample may need more."""


class Activations:
    """A model with the tensors `names` as further outputs (none named: every node's output).

    `tensors` are those of type float32, in the order in which they are made. `optimised` False runs every node as it
    stands, which a model with QuantizeLinear nodes needs so that none of its tensors is fused away. Raises
    InvalidModelError.
    """

    def __init__(self, *, model: bytes, names: Collection[str] | None = None, optimised: bool = True) -> None:
        import onnxruntime as ort

        parsed = onnx.load_from_string(model)
        have = {output.name for output in parsed.graph.output}
        for node in parsed.graph.node:
            for name in node.output:
                if name and name not in have and (names is None or name in names):
                    have.add(name)
                    parsed.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimised else levels.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(
                parsed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except ORT_FAILURES as error:
            raise InvalidModelError(f"ONNX Runtime cannot run the model to calibrate it: {one_line(error)}") from None
        self.inputs = tuple(_spec(entry) for entry in self._session.get_inputs())
        floats = {output.name for output in self._session.get_outputs() if output.type == "tensor(float)"}
        made = (name for node in parsed.graph.node for name in node.output)
        self.tensors = tuple(name for name in made if name in floats and (names is None or name in names))

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The tensors by name for one batch. Raises InvalidModelError when ONNX Runtime fails."""
        try:
            return dict(zip(self.tensors, self._session.run(list(self.tensors), batch), strict=True))
        except ORT_FAILURES as error:
            raise InvalidModelError(f"the model fails on the calibration samples: {one_line(error)}") from None

    def batches(self, inputs: Inputs) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """The samples in batches, each with its number of samples, and no larger than MAX_BATCH_BYTES allows.

        Raises InvalidDataError for samples that do not fit the model, InvalidModelError for a fixed batch above 1.
        """
        count = len(next(iter(inputs.values())))
        first = next(batches({name: array[:1] for name, array in inputs.items()}, self.inputs))
        sample_bytes = sum(array.nbytes for array in self(first).values())
        fixed = any(spec.shape[0] == 1 for spec in self.inputs)
        size = 1 if fixed else int(np.clip(MAX_BATCH_BYTES // max(1, sample_bytes), 1, MAX_BATCH_SAMPLES))
        for start in range(0, count, size):
            part = {name: array[start : start + size] for name, array in inputs.items()}
            yield min(size, count - start), next(batches(part, self.inputs))


def _spec(entry: Any) -> TensorSpec:
    shape = [size if isinstance(size, int) else -1 for size in entry.shape]
    return TensorSpec(name=entry.name, datatype=ORT_TYPES[entry.type], shape=shape)
