"""Q2: how much faster is the chosen variant than what `onnxruntime.quantization.quantize_static` makes by default.

The same models, data and timing as Q1. Stock quantization looks at no accuracy: what it keeps on the final part stands
in each row. A model that it cannot quantize is no part of the mean and is named. Beside it, not judged, stands the same
after `quant_pre_process`, which ONNX Runtime's documentation advises.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.quantization.measured import (
    CHOSEN,
    STOCK,
    STOCK_PREPROCESSED,
    Measured,
    all_measured,
    conditions,
    geometric_mean,
    rounded,
    row,
)
from benchmarks.result import Result

ID = "Q2"
TITLE = "p50 of stock quantize_static with its defaults / of the variant the device chose, geometric mean"
TARGET = 1.5


def run() -> Result:
    """Quantize both ways, choose, time."""
    return judge(all_measured())


def judge(found: Mapping[str, Measured]) -> Result:
    """The mean over the models that stock quantization could do."""
    ratios = ratios_to(STOCK, found)
    preprocessed = ratios_to(STOCK_PREPROCESSED, found)
    ratio = rounded(geometric_mean(ratios.values())) if ratios else 0.0
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f">= {TARGET}",
        holds=ratio >= TARGET,
        figures={
            "models": {name: row(found[name], ratio=one) for name, one in ratios.items()},
            "preprocessed_ratio": rounded(geometric_mean(preprocessed.values())) if preprocessed else None,
            "preprocessed_ratios": {name: rounded(one) for name, one in preprocessed.items()},
            "failed": {name: dict(one.stock_errors) for name, one in found.items() if one.stock_errors},
            **conditions(),
        },
    )


def ratios_to(which: str, found: Mapping[str, Measured]) -> dict[str, float]:
    """The p50 of a way of stock quantization over the chosen variant's, by model."""
    return {name: one.p50_us[which] / one.p50_us[CHOSEN] for name, one in found.items() if which in one.p50_us}
