"""Bias correction: the mean error that rounded weights give a layer's output is taken out of its bias.

An error in a weight shifts the layer's output by that error times the mean of its input, in every sample alike: a bias.
It is measured on samples, as the mean over them and over all positions of (quantized - float) for each channel, and
subtracted from the float bias before the model is quantized again.

Source: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2: `E[y] = E[y~] - E[e x]`, the expectation taken from samples as in appendix D.

Invariant: a layer is corrected for its own error alone. Both its quantized and its float weights are given the
activations of the quantized model, in one run, by a twin of each layer. Measuring against the float model's
activations instead would count the error of an early layer again in every layer after it: on networks of ten layers
that made answers many times worse, and correcting one layer after the other, which avoids it, needs as many runs as
there are layers and came no closer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from quantize.calibration import Activations, chosen_samples
from quantize.data import Inputs
from quantize.preparation.graph import Graph, attributes

MAX_SAMPLES = 256
"""Samples of one correction: the mean of a channel needs few."""
_CORRECTED = ("Conv", "Gemm")
_SEED = 7


def bias_corrected(
    model: bytes, quantize: Callable[[bytes], bytes], inputs: Inputs, *, excluded_nodes: Collection[str]
) -> bytes:
    """The float model with the biases that make its quantized layers right on average.

    `quantize` makes the QDQ form of it, whose Conv and Gemm nodes keep their names; those in `excluded_nodes` stay as
    they are. At most MAX_SAMPLES of `inputs` (`[n, ...]` by name) are run. Raises InvalidModelError and
    InvalidDataError when the model does not run on them.
    """
    graph = Graph(onnx.load_from_string(model))
    layers = {
        node.name: node
        for node in graph.by_operator(*_CORRECTED)
        if node.name not in excluded_nodes and _has_constants(graph, node)
    }
    if not layers:
        return model
    twinned, outputs = _with_twins(onnx.load_from_string(quantize(model)), graph, layers)
    errors = _mean_errors(twinned, outputs, layers, chosen_samples(inputs, _SEED, MAX_SAMPLES))
    for name, error in errors.items():
        node = layers[name]
        shift = -error / float(attributes(node).get("beta", 1.0))
        bias = graph.float_constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        stored = graph.store(f"{name}/corrected", shift if bias is None else bias.astype(np.float64) + shift)
        del node.input[2:]
        node.input.append(stored)
    return bytes(graph.proto().SerializeToString(deterministic=True))


def _has_constants(graph: Graph, node: NodeProto) -> bool:
    if graph.float_constant(node.input[1]) is None:
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = graph.float_constant(node.input[2])
    return bias is not None and bias.ndim == 1 and float(attributes(node).get("beta", 1.0)) != 0.0


def _with_twins(
    quantized: onnx.ModelProto, graph: Graph, layers: dict[str, NodeProto]
) -> tuple[bytes, dict[str, tuple[str, str]]]:
    """The quantized model with a float twin of each layer, and the output of layer and twin by the layer's name."""
    outputs: dict[str, tuple[str, str]] = {}
    for node in list(quantized.graph.node):
        given = layers.get(node.name)
        if given is None or node.op_type != given.op_type:
            continue
        twin = NodeProto()
        twin.CopyFrom(given)
        twin.name, twin.output[0], twin.input[0] = f"{given.name}/twin", f"{given.name}/twin", node.input[0]
        for place in range(1, len(given.input)):
            if given.input[place]:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(graph.constants()[given.input[place]])
                tensor.name = twin.input[place] = f"{given.name}/twin/{place}"
                quantized.graph.initializer.append(tensor)
        quantized.graph.node.append(twin)
        outputs[given.name] = (node.output[0], twin.output[0])
    return quantized.SerializeToString(), outputs


def _mean_errors(
    model: bytes, outputs: dict[str, tuple[str, str]], layers: dict[str, NodeProto], inputs: Inputs
) -> dict[str, NDArray[np.float64]]:
    """The mean of (layer - twin) over samples and positions, for each channel, by the layer's name."""
    names = {name for pair in outputs.values() for name in pair}
    activations = Activations(model=model, names=names, optimised=False)
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(outputs, 0)
    for _, batch in activations.batches(inputs):
        tensors = activations(batch)
        for name, (layer, twin) in outputs.items():
            axis = 1 if layers[name].op_type == "Conv" else -1
            rows = np.moveaxis(tensors[layer] - tensors[twin], axis, -1)
            rows = rows.reshape(-1, rows.shape[-1])
            sums[name] = sums.get(name, np.zeros(rows.shape[-1])) + rows.sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
    return {name: total / counts[name] for name, total in sums.items()}
