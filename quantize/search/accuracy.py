"""What to do when a fast candidate is not accurate enough, the cheapest remedy first.

1. Other ranges, bias correction, equalisation, the eighth bit of the weights: the same speed (`remedied`).
2. Layers back to float, the most harmful first, until the metric holds; then each is tried again as an integer, the
   least harmful first (`restore`). Harm is ranked by the signal-to-noise ratio at the output with only that layer
   quantized, and ranked again by the metric on RANKING_SAMPLES samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from edge_agent.errors import AgentError
from quantize.data import Samples
from quantize.errors import InvalidDataError, QuantizationFailedError
from quantize.evaluation import run_all, signal_to_noise_db
from quantize.metrics import Outputs
from quantize.scheme import Form, Integer, Ranges, Scheme
from quantize.search.workbench import Workbench
from quantize.search_report import CandidateResult

STATIC_FORMS = (Form.QDQ, Form.QOPERATOR)
RANKING_SAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantizing one layer alone does: the signal-to-noise ratio in dB, and the share of the metric it keeps."""

    layer: str
    signal_to_noise_db: float
    keeps: float


def remedies(scheme: Scheme) -> Iterator[Scheme]:
    """The scheme with one change that costs no speed; only what its form can have, and what it has not yet."""
    if scheme.form not in STATIC_FORMS:
        return
    for ranges in (Ranges.PERCENTILE, Ranges.ENTROPY):
        if scheme.ranges is Ranges.MINMAX:
            yield replace(scheme, ranges=ranges)
    if not scheme.bias_corrected:
        yield replace(scheme, bias_corrected=True)
    if not scheme.equalised:
        yield replace(scheme, equalised=True)
    if scheme.weights is Integer.S7:
        yield replace(scheme, weights=Integer.S8)


def remedied(
    bench: Workbench, start: CandidateResult, *, is_good: Callable[[CandidateResult], bool], step: str
) -> CandidateResult:
    """`start` with the remedies that bring its outputs nearer to fp32's, each tried on the best so far.

    The first result that `is_good` ends it.
    """
    best, seen = start, {start.key}
    while not is_good(best):
        untried = next((one for one in remedies(best.scheme) if _is_worth_trying(bench, one, seen)), None)
        if untried is None:
            break
        seen.add(untried.key)
        result = bench.evaluate(untried, by=step)
        if is_good(result) or (result.signal_to_noise_db or 0.0) > (best.signal_to_noise_db or 0.0):
            best = result
    return best


def _is_worth_trying(bench: Workbench, scheme: Scheme, seen: set[str]) -> bool:
    return scheme.key not in seen and (bench.has_equalisable_pairs or not scheme.equalised)


def sensitivities(bench: Workbench, scheme: Scheme) -> list[Sensitivity]:
    """Every layer that `scheme` quantizes, the most harmful first; one that cannot be quantized alone is left out.

    Corrections are left out of it: they change the noise of all layers alike, and each would be found anew per layer.
    """
    plain = replace(scheme, bias_corrected=False, equalised=False)
    samples = bench.selection.take(np.arange(min(RANKING_SAMPLES, len(bench.selection)), dtype=np.int64))
    clean = run_all(bench.given, samples.inputs)
    fp32 = bench.metric(clean, samples)
    names = [layer.name for layer in bench.prepared.layers]
    found = []
    for name in names:
        if name in scheme.excluded:
            continue
        alone = replace(plain, excluded=tuple(other for other in names if other != name))
        outputs = _outputs(bench, alone, samples)
        if outputs is None:
            continue
        keeps = bench.metric.keeps(fp32=fp32, variant=_metric_or(bench, outputs, samples, fp32))
        found.append(Sensitivity(layer=name, signal_to_noise_db=signal_to_noise_db(clean, outputs), keeps=keeps))
    return sorted(found, key=lambda one: (min(one.keeps, 1.0), one.signal_to_noise_db))


def restore(
    bench: Workbench,
    scheme: Scheme,
    ranking: Sequence[Sensitivity],
    *,
    is_good: Callable[[CandidateResult], bool],
    step: str,
) -> CandidateResult | None:
    """`scheme` with the fewest layers in float with which it `is_good`; None when not even one quantized layer is."""
    order = [one.layer for one in ranking]
    names = [layer.name for layer in bench.prepared.layers]

    def tried(excluded: set[str]) -> CandidateResult:
        together = excluded | set(scheme.excluded)
        return bench.evaluate(replace(scheme, excluded=tuple(name for name in names if name in together)), by=step)

    low, high, best = 0, len(order), None
    while low + 1 < high:  # the fewest of the most harmful: more layers in float are never less accurate, nearly
        middle = (low + high) // 2
        result = tried(set(order[:middle]))
        if is_good(result):
            high, best = middle, result
        else:
            low = middle
    if best is None:
        return None
    excluded = set(order[:high])
    for name in reversed(order[: high - 1]):
        result = tried(excluded - {name})
        if is_good(result):
            excluded, best = excluded - {name}, result
    return best


def _outputs(bench: Workbench, scheme: Scheme, samples: Samples) -> Outputs | None:
    try:
        return run_all(bench.load(bench.build(scheme)), samples.inputs)
    except (AgentError, QuantizationFailedError):
        return None


def _metric_or(bench: Workbench, outputs: Outputs, samples: Samples, otherwise: float) -> float:
    try:
        return bench.metric(outputs, samples)
    except InvalidDataError:
        return otherwise
