"""Weights and arithmetic in float16; inputs and outputs stay float32, so that nobody who calls the model notices."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def build_float16(prepared: bytes, *, excluded_nodes: Collection[str]) -> bytes:
    """The model in float16, nodes named in `excluded_nodes` in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load_from_string(prepared), keep_io_types=True, node_block_list=sorted(excluded_nodes)
    )
    return bytes(model.SerializeToString(deterministic=True))
