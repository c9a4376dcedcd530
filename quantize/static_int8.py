"""An fp32 ONNX file to a static int8 one in QDQ form that answers rightly on every CPU.

The choice is unsigned 8-bit activations, signed **7-bit** weights (`reduce_range`), one scale per output
channel. The common form, 8-bit weights, is wrong in silence on x86 with AVX2 or AVX-512 and no VNNI: the
instruction there (VPMADDUBSW) adds two u8*s8 products in 16 bits, and 2 * 255 * 127 does not fit; the sum
saturates and the answer is another. With weights within +-64 the sum is at most 2 * 255 * 64 = 32,640, which
fits 32,767. So one file holds everywhere, at the price of one bit of weight, which a scale per channel mostly
returns. The load-time switch `session.x64quantprecision`, which the agent sets too, would keep that bit, but then the
answer depends on who loads the file.

Softmax stays in fp32: 256 levels are too few for the scores whose distribution is watched for drift.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fleet_protocol.manifest import TensorSpec
from quantize.data import Inputs, batches
from quantize.errors import InvalidModelError, QuantizationFailedError

QUANTIZATION = "static QDQ, u8 activations, s8 weights of 7 bits per channel"
MIN_OPSET = 13
MAX_CALIBRATION_SAMPLES = 2_000

_OPERATORS = [
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
]  # fmt: skip


def opset_of(model: bytes, source: str) -> int:
    """The opset of a checked ONNX model. Raises InvalidModelError, which names `source`."""
    try:
        parsed = onnx.load_from_string(model)
        onnx.checker.check_model(parsed)
    except Exception as error:  # noqa: BLE001 - onnx and protobuf raise many kinds for a file that is no model
        raise InvalidModelError(f"{source} is not an ONNX model: {_first_line(error)}") from None
    opset = max((entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise InvalidModelError(f"{source} has opset {opset}: export it with {MIN_OPSET} or later")
    return int(opset)


def quantize_static_int8(model: bytes, calibration: Inputs, specs: Sequence[TensorSpec]) -> bytes:
    """The int8 model, its ranges the least and the greatest value that the calibration samples reach.

    `calibration` holds arrays `[n, ...]` by input name; the first MAX_CALIBRATION_SAMPLES are used. The same
    model, data and ONNX Runtime give the same bytes. Raises QuantizationFailedError.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    bounded = {name: array[:MAX_CALIBRATION_SAMPLES] for name, array in calibration.items()}
    with tempfile.TemporaryDirectory(prefix="edge-quantize-") as folder, _quiet():
        source, prepared, result = (Path(folder, name) for name in ("fp32.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(model)
        try:
            # symbolic shapes only help transformers and need sympy; ONNX's own inference types the rest
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                result,
                _Reader(bounded, specs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        except Exception as error:
            raise QuantizationFailedError(
                f"ONNX Runtime cannot quantize this model: {_first_line(error)}; ship it as fp32"
            ) from error
        quantized = onnx.load(result)
    return bytes(quantized.SerializeToString(deterministic=True))


class _Reader:
    """The calibration samples as ONNX Runtime's quantizer asks for them."""

    def __init__(self, inputs: Inputs, specs: Sequence[TensorSpec]) -> None:
        self._batches: Iterator[dict[str, NDArray[Any]]] = batches(inputs, specs)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """The next batch, or None after the last."""
        return next(self._batches, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, NDArray[np.generic]]:
        return next(self._batches)


@contextmanager
def _quiet() -> Iterator[None]:
    # the quantizer logs advice to the root logger that is already followed here
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
