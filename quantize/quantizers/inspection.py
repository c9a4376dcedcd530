"""What a quantized file becomes when the agent loads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edge_agent.errors import ModelLoadError
from edge_agent.runtime import cpu
from edge_agent.runtime.session import open_session
from edge_agent.runtime.session_settings import Int8Kernels, SessionSettings
from quantize.errors import InvalidModelError

_QUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear")
_DEQUANTIZE = ("DequantizeLinear",)


def leftover_nodes(model: bytes) -> tuple[int, int]:
    """How many nodes quantize and how many dequantize after ONNX Runtime has optimised the model as the agent lets it.

    The one at a float input and the one before a float output are rightly there; more of them mean layers whose
    operators ONNX Runtime could not fuse. Raises InvalidModelError when the model does not load.
    """
    kernels = Int8Kernels.U8U8 if cpu.int8_saturates() else Int8Kernels.NATIVE
    with tempfile.TemporaryDirectory(prefix="edge-quantize-") as folder:
        source, optimised = Path(folder, "model.onnx"), Path(folder, "optimised.onnx")
        source.write_bytes(model)
        try:
            open_session(source, settings=SessionSettings(int8_kernels=kernels), save_graph=optimised)
        except ModelLoadError as error:
            raise InvalidModelError(f"the agent's runtime cannot load the model: {error}") from None
        operators = [node.op_type for node in onnx.load(optimised).graph.node]
    return sum(map(operators.count, _QUANTIZE)), sum(map(operators.count, _DEQUANTIZE))
