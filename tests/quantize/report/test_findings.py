"""The sentences of a report, and the words its numbers are told in."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from quantize.report import findings, words
from quantize.report.labels import Anchor, Box, place
from quantize.report.pareto import least_metric
from quantize.report.scales import Axis, widened
from quantize.search.search import ARCHITECTURE
from quantize.search_report import ClassDelta
from tests.quantize.report import reports


def test_the_verdict_of_a_quantized_variant_tells_its_speed_and_what_it_keeps() -> None:
    assert findings.verdict(reports.int8_wins()).startswith(
        "int8 in QDQ form runs 1.72 times as fast as the fp32 file and keeps 99.8 % of its accuracy."
    )


def test_the_verdict_tells_when_rewriting_alone_made_the_float_file_faster() -> None:
    assert "rewritten without quantizing, runs 1.12 times as fast" in findings.verdict(reports.int8_wins())


def test_the_verdict_says_that_int8_loses_when_no_quantized_candidate_is_faster() -> None:
    said = findings.verdict(reports.int8_loses())
    assert said == (
        "int8 loses here: the fastest quantized candidate (int8-qdq-u8s8) runs at 0.80 times the speed of the float"
        " file. The fp32 file ships as it was given."
    )


def test_the_verdict_tells_a_faster_candidate_that_loses_too_much() -> None:
    base = reports.int8_loses()
    bad = reports.candidate(reports.U8S8, speedup=1.6, metric=0.90)
    said = findings.verdict(replace(base, candidates=[base.candidates[0], bad]))
    assert said.startswith("int8 is faster here (int8-qdq-u8s8, 1.60 times the float file) but every faster candidate")


def test_the_verdict_tells_a_variant_that_failed_on_the_final_samples() -> None:
    base = reports.int8_loses()
    good = reports.candidate(reports.U8S8, speedup=1.6, metric=0.98, architectures=["x86_64"])
    said = findings.verdict(replace(base, candidates=[base.candidates[0], good]))
    assert said.startswith("A faster quantized variant held on the selection samples and not on the final ones.")


def test_the_verdict_tells_that_nothing_could_be_quantized() -> None:
    base = reports.int8_loses()
    said = findings.verdict(replace(base, candidates=base.candidates[:1]))
    assert said.startswith("No quantized candidate could be made and measured for this CPU.")


def test_a_variant_for_another_architecture_is_never_the_verdict() -> None:
    base = reports.int8_wins()
    report = replace(base, shipped=[base.shipped[0], base.shipped[2]])
    assert findings.main_variant(report).variant.name == "fp32-optimised"
    assert "int8-qdq-s8s8" not in findings.verdict(report)
    assert any("int8-qdq-s8s8 is for aarch64" in note for note in findings.notes(report))
    assert report.candidates[4].by == ARCHITECTURE


def test_discordant_pairs_are_told_in_words() -> None:
    variant = reports.int8_wins().shipped[1]
    assert findings.pairs_in_words(variant, 500) == (
        "of 500 samples, fp32 alone was right on 2, the variant alone on 3; p = 1.00: chance alone could explain it"
    )
    assert "more than chance" in findings.pairs_in_words(replace(variant, p_value=0.001), 500)
    assert findings.pairs_in_words(replace(variant, p_value=None), 500) == ""


def test_samples_too_few_to_see_the_allowed_loss_are_noted() -> None:
    few = replace(reports.int8_loses(), samples={"calibration": 9, "selection": 9, "final": 20})
    assert any("One answer of 20 samples is 5 %" in note for note in findings.notes(few))
    assert not findings.notes(reports.int8_loses())


def test_the_greatest_loss_of_a_class_is_named() -> None:
    deltas = [
        ClassDelta(label="cat", samples=10, fp32=0.9, variant=0.8),
        ClassDelta(label="dog", samples=10, fp32=0.9, variant=0.7),
        ClassDelta(label="owl", samples=10, fp32=0.9, variant=1.0),
    ]
    assert findings.classes_in_words(deltas) == (
        "Of 3 classes, 2 lose, 1 gain and 0 stay the same. The greatest loss is \N{MINUS SIGN}20.0 points: dog."
    )


def test_the_limit_of_a_metric_where_less_is_better_lies_above_fp32() -> None:
    assert least_metric(reports.int8_wins()) == pytest.approx(0.98 * 0.995)
    assert least_metric(reports.error_metric()) == pytest.approx(0.000123 / 0.995)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.keeps(0.99999), "99.99 %"),
        (words.keeps(0.998), "99.8 %"),
        (words.keeps(1.0), "100 %"),
        (words.keeps(1.003), "100.3 %"),
        (words.keeps(None), "not measured"),
        (words.microseconds(8.8877), "8.89 µs"),
        (words.microseconds(1_234.0), "1.23 ms"),
        (words.size(88_049), "88.0 kB"),
        (words.size(None), "not measured"),
        (words.metric_value(0.000123), "0.000123"),
        (words.metric_value(float("nan")), "not measured"),
        (words.seconds(200.4), "3 min 20 s"),
        (words.probability(0.0004), "p < 0.001"),
        (words.probability(0.0412), "p = 0.041"),
        (words.points(-0.0001), "0"),
        (words.decibels(200.0), "no difference"),
        (words.change(-3.24), "3.24 µs slower"),
        (words.moment(10**30), f"{10**30} ns"),
        (words.count(1_234_567), "1,234,567"),
    ],
)
def test_numbers_have_their_units_and_no_digit_that_means_nothing(said: str, expected: str) -> None:
    assert said == expected


def test_labels_never_lie_over_each_other_or_over_the_edge() -> None:
    frame = Box(left=0, top=0, right=600, bottom=300)
    anchors = [Anchor(x=300 + n % 3, y=150, radius=8, text=f"#{n} int8-qdq-u8s8") for n in range(12)]
    placed = place(anchors, frame)
    assert len(placed) >= 8
    assert all(one.box.is_within(frame) for one in placed)
    assert not any(a.box.overlaps(b.box) for n, a in enumerate(placed) for b in placed[:n])


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.98, 0.98), (1e-9, 2e-9), (-5.0, 1e12), (0.9, 1.0)])
def test_an_axis_has_round_ticks_inside_of_its_range(low: float, high: float) -> None:
    bottom, top = widened(low, high)
    axis = Axis(low=bottom, high=top, start=400.0, end=10.0)
    ticks = axis.ticks(6)
    assert 1 <= len(ticks) <= 8
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(10.0 <= axis.at(value) <= 400.0 for value, _ in ticks)


def test_a_value_outside_of_an_axis_is_drawn_at_its_edge() -> None:
    axis = Axis(low=0.9, high=1.0, start=400.0, end=10.0)
    assert [axis.at(0.1), axis.at(7.0)] == [400.0, 10.0]
    assert not axis.holds(0.1)
