"""Q1: how much faster than the fp32 file as given is the variant that a device chooses of our bundle.

For each of MLPerf Tiny's four models and each of the zoo's: fp32 as given and the chosen variant's file in turns, one
sample a run, one thread, medians (benchmarks/quantization/timing.py). Where the device chose the file as given the
ratio is 1: nothing is measured against itself. benchmarks/quantization/cases.py says what data the bundles were made
with.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.quantization.measured import (
    CHOSEN,
    GIVEN,
    Measured,
    all_measured,
    conditions,
    geometric_mean,
    rounded,
    row,
)
from benchmarks.result import Result

ID = "Q1"
TITLE = "p50 of fp32 as given / of the variant the device chose, geometric mean over all models"
TARGET = 1.35
WORST = 1.0


def run() -> Result:
    """Quantize, choose, time."""
    return judge(all_measured())


def judge(found: Mapping[str, Measured]) -> Result:
    """The mean must reach TARGET and no model may be slower than as given."""
    ratios = {name: one.p50_us[GIVEN] / one.p50_us[CHOSEN] for name, one in found.items()}
    ratio, worst = rounded(geometric_mean(ratios.values())), min(ratios, key=lambda name: ratios[name])
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f">= {TARGET}, no model below {WORST}",
        holds=ratio >= TARGET and rounded(ratios[worst]) >= WORST,
        figures={
            "worst": {worst: rounded(ratios[worst])},
            "models": {name: row(one, ratio=ratios[name]) for name, one in found.items()},
            **conditions(),
        },
    )
