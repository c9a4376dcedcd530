"""A trained PyTorch module as a clean ONNX file. Only this module and the `train.py` of a model need torch."""

from __future__ import annotations

import io
from collections.abc import Sequence

import onnx
import torch
from torch import nn

from models.traces import OPSET, without_traces


def export_onnx(
    module: nn.Module, example: Sequence[torch.Tensor], *, inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """The bytes of the ONNX file, with a variable batch on axis 0 of every input and output.

    `example` is one input of each name. The same weights give the same bytes.
    """
    buffer = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        tuple(example),
        buffer,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        opset_version=OPSET,
        dynamo=False,
    )
    return without_traces(onnx.load_from_string(buffer.getvalue()))
