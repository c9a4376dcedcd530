"""Changes to a float model after which it quantizes better; all but bias correction compute the same as before."""

from quantize.corrections.bias import bias_corrected
from quantize.corrections.equalisation import cross_layer_equalised, pairs
from quantize.corrections.smoothing import can_be_smoothed, smoothed

__all__ = ["bias_corrected", "can_be_smoothed", "cross_layer_equalised", "pairs", "smoothed"]
