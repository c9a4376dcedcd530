"""The search, step by step: from a prepared fp32 model to the variants that ship.

1. Screening: every scheme that suits the graph is built and measured beside fp32.
2. Placement: for the fastest integer schemes, the layers that are faster in float go back to float.
3. Accuracy: candidates faster than the best accurate one are repaired, by remedies that cost no speed, then by layers;
   the best is made surer the same way.
4. Other architectures: the schemes meant for CPUs that are not this one are made accurate too; devices measure them.
5. Choice (`choice.py`), then judgement on the final samples (`final.py`), where a variant that fails is dropped.

The same model, data, options and seed try the same candidates with the same bytes; which of them is fastest is
measured, so two runs may choose differently between candidates of equal speed.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from quantize.gate import is_accurate
from quantize.progress import Progress
from quantize.quantizers import candidate_schemes
from quantize.scheme import Form, Integer, Scheme
from quantize.search.accuracy import STATIC_FORMS, Sensitivity, remedied, restore, sensitivities
from quantize.search.choice import SAME_SPEED, fastest, is_faster, pareto_front, relative_latency, surety
from quantize.search.placement import Placement, place_for_speed
from quantize.search.workbench import Workbench
from quantize.search_report import CandidateResult, LayerResult, Status

SCREENING, PLACEMENT, REMEDY, LAYERS = "screening", "placement", "remedy", "layers"
REFINED, ARCHITECTURE, CHOICE = "refined", "architecture", "choice"
PLACED_BASES = 2
REPAIRED_CANDIDATES = 3
HOPELESS = 0.9
"""The share of the float file's speed below which a candidate's metric is not measured: it will not ship as it is."""
WORTH_REPAIRING = 0.9
"""The share of the metric below which a candidate is placed and repaired only for want of a better one."""
SURER_LAYERS = (1, 2, 4)
"""How many of the most harmful layers are tried in float when the best candidate is made surer."""
SPEED_GIVEN_UP = (SAME_SPEED, 0.1, math.inf)
"""What share of the fastest one's latency each next candidate for the final samples may add."""
MAX_JUDGED = 4
"""How many candidates may be tried on the final samples: each more look there makes their promise a little softer."""
MOST_IN_FLOAT = 0.5
"""The share of weights that may be in float in a file for a CPU that was not measured."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What the search is held to: the greatest drop of the metric, architectures to ship for, seconds for placement."""

    max_drop: float
    architectures: Sequence[str]
    placement_s: float


@dataclass(kw_only=True)
class SearchResult:
    """What may ship, and everything that was tried.

    `ranked` is what is faster than the float file on this machine, to be judged in this order until one holds;
    `for_others` is meant for other architectures.
    """

    floating: CandidateResult
    ranked: list[CandidateResult]
    for_others: list[CandidateResult]
    candidates: list[CandidateResult]
    layers: list[LayerResult]
    warnings: list[str] = field(default_factory=list)


