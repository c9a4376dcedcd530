"""ONNX files as the zoo keeps them: of one opset, without the traces of the machine that exported them."""

from __future__ import annotations

import onnx

OPSET = 18


def without_traces(model: onnx.ModelProto) -> bytes:
    """The checked model without the doc strings in which exporters name files of the machine that ran them."""
    onnx.checker.check_model(model, full_check=True)
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))
