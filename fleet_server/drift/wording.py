"""Findings in plain words, as a person would write them. Pure.

Invariants:
- every sentence stands by itself: what moved, by how much, on how many of how many devices, where, since when;
- too little data is "not enough evidence", never "no drift"; nothing found is "no drift was found";
- times are UTC: the clock time on the day the span ends, else RFC 3339.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fleet_server.drift.findings import Effect, Segment, SignalFinding, SignalKind, Verdict
from fleet_server.drift.onset import Onset
from fleet_server.drift.pairing import Judged
from fleet_server.drift.signals import Matrix

KEPT_MEAN_SD = 0.05
"""A mean that moved by less than this many standard deviations stayed: what changed is the shape."""
EXACT_ONSET_STEPS = 3
_NS = 10**9
_SIGMA, _MINUS = "\N{GREEK SMALL LETTER SIGMA}", "\N{MINUS SIGN}"
_TITLES = {
    SignalKind.SCORE: "the score",
    SignalKind.CLASSES: "the predicted classes",
    SignalKind.EMBEDDING: "the inputs (embedding)",
    SignalKind.ACCURACY: "accuracy by outcomes",
    SignalKind.ESTIMATED_ACCURACY: "estimated accuracy",
}


def title_of(finding: SignalFinding) -> str:
    """What a signal is called in a sentence."""
    return _TITLES.get(finding.kind, finding.signal)


def say_time(at_ns: int, *, end_ns: int) -> str:
    """A moment as people read it: "09:40" on the day the span ends, else "2026-11-22T09:40Z"."""
    at, end = (datetime.fromtimestamp(time_ns // _NS, UTC) for time_ns in (at_ns, end_ns))
    return f"{at:%H:%M}" if at.date() == end.date() else f"{at:%Y-%m-%dT%H:%MZ}"


def say_since(onset: Onset | None, *, step_ns: int, end_ns: int) -> str:
    """The end of a sentence: " since 09:40", or the interval where it is wide; "" without an onset."""
    if onset is None:
        return ""
    if onset.latest_ns - onset.earliest_ns <= EXACT_ONSET_STEPS * step_ns:
        return f" since {say_time(onset.at_ns, end_ns=end_ns)}"
    first, last = say_time(onset.earliest_ns, end_ns=end_ns), say_time(onset.latest_ns, end_ns=end_ns)
    return f" since some time between {first} and {last}"


def say_drift(
    judged: Judged,
    *,
    moved: int,
    segment: Segment | None,
    elsewhere: bool,
    since: str,
    shares: tuple[Matrix, Matrix] | None = None,
    labels: Sequence[str] = (),
) -> str:
    """What moved, on how many devices, where, since when. `elsewhere`: devices outside the segment moved too.

    `shares` are those of the classes, expected and seen.
    """
    return f"{_say_move(judged, segment, shares, labels)}{_say_where(judged, moved, segment, elsewhere)}{since}"


def say_not_found(judged: Judged, *, adjusted: float, tests: int, compared_with: str) -> str:
    """That nothing was found, from how much, and how far the mean could have moved unseen."""
    finding = judged.finding
    units = "one device" if finding.devices == 1 else f"{finding.devices} devices"
    sentence = (
        f"{title_of(finding)}: no drift was found against {compared_with} ({units}, {finding.values} values, "
        f"p = {adjusted:.2g} allowing for {tests} signals)"
    )
    return sentence + _say_interval(finding.effect) + say_unusable(finding)


def say_lacking(finding: SignalFinding, lacking: str) -> str:
    """That nothing can be said, and why."""
    return f"{title_of(finding)}: not enough evidence, {lacking}"


def say_unusable(finding: SignalFinding) -> str:
    """The end of a sentence about values that were no values."""
    return f"; {finding.unusable} more values were missing, NaN or infinite" if finding.unusable else ""


def say_accuracy(means: tuple[float, float] | None) -> str:
    """The end of a sentence: what accuracy is estimated to have been and to be."""
    if means is None or round(means[0], 2) == round(means[1], 2):
        return ""
    return f"; estimated accuracy {means[0]:.2f} → {means[1]:.2f}"


def say_report(
    what: str,
    verdict: Verdict,
    findings: Sequence[SignalFinding],
    *,
    compared_with: str,
    top: SignalFinding | None,
) -> str:
    """The report in one sentence, or two."""
    if not findings:
        return f"{what}: not enough evidence, its bundle ships no reference to compare with."
    silent = [title_of(finding) for finding in findings if finding.verdict is Verdict.NOT_ENOUGH_EVIDENCE]
    open_words = f" Not enough evidence on {', '.join(silent)}." if silent else ""
    if verdict is Verdict.DRIFT and top is not None:
        moved = [title_of(f) for f in findings if f.verdict is Verdict.DRIFT and f is not top]
        also = f" Also moved: {', '.join(moved)}." if moved else ""
        return f"{what}: {top.sentence.rstrip('.')}, against {compared_with}.{also}{open_words}"
    if verdict is Verdict.NOT_FOUND:
        return f"{what}: no drift was found in {len(findings)} signals, against {compared_with}."
    return f"{what}: no statement is possible against {compared_with}.{open_words}"


def _say_move(
    judged: Judged, segment: Segment | None, shares: tuple[Matrix, Matrix] | None, labels: Sequence[str]
) -> str:
    finding, name = judged.finding, title_of(judged.finding)
    if finding.kind in (SignalKind.ACCURACY, SignalKind.ESTIMATED_ACCURACY) and judged.means is not None:
        before, after = judged.means
        verb = "fell" if after < before else "rose"
        return f"{name} {verb} from {before:.2f} to {after:.2f}"
    effect = finding.effect or Effect()
    if finding.kind is SignalKind.EMBEDDING:
        return f"{name} moved by an MMD of {effect.mmd:.2f}" if effect.mmd is not None else f"{name} moved"
    if finding.kind is SignalKind.CLASSES and shares is not None:
        return _say_classes(*shares, labels)
    shift = segment.shift_sd if segment is not None and segment.shift_sd is not None else effect.shift_sd
    if shift is not None and abs(shift) >= KEPT_MEAN_SD:
        return f"{name} moved by {_signed(shift)} {_SIGMA}"
    size = f" (PSI {effect.psi:.2f})" if effect.psi is not None else ""
    return f"{name} kept its mean and changed its shape{size}"


def _say_classes(expected: Matrix, seen: Matrix, labels: Sequence[str]) -> str:
    place = int(abs(seen - expected).argmax())
    name = f'"{labels[place]}"' if place < len(labels) else str(place)
    return f"class {name} went from {expected[place]:.0%} to {seen[place]:.0%} of the answers"


def _say_where(judged: Judged, moved: int, segment: Segment | None, elsewhere: bool) -> str:
    if judged.finding.devices == 1:
        return f" on device {judged.names[0]}" if len(judged.names) == 1 else ""
    if segment is None:
        devices = len(judged.names)
        return f" on {moved} of {devices} devices" if moved else f" over {devices} devices together"
    where = f"{segment.by}={segment.value}"
    most = ", and less elsewhere" if elsewhere else ""
    if not segment.devices_moved:
        return f" over the {segment.devices} devices at {where} together{most}"
    return f" on {segment.devices_moved} of {segment.devices} devices at {where}{most}"


def _say_interval(effect: Effect | None) -> str:
    if effect is None or effect.shift_rank is None or effect.shift_interval is None:
        return ""
    low, high = effect.shift_interval
    return f"; values rank {effect.shift_rank:+.1%} against it (from {low:+.1%} to {high:+.1%})"


def _signed(value: float) -> str:
    return f"{value:.1f}" if value > 0 else f"{_MINUS}{abs(value):.1f}"
