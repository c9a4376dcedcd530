"""Judgement on the final samples, which nothing was chosen by: what a bundle promises.

A variant that drops more than allowed there does not ship, however well it did on the selection samples. Latencies are
measured once more, all variants and fp32 as given in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.data import Samples
from quantize.evaluation import run_all
from quantize.gate import is_accurate
from quantize.metrics import Metric, Outputs, predicted_classes
from quantize.paired_test import PairedTest, mcnemar
from quantize.search.workbench import Workbench
from quantize.search_report import CandidateResult, ClassDelta, ShippedVariant

FINAL_TIMING_S = 0.4
"""How long each variant is measured for the figures in the report."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A variant that ships: what the search found, its file, and what the final samples say."""

    candidate: CandidateResult
    content: bytes
    shipped: ShippedVariant


def judge_on_final(
    bench: Workbench, chosen: Sequence[CandidateResult], final: Samples, *, labels: Sequence[str], max_drop: float
) -> tuple[list[Judged], list[str]]:
    """The variants that hold on `final`, and a warning for each that does not. The first, the float file, always ships.

    Raises InvalidDataError when the samples do not fit the metric.
    """
    contents = [bench.content(one.scheme) for one in chosen]
    models = [bench.load(content) for content in contents]
    latencies = bench.speeds([bench.given, *models], budget_s=FINAL_TIMING_S * (1 + len(models)))
    clean = run_all(bench.given, final.inputs)
    fp32 = bench.metric(clean, final)
    judged, warnings = [], []
    for place, one in enumerate(chosen):
        outputs = run_all(models[place], final.inputs)
        value = bench.metric(outputs, final)
        keeps = bench.metric.keeps(fp32=fp32, variant=value)
        if place and not is_accurate(keeps, max_drop):
            warnings.append(
                f"{one.name} held on the selection samples and not on the final ones ({bench.metric.name}"
                f" {value:.4f}, fp32 {fp32:.4f}): it does not ship"
            )
            continue
        paired = _paired(bench.metric, clean, outputs, final.labels, labels)
        shipped = ShippedVariant(
            name=one.name,
            quantization=one.scheme.quantization,
            metric=value,
            fp32_metric=fp32,
            keeps=keeps,
            size_bytes=len(contents[place]),
            memory_bytes=one.memory_bytes or 0,
            p50_us=latencies[place + 1].p50_us,
            p90_us=latencies[place + 1].p90_us,
            speedup=latencies[0].p50_us / latencies[place + 1].p50_us,
            fp32_only_right=paired.test.first_only if paired else None,
            variant_only_right=paired.test.second_only if paired else None,
            p_value=paired.test.p_value if paired else None,
            classes=paired.classes if paired else [],
        )
        judged.append(Judged(candidate=one, content=contents[place], shipped=shipped))
    return judged, warnings


@dataclass(frozen=True, kw_only=True)
class _Paired:
    """The right and wrong answers of both on the same samples."""

    test: PairedTest
    classes: list[ClassDelta]


def _paired(
    metric: Metric, clean: Outputs, outputs: Outputs, truth: NDArray[Any] | None, labels: Sequence[str]
) -> _Paired | None:
    """None where answers are not right or wrong."""
    if metric.name != "accuracy" or truth is None:
        return None
    fp32_right, right = _right(clean, truth), _right(outputs, truth)
    classes = [
        ClassDelta(
            label=labels[number] if number < len(labels) else str(number),
            samples=int((truth == number).sum()),
            fp32=float(fp32_right[truth == number].mean()),
            variant=float(right[truth == number].mean()),
        )
        for number in np.unique(truth)
    ]
    return _Paired(test=mcnemar(fp32_right, right), classes=classes)


def _right(outputs: Outputs, truth: NDArray[Any]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = predicted_classes(outputs) == truth
    return right
