"""Train an ONNX network further, in PyTorch: run by U6 in an environment of its own, which has torch and onnx alone.

    python train_on.py MODEL.onnx SAMPLES.npz OUT.onnx last-layer|all-layers|other-seed EPOCHS SEED

A network that is one chain of Conv, Relu, MaxPool, GlobalAveragePool, Flatten, Gemm, Div or Mul by a constant and a
Softmax at its end (without one it is an autoencoder) is read as the function that it is; its weights are the
parameters. "last-layer" trains the last Gemm and leaves every other weight as it is, "all-layers" trains all of them
from where they are, "other-seed" draws them anew first. The answer is the same graph with the new weights, so what
differs between the files is what was learned.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

_BATCH = 64
_RATES = {"last-layer": 3e-4, "all-layers": 3e-4, "other-seed": 2e-3}
"""At 1e-3 the loss of a network that was trained to its end rises again: that is noise, and no fine-tuning."""
_SMOOTHING = 0.05


def main() -> None:
    """Read, train, write; print the loss on the training samples before and after."""
    source, samples, out, how, epochs, seed = sys.argv[1:]
    torch.manual_seed(int(seed))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = onnx.load(source)
    with np.load(samples) as archive:
        inputs = torch.from_numpy(archive["inputs"])
        truth = torch.from_numpy(archive["labels"].astype(np.int64)) if "labels" in archive else inputs
    weights = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    trained = [name for node in (layers[-1:] if how == "last-layer" else layers) for name in node.input[1:]]
    for name in trained:
        if how == "other-seed":
            _draw(weights[name])
        weights[name].requires_grad_(True)
    before = _loss_on(model.graph, weights, inputs, truth)
    _fit(model.graph, weights, trained, inputs, truth, epochs=int(epochs), rate=_RATES[how], seed=int(seed))
    print(f"{before:.4f} {_loss_on(model.graph, weights, inputs, truth):.4f}")
    for one in model.graph.initializer:
        if one.name in trained:
            one.CopyFrom(numpy_helper.from_array(weights[one.name].detach().numpy(), one.name))
    Path(out).write_bytes(model.SerializeToString())


def _fit(
    graph: onnx.GraphProto,
    weights: dict[str, torch.Tensor],
    trained: list[str],
    inputs: torch.Tensor,
    truth: torch.Tensor,
    *,
    epochs: int,
    rate: float,
    seed: int,
) -> None:
    optimizer = torch.optim.AdamW([weights[name] for name in trained], lr=rate, weight_decay=1e-4)
    shuffle = np.random.default_rng(seed)
    for _ in range(epochs):
        order = shuffle.permutation(len(truth))
        for start in range(0, len(order), _BATCH):
            chosen = torch.from_numpy(order[start : start + _BATCH])
            optimizer.zero_grad()
            _loss(_answers(graph, weights, inputs[chosen]), truth[chosen]).backward()
            optimizer.step()


def _loss(answers: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    if truth.dim() > 1:
        return functional.mse_loss(answers, truth)
    return functional.cross_entropy(answers, truth, label_smoothing=_SMOOTHING)


def _draw(weight: torch.Tensor) -> None:
    if weight.dim() > 1:
        torch.nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    else:
        weight.zero_()


def _loss_on(
    graph: onnx.GraphProto, weights: dict[str, torch.Tensor], inputs: torch.Tensor, truth: torch.Tensor
) -> float:
    with torch.no_grad():
        return float(_loss(_answers(graph, weights, inputs), truth))


def _answers(graph: onnx.GraphProto, weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """What goes into the last Softmax, or out of a network without one."""
    values = {**weights, graph.input[0].name: inputs}
    for node in graph.node:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Softmax":
            return values[node.input[0]]
        taken = [values[name] for name in node.input if name in values]
        values[node.output[0]] = _applied(node.op_type, taken, attributes)
    return values[graph.output[0].name]


def _applied(operator: str, taken: list[torch.Tensor], attributes: dict[str, object]) -> torch.Tensor:
    match operator:
        case "Constant":
            value = attributes["value"]
            assert isinstance(value, onnx.TensorProto)
            return torch.from_numpy(numpy_helper.to_array(value).copy())
        case "Conv":
            pads = attributes.get("pads", [0, 0, 0, 0])
            x = functional.pad(taken[0], (pads[1], pads[3], pads[0], pads[2]))  # type: ignore[index]
            return functional.conv2d(
                x, taken[1], taken[2] if len(taken) > 2 else None,
                stride=tuple(attributes.get("strides", (1, 1))), groups=int(attributes.get("group", 1)),  # type: ignore
            )  # fmt: skip
        case "Gemm":
            return functional.linear(taken[0], taken[1] if attributes.get("transB") else taken[1].T, taken[2])
        case "MaxPool":
            return functional.max_pool2d(taken[0], tuple(attributes["kernel_shape"]))  # type: ignore[arg-type]
        case "GlobalAveragePool":
            return taken[0].mean(dim=(2, 3), keepdim=True)
        case "Flatten":
            return taken[0].flatten(1)
        case "Relu":
            return torch.relu(taken[0])
        case "Div":
            return taken[0] / taken[1]
        case "Mul":
            return taken[0] * taken[1]
    raise SystemExit(f"this network has a {operator}, which is not trained here")


if __name__ == "__main__":
    main()
