"""Q3: how much of fp32's quality the chosen variant keeps on the final samples.

Candidates are searched and ranked on other samples, but a variant that misses the allowed drop on the final ones does
not ship: a bundle is judged there before it is written. So this says that the promise holds in the agent's runtime, and
is a little kinder than a set that nothing at all was decided by.
Both files answer the same samples in the agent's runtime. For accuracy and auc it is the variant's over fp32's, for mse
fp32's over the variant's. What the truth is stands in each row: for the vision models of MLPerf Tiny it is what fp32
itself is sure of, so theirs is agreement with fp32 and not accuracy on a test set.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.quantization.measured import CHOSEN, GIVEN, Measured, all_measured, conditions, rounded
from benchmarks.result import Result

ID = "Q3"
TITLE = "quality of the chosen variant / of fp32 on the final samples, the worst model"
TARGET = 0.995


def run() -> Result:
    """Quantize, choose, ask both."""
    return judge(all_measured())


def judge(found: Mapping[str, Measured]) -> Result:
    """The worst model counts."""
    worst = min(found, key=lambda name: found[name].keeps[CHOSEN])
    ratio = rounded(found[worst].keeps[CHOSEN])
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f">= {TARGET}",
        holds=ratio >= TARGET,
        figures={
            "worst": worst,
            "models": {
                name: {
                    "keeps": round(one.keeps[CHOSEN], 5),
                    "metric": one.metric,
                    "fp32": round(one.quality[GIVEN], 5),
                    "variant": round(one.quality[CHOSEN], 5),
                    "chosen": one.variant,
                    "samples": dict(one.sizes),
                    "truth": one.truth,
                    "bundle": one.origin,
                }
                for name, one in found.items()
            },
            **conditions(),
        },
    )
