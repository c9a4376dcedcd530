"""From a prepared model and a scheme to a file: ONNX Runtime's quantizers, with ranges and corrections of our own."""

from quantize.quantizers.building import build
from quantize.quantizers.candidates import candidate_schemes
from quantize.quantizers.inspection import leftover_nodes
from quantize.quantizers.static import STATIC_OPERATORS

__all__ = ["STATIC_OPERATORS", "build", "candidate_schemes", "leftover_nodes"]
