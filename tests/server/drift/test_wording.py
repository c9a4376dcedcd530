"""What is said, case by case, in the words a person would use."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_server.drift.findings import Effect, Segment, Severity, SignalFinding, SignalKind, Verdict
from fleet_server.drift.onset import Onset
from fleet_server.drift.pairing import Judged
from fleet_server.drift.wording import (
    say_accuracy,
    say_drift,
    say_lacking,
    say_not_found,
    say_report,
    say_since,
    say_time,
)

MIN_NS = 60 * 10**9
NOON_NS = 1_763_812_800 * 10**9
NAMES = tuple(f"d{number}" for number in range(200))


def judged(kind: SignalKind = SignalKind.FEATURE, *, name: str = "brightness", **changes: object) -> Judged:
    effect = changes.pop("effect", Effect(shift_sd=0.8, psi=0.31, mmd=0.21))
    assert isinstance(effect, Effect)
    finding = SignalFinding(
        signal=name, kind=kind, verdict=Verdict.NOT_FOUND, severity=Severity.NONE, sentence="", devices=200,
        values=9_000, effect=effect,
    )  # fmt: skip
    return Judged(finding=finding, names=NAMES, **changes)  # type: ignore[arg-type]


LISBON = Segment(by="site", value="lisbon", devices=200, devices_moved=14, p_value=1e-9, e_value=1e6, shift_sd=0.8)


def said(one: Judged, *, segment: Segment | None = None, moved: int = 0, elsewhere: bool = False) -> str:
    return say_drift(one, moved=moved, segment=segment, elsewhere=elsewhere, since="")


def test_the_sentence_of_the_readme() -> None:
    onset = Onset(at_ns=NOON_NS - 140 * MIN_NS, earliest_ns=NOON_NS - 145 * MIN_NS, latest_ns=NOON_NS - 135 * MIN_NS)
    since = say_since(onset, step_ns=5 * MIN_NS, end_ns=NOON_NS)
    sentence = say_drift(judged(), moved=14, segment=LISBON, elsewhere=False, since=since) + say_accuracy((0.97, 0.91))
    sigma = "\N{GREEK SMALL LETTER SIGMA}"
    assert sentence == (
        f"brightness moved by 0.8 {sigma} on 14 of 200 devices at site=lisbon since 09:40; "
        "estimated accuracy 0.97 → 0.91"
    )


@pytest.mark.parametrize(
    ("one", "segment", "moved", "elsewhere", "expected"),
    [
        (judged(), None, 150, False, "on 150 of 200 devices"),
        (judged(), None, 0, False, "over 200 devices together"),
        (judged(), LISBON, 20, True, "on 14 of 200 devices at site=lisbon, and less elsewhere"),
        (judged(effect=Effect(shift_sd=0.01, psi=0.31)), None, 150, False, "kept its mean and changed its shape (PSI"),
        (judged(SignalKind.SCORE, name="score"), None, 3, False, "the score moved by 0.8"),
        (judged(SignalKind.EMBEDDING), None, 3, False, "the inputs (embedding) moved by an MMD of 0.21"),
        (judged(SignalKind.ACCURACY, means=(0.97, 0.9)), None, 9, False, "accuracy by outcomes fell from 0.97 to 0.90"),
        (judged(SignalKind.ESTIMATED_ACCURACY, means=(0.9, 0.95)), None, 9, False, "estimated accuracy rose from"),
    ],
)
def test_each_kind_of_drift_has_its_words(
    one: Judged, segment: Segment | None, moved: int, elsewhere: bool, expected: str
) -> None:
    assert expected in said(one, segment=segment, moved=moved, elsewhere=elsewhere)


def test_a_class_is_told_by_its_name_and_its_shares() -> None:
    one = judged(SignalKind.CLASSES, name="classes", effect=Effect(psi=0.4))
    shares = (np.array([0.1, 0.9]), np.array([0.0, 1.0]))
    sentence = say_drift(one, moved=20, segment=None, elsewhere=False, since="", shares=shares, labels=["zero", "one"])
    assert sentence == 'class "zero" went from 10% to 0% of the answers on 20 of 200 devices'


def test_a_time_of_today_is_a_clock_time_and_any_other_a_date() -> None:
    assert say_time(NOON_NS - 140 * MIN_NS, end_ns=NOON_NS) == "09:40"
    assert say_time(NOON_NS - 1_440 * MIN_NS, end_ns=NOON_NS) == "2025-11-21T12:00Z"
    wide = Onset(at_ns=NOON_NS - 240 * MIN_NS, earliest_ns=NOON_NS - 360 * MIN_NS, latest_ns=NOON_NS - 60 * MIN_NS)
    assert say_since(wide, step_ns=60 * MIN_NS, end_ns=NOON_NS) == " since some time between 06:00 and 11:00"
    assert say_since(None, step_ns=1, end_ns=1) == ""


def test_what_was_not_found_says_from_how_much_and_what_could_be_hidden() -> None:
    one = judged(effect=Effect(shift_rank=0.01, shift_interval=(-0.02, 0.04)))
    sentence = say_not_found(one, adjusted=0.4, tests=5, compared_with="the reference")
    assert sentence == (
        "brightness: no drift was found against the reference (200 devices, 9000 values, p = 0.4 allowing for 5 "
        "signals); values rank +1.0% against it (from -2.0% to +4.0%)"
    )


def test_too_little_data_is_never_called_no_drift() -> None:
    sentence = say_lacking(judged().finding, "4 devices saw 20 values or more and 5 are needed")
    assert sentence == "brightness: not enough evidence, 4 devices saw 20 values or more and 5 are needed"
    nothing = say_report("m 1.0.0", Verdict.NOT_ENOUGH_EVIDENCE, [], compared_with="the reference", top=None)
    assert "no drift" not in nothing
    assert "ships no reference" in nothing


def test_an_accuracy_that_stays_is_not_mentioned() -> None:
    assert say_accuracy(None) == say_accuracy((0.971, 0.969)) == ""
