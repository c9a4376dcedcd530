"""An fp32 model made ready: checked, its shapes settled, rewritten to run faster and to quantize better."""

from quantize.preparation.preparing import Prepared, prepare
from quantize.preparation.reading import fix_shapes, read_model

__all__ = ["Prepared", "fix_shapes", "prepare", "read_model"]
