"""Every error quantization raises. The second level says who must act; both are final: trying again changes nothing."""

from __future__ import annotations


class QuantizeError(Exception):
    """The root of every error this package raises on purpose."""

    retryable = False


class UserError(QuantizeError):
    """Whoever gave the model, the data or the options must act."""


class InvalidOptionError(UserError):
    """An option is malformed, out of range, or names a file that is not there or must not be overwritten."""


class InvalidDataError(UserError):
    """The calibration or labelled data does not fit the model."""


class InvalidModelError(UserError):
    """The file is not an fp32 ONNX model that can be quantized, measured and shipped."""


class QuantizationFailedError(QuantizeError):
    """ONNX Runtime's quantizer gave up on a valid model."""
