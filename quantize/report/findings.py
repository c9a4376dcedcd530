"""What a report says, decided: the verdict, who is who among the candidates, what a reader must bear in mind.

Pure functions of a `SearchReport`; pages in HTML, Markdown and on a terminal say the same sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from quantize.gate import is_accurate
from quantize.report import words
from quantize.scheme import Form, Integer
from quantize.search.choice import SAME_SPEED, relative_latency
from quantize.search_report import CandidateResult, ClassDelta, LayerResult, SearchReport, ShippedVariant, Status

_FLOATS = (Form.GIVEN, Form.FLOAT)
_LAYERED = (Form.QDQ, Form.QOPERATOR)
_FOR_OTHERS = "architecture"
"""The search's step that makes candidates for other CPUs than the one that measures."""
CHANCE = 0.05
"""The p-value below which a difference is called one."""


class Kind(StrEnum):
    """What a candidate is to the reader."""

    GIVEN = "fp32 as given"
    SHIPS = "ships"
    KEPT = "accurate"
    REFUSED = "loses too much"
    UNJUDGED = "not judged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A candidate with the number that tells it from others of its name, from 1 in the order they were tried."""

    number: int
    result: CandidateResult
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A variant that ships, the candidate it was, and the architectures it is for (none named: every one)."""

    variant: ShippedVariant
    candidate: Numbered | None
    architectures: Sequence[str]

    @property
    def is_float(self) -> bool:
        """Whether nothing in it is quantized."""
        if self.candidate is None:
            return self.variant.name in _FLOATS
        return self.candidate.result.scheme.form in _FLOATS


def numbered(report: SearchReport) -> list[Numbered]:
    """Every candidate, in the order they were tried."""
    return [
        Numbered(number=place + 1, result=one, kind=_kind(one, report.max_drop))
        for place, one in enumerate(report.candidates)
    ]


def shipped(report: SearchReport) -> list[Shipped]:
    """Every variant that ships, the float file first."""
    found = []
    for variant in report.shipped:
        one = next((one for one in numbered(report) if one.result.shipped and one.result.name == variant.name), None)
        found.append(
            Shipped(variant=variant, candidate=one, architectures=one.result.architectures if one is not None else ())
        )
    return found


def machine(report: SearchReport) -> str:
    """The architecture that measured."""
    return report.cpu.partition(":")[0]


def main_variant(report: SearchReport) -> Shipped:
    """The variant for a CPU like the one that measured: the quantized one for it, or the float file."""
    variants = shipped(report)
    return next((one for one in variants if machine(report) in one.architectures), variants[0])


def fp32_p50_us(variant: ShippedVariant) -> float | None:
    """The median of fp32 as given, measured in turns with this variant: what its speedup was computed from."""
    value = words.known(variant.p50_us * variant.speedup)
    return value if value is not None and value > 0 else None


def fp32_size_bytes(report: SearchReport) -> int | None:
    """The size of fp32 as given."""
    return report.candidates[0].size_bytes if report.candidates else None


def verdict(report: SearchReport) -> str:
    """The outcome in plain words."""
    main = main_variant(report)
    variant = main.variant
    floats = next((one for one in shipped(report) if one.is_float), None)
    kept = f"keeps {words.keeps(variant.keeps)} of its {quality(report)}"
    if not main.is_float:
        said = f"{form_in_words(main)} runs {variant.speedup:,.2f} times as fast as the fp32 file and {kept}."
        rewritten = floats is not None and floats.variant.speedup > 1 + SAME_SPEED
        if rewritten and floats is not None:
            said += f" The float file, rewritten without quantizing, runs {floats.variant.speedup:,.2f} times as fast."
        return said
    return f"{_why_float(report, main)} {_float_file(main, kept)}"


def quality(report: SearchReport) -> str:
    """What is kept or lost, in a sentence: the metric where more of it is better."""
    return report.metric if report.higher_is_better else f"quality ({report.metric})"


def form_in_words(one: Shipped) -> str:
    """The kind of variant, to begin a sentence with."""
    scheme = one.candidate.result.scheme if one.candidate is not None else None
    if scheme is None:
        return one.variant.name
    weights = "int4" if scheme.weights is Integer.S4 else "int8"
    return {
        Form.GIVEN: "fp32 as given",
        Form.FLOAT: "the rewritten float file",
        Form.FLOAT16: "float16",
        Form.QDQ: "int8 in QDQ form",
        Form.QOPERATOR: "int8 in quantized operators",
        Form.DYNAMIC: "int8 with ranges found at run time",
        Form.WEIGHT_ONLY: f"{weights} in the weights alone",
    }[scheme.form]


def pairs_in_words(variant: ShippedVariant, samples: int) -> str:
    """McNemar's test told by its discordant pairs; empty where the metric is not of right and wrong answers."""
    first, second = variant.fp32_only_right, variant.variant_only_right
    if first is None or second is None or variant.p_value is None:
        return ""
    said = (
        f"of {words.plural(samples, 'sample')}, fp32 alone was right on {first:,}, the variant alone on {second:,};"
        f" {words.probability(variant.p_value)}"
    )
    if first + second == 0:
        return f"{said}: both were right on the same samples"
    return f"{said}: {'chance alone could explain it' if variant.p_value >= CHANCE else 'more than chance'}"


def judged_samples(report: SearchReport) -> int:
    """How many samples the shipped variants were judged on."""
    return report.samples.get("final") or report.samples.get("selection") or 0


