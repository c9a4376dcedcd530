"""What Q1 to Q4 measure on a model once for all of them, and how rows become one figure. The judging is pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.quantization.bundles import bundle_of, case_folder, case_named, choice_of, is_small, new_folder, say
from benchmarks.quantization.cases import all_cases
from benchmarks.quantization.parts import MODEL_FILE, Case
from benchmarks.quantization.stock import quantized_by_defaults
from benchmarks.quantization.timing import PROCESSES, p50_us, runs
from quantize.evaluation import loaded, run_all

GIVEN, CHOSEN, STOCK, STOCK_PREPROCESSED = "fp32 as given", "chosen", "stock", "stock, preprocessed"
_DIGITS = 3
_ERROR_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model: the p50 of each file in microseconds, its metric on the final part, and where the bundle came from.

    A way of stock quantization that failed is missing in all of them, and is in `stock_errors` with the reason.
    """

    p50_us: Mapping[str, float]
    quality: Mapping[str, float]
    keeps: Mapping[str, float]
    variant: str
    origin: str
    truth: str
    sizes: Mapping[str, int]
    metric: str
    stock_errors: Mapping[str, str] = field(default_factory=dict)


@cache
def measured(name: str) -> Measured:
    """Everything about one model, measured in turns."""
    case, bundle, choice = case_named(name), bundle_of(name), choice_of(name)
    files = {GIVEN: case_folder(name) / MODEL_FILE, CHOSEN: choice.file}
    stock_errors: dict[str, str] = {}
    for which, preprocessed in ((STOCK, False), (STOCK_PREPROCESSED, True)):
        try:
            files[which] = quantized_by_defaults(case, new_folder(f"{which}/{name}"), preprocessed=preprocessed)
        except Exception as error:  # noqa: BLE001 - whatever stops stock quantization is this benchmark's finding
            stock_errors[which] = f"{type(error).__name__}: {error}"[:_ERROR_CHARS]
            say(f"{name}: {which} failed: {stock_errors[which]}")
    say(f"{name}: timing {', '.join(files)}")
    quality = {which: quality_of(case, path) for which, path in files.items()}
    return Measured(
        p50_us=p50_us(case_folder(name), files),
        quality=quality,
        keeps={which: case.metric.keeps(fp32=quality[GIVEN], variant=value) for which, value in quality.items()},
        variant=choice.variant,
        origin=bundle.origin,
        truth=case.settings.truth,
        sizes=case.sizes,
        metric=case.metric.name,
        stock_errors=stock_errors,
    )


def all_measured() -> dict[str, Measured]:
    """Every model, one after the other."""
    return {name: measured(name) for name in all_cases()}


def quality_of(case: Case, file: Path) -> float:
    """The metric of a file on the final part, in the agent's runtime."""
    with loaded(file.read_bytes()) as model:
        return case.metric(run_all(model, case.final.inputs), case.final)


def geometric_mean(ratios: Iterable[float]) -> float:
    """Raises ValueError for none."""
    logarithms = [math.log(ratio) for ratio in ratios]
    if not logarithms:
        raise ValueError("a geometric mean of no ratios")
    return math.exp(sum(logarithms) / len(logarithms))


def row(found: Measured, *, ratio: float) -> dict[str, Any]:
    """One model's row in the figures."""
    return {
        "ratio": rounded(ratio),
        "variant": found.variant,
        "p50_us": {which: round(value, 2) for which, value in found.p50_us.items()},
        "keeps": {which: round(value, 5) for which, value in found.keeps.items()},
        "bundle": found.origin,
    }


def rounded(ratio: float) -> float:
    """As it stands in a result: what is compared with a target is what is printed."""
    return round(ratio, _DIGITS)


def conditions() -> dict[str, Any]:
    """How all were timed."""
    small = {"small_parts_so_figures_mean_nothing": True} if is_small() else {}
    return {"runs": runs(), "processes": PROCESSES, "threads": 1, **small}
