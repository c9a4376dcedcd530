"""How a candidate is quantized: plain values, so that a scheme can be compared, journalled and built again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct


class Form(StrEnum):
    """The kind of file.

    GIVEN is the user's fp32 file, FLOAT the same as `quantize.preparation` rewrote it; QDQ has pairs of quantize and
    dequantize nodes around float operators, which ONNX Runtime fuses; QOPERATOR has the quantized operators themselves;
    DYNAMIC finds the ranges of activations while it runs; WEIGHT_ONLY keeps activations in float (MatMulNBits).
    """

    GIVEN = "fp32"
    FLOAT = "fp32-optimised"
    FLOAT16 = "fp16"
    QDQ = "qdq"
    QOPERATOR = "qoperator"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"


class Ranges(StrEnum):
    """How the range of an activation is read off the calibration samples."""

    MINMAX = "minmax"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


class Integer(StrEnum):
    """An integer type of activations or weights. S7 is an int8 of 7 bits (`reduce_range`); NONE is float."""

    NONE = ""
    U8 = "u8"
    S8 = "s8"
    S7 = "s7"
    S4 = "s4"


class Scheme(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to quantize a prepared model.

    `operators` are those that are quantized (none named: all that the form can). `excluded` are names of layers
    (`quantize.layers`) left in float. `equalised` is cross-layer equalisation, `bias_corrected` bias correction,
    `smoothing` SmoothQuant's alpha (0 is off), `block_size` the weights that share a scale in WEIGHT_ONLY.
    `padded_channels` (FLOAT alone) and `fused_attention` (FLOAT and DYNAMIC) are rewrites of `preparation.prepare`.
    """

    form: Form
    activations: Integer = Integer.NONE
    weights: Integer = Integer.NONE
    per_channel: bool = False
    ranges: Ranges = Ranges.MINMAX
    operators: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    equalised: bool = False
    bias_corrected: bool = False
    smoothing: Annotated[float, Meta(ge=0, le=1)] = 0.0
    block_size: int = 0
    padded_channels: int = 0
    fused_attention: bool = False

    @property
    def key(self) -> str:
        """The scheme as text: equal for equal schemes."""
        return msgspec.json.encode(self).decode()

    @property
    def name(self) -> str:
        """The variant's name in a bundle, such as "int8-qdq-u8s8": what tells it from the others of one bundle."""
        if self.form in (Form.GIVEN, Form.FLOAT, Form.FLOAT16):
            return str(self.form)
        if self.form is Form.WEIGHT_ONLY:
            return f"{'int4' if self.weights is Integer.S4 else 'int8'}-weights"
        return f"int8-{self.form}-{self.activations}{self.weights}"

    @property
    def quantization(self) -> str:
        """The scheme in words, for a manifest and its readers."""
        if self.form is Form.GIVEN:
            return "none"
        if self.form is Form.FLOAT:
            extras = ["attention fused"] if self.fused_attention else []
            extras += [f"channels padded to {self.padded_channels}"] if self.padded_channels else []
            return ", ".join(["none, graph rewritten", *extras])
        if self.form is Form.FLOAT16:
            return "float16"
        words = [str(self.form), f"{self.activations or 'float'} activations", f"{self.weights} weights"]
        words.append("per channel" if self.per_channel else "per tensor")
        if self.form in (Form.QDQ, Form.QOPERATOR):
            words.append(f"{self.ranges} ranges")
        if self.block_size:
            words.append(f"blocks of {self.block_size}")
        words += [word for on, word in ((self.equalised, "equalised"), (self.bias_corrected, "bias corrected")) if on]
        if self.fused_attention:
            words.append("attention fused")
        if self.smoothing:
            words.append(f"smoothed {self.smoothing:g}")
        if self.excluded:
            words.append(f"{len(self.excluded)} layer{'s' if len(self.excluded) > 1 else ''} in float")
        return ", ".join(words)