def judged_on(report: SearchReport) -> str:
    """The name of those samples."""
    return "final" if report.samples.get("final") else "selection"


def notes(report: SearchReport) -> list[str]:
    """What a reader must bear in mind, beyond the search's own warnings."""
    found = []
    total = judged_samples(report)
    if report.metric == "accuracy" and 0 < total * report.max_drop < 1:
        found.append(
            f"One answer of {words.plural(total, 'sample')} is {words.percent(1 / total)} of all, more than the"
            f" {words.percent(report.max_drop)} that may be lost: with so few samples a small loss cannot be seen."
        )
    here = machine(report)
    return found + [
        f"{one.variant.name} is for {', '.join(one.architectures)}: its times here are of {here} and say nothing about"
        " that CPU. A device measures the variants it may use and takes the fastest."
        for one in shipped(report)
        if one.architectures and here not in one.architectures
    ]


def changed_classes(classes: Sequence[ClassDelta]) -> list[ClassDelta]:
    """The classes that the variant answers more or less often rightly, those that lose most first."""
    return sorted((one for one in classes if one.variant != one.fp32), key=lambda one: one.variant - one.fp32)


def classes_in_words(classes: Sequence[ClassDelta]) -> str:
    """How many classes lose and gain."""
    changed = changed_classes(classes)
    if not changed and len(classes) == 1:
        return "No difference in the only class."
    if not changed:
        return f"No difference in any of {words.plural(len(classes), 'class', 'classes')}."
    worse = [one for one in changed if one.variant < one.fp32]
    said = (
        f"Of {words.plural(len(classes), 'class', 'classes')}, {len(worse):,} lose, {len(changed) - len(worse):,} gain"
        f" and {len(classes) - len(changed):,} stay the same."
    )
    if worse:
        said += f" The greatest loss is {words.points(worse[0].variant - worse[0].fp32)} points: {worse[0].label}."
    return said


def layers_in_words(report: SearchReport) -> str:
    """How many layers, and how much of the weights, stay in float in what ships."""
    layers: Sequence[LayerResult] = report.layers
    if not any(one.result.shipped and one.result.scheme.form in _LAYERED for one in numbered(report)):
        return f"Nothing ships in which any of {words.plural(len(layers), 'layer')} is quantized."
    left = [one for one in layers if one.excluded]
    if not left:
        return f"None of {words.plural(len(layers), 'layer')} was left in float."
    weights, all_weights = sum(one.weights for one in left), sum(one.weights for one in layers)
    return (
        f"{words.plural(len(left), 'layer')} of {len(layers):,} left in float, with {weights:,} of"
        f" {words.plural(all_weights, 'weight')}."
    )


def tally(report: SearchReport) -> str:
    """How many candidates were tried, and what became of them."""
    kinds = [one.kind for one in numbered(report)]
    parts = [words.plural(len(kinds), "candidate") + " tried"]
    for kind, said in (
        (Kind.REFUSED, f"lost more than {words.percent(report.max_drop)} of the metric"),
        (Kind.FAILED, "failed"),
        (Kind.INTERRUPTED, "interrupted"),
    ):
        if kind in kinds:
            parts.append(f"{kinds.count(kind):,} {said}")
    return ", ".join(parts)


def _kind(one: CandidateResult, max_drop: float) -> Kind:
    if one.status is Status.FAILED:
        return Kind.FAILED
    if one.status is Status.INTERRUPTED:
        return Kind.INTERRUPTED
    if one.shipped:
        return Kind.SHIPS
    if one.scheme.form is Form.GIVEN:
        return Kind.GIVEN
    if one.keeps is None:
        return Kind.UNJUDGED
    return Kind.KEPT if is_accurate(one.keeps, max_drop) else Kind.REFUSED


def _why_float(report: SearchReport, main: Shipped) -> str:
    quantized = [
        one
        for one in report.candidates
        if one.scheme.form not in _FLOATS
        and one.speedup
        and (machine(report) in one.architectures or not (one.architectures or one.by == _FOR_OTHERS))
    ]
    if not quantized:
        return "No quantized candidate could be made and measured for this CPU."
    mine = main.candidate.result if main.candidate is not None else None
    mine_latency = relative_latency(mine) if mine is not None and mine.speedup else 1.0
    best = min(quantized, key=relative_latency)
    ratio = mine_latency / relative_latency(best)
    if ratio <= 1 + SAME_SPEED:
        return (
            f"int8 loses here: the fastest quantized candidate ({best.name}) runs at {ratio:,.2f} times the speed of"
            " the float file."
        )
    accurate = [one for one in quantized if is_accurate(one.keeps, report.max_drop)]
    if any(mine_latency / relative_latency(one) > 1 + SAME_SPEED for one in accurate):
        return "A faster quantized variant held on the selection samples and not on the final ones."
    return (
        f"int8 is faster here ({best.name}, {ratio:,.2f} times the float file) but every faster candidate loses more"
        f" than {words.percent(report.max_drop)} of the {quality(report)}."
    )


def _float_file(main: Shipped, kept: str) -> str:
    if main.candidate is not None and main.candidate.result.scheme.form is Form.GIVEN:
        return "The fp32 file ships as it was given."
    return f"The float file ships, rewritten: it runs {main.variant.speedup:,.2f} times as fast as fp32 and {kept}."