class Search:
    """One search on a workbench."""

    def __init__(self, bench: Workbench, options: SearchOptions, *, progress: Progress) -> None:
        self._bench, self._options, self._progress = bench, options, progress
        self._machine = platform.machine()
        self._placements: list[Placement] = []
        self._ranking: list[Sensitivity] = []
        self._warnings: list[str] = []

    def run(self) -> SearchResult:
        """Try everything and choose. Raises nothing for a candidate that fails; KeyboardInterrupt goes through."""
        schemes = candidate_schemes(self._bench.prepared.model, architectures=self._options.architectures)
        here = [scheme for scheme in schemes if not _is_for_others(scheme, self._machine)]
        if self._bench.has_attention:
            dynamic = [scheme for scheme in here if scheme.form is Form.DYNAMIC and not scheme.smoothing]
            here += [replace(scheme, fused_attention=True) for scheme in dynamic]
        self._progress.stage("screening candidates", len(here))
        self._float = self._float_file()
        self._bench.least_speedup = HOPELESS * (self._float.speedup or 1.0)
        for scheme in here:
            self._bench.evaluate(scheme, by=SCREENING)
        self._place()
        self._progress.stage("repairing accuracy")
        self._repair()
        self._refine()
        self._progress.stage("variants for other architectures")
        self._bench.least_speedup = 0.0  # their speed here says nothing
        for_others = self._for_other_architectures([scheme for scheme in schemes if scheme not in here])
        ranked = self._ranked()
        known = {one.key for one in (self._float, *ranked)}
        for_others = [one for one in for_others if one.key not in known]
        self._rank_layers([*ranked, *for_others])
        return self._result(ranked, for_others)

    def _float_file(self) -> CandidateResult:
        """The fastest way to write the fp32 graph; as it was given where rewriting made it no faster."""
        given = self._bench.given_result
        rewritten = [self._bench.evaluate(scheme, by=SCREENING) for scheme in self._bench.float_schemes()]
        best = fastest([one for one in rewritten if self._is_good(one)])
        return best if best is not None and is_faster(best, given) else given

    def _place(self) -> None:
        if len(self._bench.prepared.layers) < 2:
            return
        bases: dict[bool, CandidateResult] = {}
        for one in sorted(self._measured(), key=_prospects):
            if one.scheme.form in STATIC_FORMS:
                bases.setdefault(one.scheme.per_channel, one)
        for one in list(bases.values())[:PLACED_BASES]:
            what = f"{one.name}, {'per channel' if one.scheme.per_channel else 'per tensor'}"
            self._progress.stage(f"placing layers of {what}")
            placement = place_for_speed(
                self._bench, one.scheme, budget_s=self._options.placement_s / min(PLACED_BASES, len(bases))
            )
            self._placements.append(placement)
            self._bench.evaluate(placement.scheme, by=PLACEMENT)
            if not placement.is_complete:
                self._warnings.append(
                    f"placing layers of {what} ended after {placement.moves} moves for want of time:"
                    " give --placement-seconds more"
                )

    def _repair(self) -> None:
        """Make candidates accurate that are faster than the best accurate one."""
        given_up: set[str] = set()
        for _ in range(REPAIRED_CANDIDATES):
            best = fastest([self._float, *self._accurate()]) or self._float
            faster = [
                one
                for one in self._measured()
                if one.by not in (REMEDY, LAYERS)
                and not is_accurate(one.keeps, self._options.max_drop)
                and is_faster(one, best)
                and one.key not in given_up
            ]
            if not faster:
                return
            candidate = min(faster, key=relative_latency)
            given_up.add(candidate.key)
            self._make_accurate(candidate)

    def _refine(self) -> None:
        """Make the fastest accurate candidate surer: remedies cost no speed, and the layers that do most harm may go
        back to float. What a metric over few samples calls accurate may be so by luck.
        """
        best = fastest([one for one in self._accurate() if is_faster(one, self._float)])
        if best is None or best.scheme.form not in STATIC_FORMS:
            return
        self._progress.stage(f"refining {best.name}")
        best = remedied(self._bench, best, is_good=lambda _: False, step=REFINED)
        self._ranking = self._ranking or sensitivities(self._bench, best.scheme)
        order = [one.layer for one in self._ranking if one.layer not in best.scheme.excluded]
        names = [layer.name for layer in self._bench.prepared.layers]
        for count in SURER_LAYERS:
            if count < len(order):
                in_float = {*best.scheme.excluded, *order[:count]}
                scheme = replace(best.scheme, excluded=tuple(name for name in names if name in in_float))
                self._bench.evaluate(scheme, by=REFINED)

    def _make_accurate(self, candidate: CandidateResult) -> CandidateResult | None:
        """The candidate, or what became of it when it was made accurate; None when it could not be."""
        best = remedied(self._bench, candidate, is_good=self._is_good, step=REMEDY)
        if self._is_good(best) or best.scheme.form not in STATIC_FORMS:
            return best if self._is_good(best) else None
        self._progress.stage(f"ranking the layers of {best.name}")
        ranking = sensitivities(self._bench, best.scheme)
        self._ranking = self._ranking or ranking
        return restore(self._bench, best.scheme, ranking, is_good=self._is_good, step=LAYERS)

    def _for_other_architectures(self, schemes: Iterable[Scheme]) -> list[CandidateResult]:
        found = []
        for architecture in self._options.architectures:
            if architecture == self._machine:
                continue
            meant = [scheme for scheme in schemes if architecture in _meant_for(scheme)]
            results = [self._bench.evaluate(scheme, by=ARCHITECTURE) for scheme in meant]
            accurate = [one for one in results if self._is_good(one)]
            if not accurate and results:
                measured = [one for one in results if one.status is Status.MEASURED]
                repaired = self._make_accurate(max(measured, key=lambda one: one.keeps or 0.0)) if measured else None
                accurate = [repaired] if repaired is not None and self._is_mostly_integer(repaired) else []
            if accurate:
                best = max(accurate, key=surety)
                found.append(replace(best, architectures=[architecture]))
            elif meant:
                self._warnings.append(f"no int8 variant for {architecture} is accurate enough: it gets the float file")
        return found

    def _is_mostly_integer(self, one: CandidateResult) -> bool:
        """Whether enough weights are integers for a file to be worth shipping to a CPU that was not measured."""
        layers = self._bench.prepared.layers
        in_float = sum(layer.weights for layer in layers if layer.name in one.scheme.excluded)
        return in_float <= MOST_IN_FLOAT * sum(layer.weights for layer in layers)

    def _ranked(self) -> list[CandidateResult]:
        """What may ship for this machine, to be judged in this order: each gives up more speed for nearer outputs."""
        faster = [one for one in self._accurate() if is_faster(one, self._float)]
        ranked: dict[str, CandidateResult] = {}
        for within in SPEED_GIVEN_UP:
            best = fastest([one for one in faster if one.key not in ranked], within=within)
            if best is not None:
                for one in (self._exact_everywhere(best), best):
                    ranked.setdefault(one.key, replace(one, architectures=[self._machine]))
        if not ranked:
            self._warnings.append(self._why_float())
        return list(ranked.values())[:MAX_JUDGED]

    def _exact_everywhere(self, best: CandidateResult) -> CandidateResult:
        """The candidate with weights of 7 bits, where that is as accurate as it must be and as fast.

        It uses the same kernels, and is right on x86 CPUs whose 16-bit sums would saturate too.
        """
        if best.scheme.activations is not Integer.U8 or best.scheme.weights is not Integer.S8:
            return best
        if best.scheme.form not in (*STATIC_FORMS, Form.DYNAMIC):
            return best
        sibling = self._bench.evaluate(replace(best.scheme, weights=Integer.S7), by=CHOICE)
        return sibling if self._is_good(sibling) and not is_faster(best, sibling) else best

    def _why_float(self) -> str:
        integers = [one for one in self._measured() if one.scheme.form not in (Form.GIVEN, Form.FLOAT)]
        if not any(layer.weights for layer in self._bench.prepared.layers):
            return "there is nothing to quantize: the graph has no layer with weights, so the float file ships"
        if not integers:
            return "no quantized candidate could be made and measured: the float file ships (see the failures)"
        best = min(integers, key=relative_latency)
        ratio = relative_latency(self._float) / relative_latency(best)
        if ratio <= 1 + SAME_SPEED:
            return (
                f"int8 loses here: the fastest quantized candidate ({best.name}) runs at {ratio:.2f} times the speed"
                " of the float file on this CPU, so the float file ships"
            )
        return (
            f"int8 is faster here ({best.name}, {ratio:.2f} times) but no faster candidate keeps enough of the metric:"
            " the float file ships"
        )

    def _rank_layers(self, chosen: Sequence[CandidateResult]) -> None:
        integer = next((one.scheme for one in chosen if one.scheme.form in STATIC_FORMS), None)
        if integer is not None and not self._ranking:
            self._progress.stage("ranking the layers")
            self._ranking = sensitivities(self._bench, replace(integer, excluded=()))

    def _result(self, ranked: list[CandidateResult], for_others: list[CandidateResult]) -> SearchResult:
        candidates = list(self._bench.tried.values())
        front = pareto_front(candidates)
        architectures = {one.key: one.architectures for one in (*ranked, *for_others)}
        return SearchResult(
            floating=self._float,
            ranked=ranked,
            for_others=for_others,
            candidates=[
                replace(
                    one,
                    on_front=one.key in front,
                    architectures=architectures.get(one.key, []),
                    reason=self._reason(one),
                )
                for one in candidates
            ],
            layers=self._layers([*ranked, *for_others]),
            warnings=self._warnings,
        )

    def _reason(self, one: CandidateResult) -> str:
        said = f"{one.reason}; " if one.reason and one.status is Status.MEASURED else ""
        return said + self._verdict(one)

    def _verdict(self, one: CandidateResult) -> str:
        if one.status is not Status.MEASURED:
            return one.reason
        if one.keeps is None:
            return "slower than the float file: its metric was not measured"
        if not is_accurate(one.keeps, self._options.max_drop):
            return f"loses {1 - one.keeps:.2%} of the metric, {self._options.max_drop:.2%} is allowed"
        if not is_faster(one, self._float):
            return "not faster than the float file"
        return "another accurate variant is as fast or faster"

    def _layers(self, chosen: Sequence[CandidateResult]) -> list[LayerResult]:
        integer = next((one.scheme for one in chosen if one.scheme.form in STATIC_FORMS), None)
        excluded = set(integer.excluded) if integer is not None else set()
        gains = {name: gain for placement in self._placements for name, gain in placement.float_gain_us.items()}
        placed = {name for placement in self._placements for name in placement.scheme.excluded}
        ranking = {one.layer: one for one in self._ranking}
        rows = []
        for layer in self._bench.prepared.layers:
            found = ranking.get(layer.name)
            rows.append(
                LayerResult(
                    name=layer.name,
                    operator=layer.operator,
                    weights=layer.weights,
                    signal_to_noise_db=None if found is None else found.signal_to_noise_db,
                    keeps=None if found is None else found.keeps,
                    float_gain_us=gains.get(layer.name),
                    excluded=layer.name in excluded,
                    reason=("faster in float" if layer.name in placed else "for accuracy")
                    if layer.name in excluded
                    else "",
                )
            )
        return rows

    def _measured(self) -> list[CandidateResult]:
        """What was measured and meant for this machine."""
        return [one for one in self._bench.tried.values() if one.status is Status.MEASURED and one.by != ARCHITECTURE]

    def _accurate(self) -> list[CandidateResult]:
        return [one for one in self._measured() if self._is_good(one)]

    def _is_good(self, result: CandidateResult) -> bool:
        return result.status is Status.MEASURED and is_accurate(result.keeps, self._options.max_drop)


def _prospects(one: CandidateResult) -> tuple[bool, float]:
    """For sorting: what may become a variant by moving layers first, the fastest first."""
    return one.keeps is not None and one.keeps < WORTH_REPAIRING, relative_latency(one)


def _meant_for(scheme: Scheme) -> tuple[str, ...]:
    """The architectures whose kernels a scheme is made for; none named is every one."""
    signed = scheme.form in STATIC_FORMS and scheme.activations is Integer.S8 and scheme.weights is Integer.S8
    return ("aarch64",) if signed else ()


def _is_for_others(scheme: Scheme, machine: str) -> bool:
    return bool(_meant_for(scheme)) and machine not in _meant_for(scheme)
