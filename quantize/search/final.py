"""Judgement on the final samples, which nothing was chosen by: what a bundle promises.

A variant that drops more than allowed there does not ship, however well it did on the selection samples; the next in
rank is judged then. So is a variant dropped that is no faster than the float file when measured again. At the end all
that ship are timed with fp32 as given, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantize.data import Samples
from quantize.evaluation import run_all
from quantize.gate import is_accurate
from quantize.metrics import Metric, Outputs, predicted_classes
from quantize.paired_test import PairedTest, mcnemar
from quantize.search.choice import SAME_SPEED
from quantize.search.search import SearchResult
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


@dataclass(kw_only=True)
class Judgement:
    """What ships, the float file first; and why the others do not, by their keys."""

    judged: list[Judged]
    dropped: dict[str, str] = field(default_factory=dict)


def judge_on_final(
    bench: Workbench, result: SearchResult, final: Samples, *, labels: Sequence[str], max_drop: float
) -> Judgement:
    """The float file, the first of the ranked candidates that holds on `final`, and those for others that hold.

    Raises InvalidDataError when the samples do not fit the metric.
    """
    judge = _Judge(bench, final, labels=labels)
    judgement = Judgement(judged=[judge.verdict(result.floating)])
    floating = judgement.judged[0]
    for candidates, is_for_here in ((result.ranked, True), (result.for_others, False)):
        for one in candidates:
            verdict = judge.verdict(one)
            if not is_accurate(verdict.shipped.keeps, max_drop):
                judgement.dropped[one.key] = (
                    f"held on the selection samples and not on the final ones ({bench.metric.name}"
                    f" {verdict.shipped.metric:.4f}, fp32 {verdict.shipped.fp32_metric:.4f})"
                )
            elif is_for_here and (speed := judge.speed_beside(floating, verdict)) < 1 + SAME_SPEED:
                judgement.dropped[one.key] = f"was {speed:.2f} times as fast as the float file when measured again"
            else:
                judgement.judged.append(verdict)
                if is_for_here:
                    break
    judgement.judged = judge.timed(judgement.judged)
    return judgement


class _Judge:
    """Knows what fp32 as given answers on the final samples."""

    def __init__(self, bench: Workbench, final: Samples, *, labels: Sequence[str]) -> None:
        self._bench, self._final, self._labels = bench, final, labels
        self._clean = run_all(bench.given, final.inputs)
        self._fp32 = bench.metric(self._clean, final)

    def verdict(self, one: CandidateResult) -> Judged:
        """What the final samples say of a candidate; it is not timed yet."""
        bench, content = self._bench, self._bench.content(one.scheme)
        outputs = run_all(bench.load(content), self._final.inputs)
        value = bench.metric(outputs, self._final)
        paired = _paired(bench.metric, self._clean, outputs, self._final.labels, self._labels)
        shipped = ShippedVariant(
            name=one.name,
            quantization=one.scheme.quantization,
            metric=value,
            fp32_metric=self._fp32,
            keeps=bench.metric.keeps(fp32=self._fp32, variant=value),
            size_bytes=len(content),
            memory_bytes=one.memory_bytes or 0,
            p50_us=0.0,
            p90_us=0.0,
            speedup=0.0,
            fp32_only_right=paired.test.first_only if paired else None,
            variant_only_right=paired.test.second_only if paired else None,
            p_value=paired.test.p_value if paired else None,
            classes=paired.classes if paired else [],
        )
        return Judged(candidate=one, content=content, shipped=shipped)

    def speed_beside(self, floating: Judged, one: Judged) -> float:
        """How many times as fast as the float file it is, measured longer: the best of many looks was lucky too."""
        models = [self._bench.load(judged.content) for judged in (floating, one)]
        latencies = self._bench.speeds(models, budget_s=FINAL_TIMING_S * len(models))
        return latencies[0].p50_us / latencies[1].p50_us

    def timed(self, judged: Sequence[Judged]) -> list[Judged]:
        """All that ship with their latencies, measured in turns with fp32 as given."""
        bench = self._bench
        models = [bench.given, *(bench.load(one.content) for one in judged)]
        given, *latencies = bench.speeds(models, budget_s=FINAL_TIMING_S * len(models))
        return [
            replace(
                one,
                shipped=msgspec.structs.replace(
                    one.shipped,
                    p50_us=latency.p50_us,
                    p90_us=latency.p90_us,
                    speedup=given.p50_us / latency.p50_us,
                ),
            )
            for one, latency in zip(judged, latencies, strict=True)
        ]


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
