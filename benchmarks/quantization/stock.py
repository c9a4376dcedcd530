"""What ONNX Runtime's own static quantization makes of a model with all its defaults: the peer of Q2."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quantization.parts import Case


def quantized_by_defaults(case: Case, folder: Path, *, preprocessed: bool) -> Path:
    """`quantize_static(fp32, out, calibration data)`; a file in `folder`, which must be there.

    `preprocessed` runs `quant_pre_process` first, with its defaults, which ONNX Runtime's documentation advises.
    """
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared, out = folder / "given.onnx", folder / "prepared.onnx", folder / "int8.onnx"
    given.write_bytes(case.fp32)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if preprocessed:
                quant_pre_process(str(given), str(prepared))
            quantize_static(str(prepared if preprocessed else given), str(out), _Reader(case))
    finally:
        logging.getLogger().setLevel(level)
    return out


class _Reader:
    """The calibration samples, one at a time, as the quantizer asks for them."""

    def __init__(self, case: Case) -> None:
        self._rows = _rows(case)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next sample, None after the last."""
        return next(self._rows, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, NDArray[Any]]:
        return next(self._rows)


def _rows(case: Case) -> Iterator[dict[str, NDArray[Any]]]:
    for place in range(len(case.calibration)):
        sample = case.calibration.take(np.array([place], dtype=np.int64))
        yield dict(sample.inputs)
