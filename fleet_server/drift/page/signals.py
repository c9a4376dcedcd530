"""The signals: a table of all of them, then each with its distributions, numbers and segments.

Signals that moved come first and open, the largest on top; the others are folded, for most people need not read them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.drift.findings import DriftReport, Segment, SignalFinding, Verdict
from fleet_server.drift.page import words
from fleet_server.drift.page.blocks import (
    cell,
    facts,
    head,
    number,
    section,
    severity_badge,
    severity_rank,
    table,
    verdict_badge,
    verdict_rank,
)
from fleet_server.drift.page.distributions import picture
from fleet_server.drift.page.markup import Markup, element, joined, short
from fleet_server.drift.page.sizes import headline

MAX_SEGMENTS_SHOWN = 30


def in_order(report: DriftReport) -> list[SignalFinding]:
    """A report's signals: what moved first, the worst and the largest on top; equals stay as they were."""

    def rank(signal: SignalFinding) -> tuple[float, ...]:
        size = headline(signal, report)
        return (
            -verdict_rank(signal.verdict),
            -severity_rank(signal.severity),
            -(size.weight if size else 0.0),
        )

    return sorted(report.signals, key=rank)


def signals_table(
    report: DriftReport, signals: Sequence[SignalFinding], *, anchor: str, links: Sequence[str]
) -> Markup:
    """One line per signal."""
    heads = [
        head("signal"),
        head("verdict"),
        head("severity", hint="how much it matters, by size; not how sure it is"),
        head("size", is_number=True, hint="how far the devices' mean lies from the other side"),
        head("p", is_number=True, hint="adjusted: allows for all signals of this comparison"),
        head("e", is_number=True, hint="e-value: how far a fair bet against no drift has grown"),
        head("devices moved", is_number=True),
        head("since (UTC)"),
    ]
    rows = [_line(signal, link, report) for signal, link in zip(signals, links, strict=True)]
    moved = sum(signal.verdict is Verdict.DRIFT for signal in signals)
    silent = sum(signal.verdict is Verdict.NOT_ENOUGH_EVIDENCE for signal in signals)
    not_judged = f", {silent:,} could not be judged" if silent else ""
    lead = (
        f"{words.of(moved, len(signals))} moved{not_judged}. p allows for all of them: in a fleet without drift "
        f"at most {words.percent(report.alpha)} of looks find one that did."
    )
    return section(anchor, "Signals", lead, table(heads, rows, caption="Signals", sortable=True))


def signal_sections(
    signals: Sequence[SignalFinding], *, expected_name: str, links: Sequence[str]
) -> tuple[Markup | None, Markup | None]:
    """(the signals that moved, those that did not): each with its evidence."""
    pairs = list(zip(signals, links, strict=True))
    moved = [
        element("section", _title(signal), _body(signal, expected_name), id=link, class_="signal")
        for signal, link in pairs
        if signal.verdict is Verdict.DRIFT
    ]
    others = [
        element(
            "details",
            element("summary", element("b", short(signal.signal, most=80)), " ", verdict_badge(signal.verdict)),
            element("div", _body(signal, expected_name)),
            id=link,
        )
        for signal, link in pairs
        if signal.verdict is not Verdict.DRIFT
    ]
    return (joined(moved) if moved else None), (joined(others) if others else None)


def _line(signal: SignalFinding, link: str, report: DriftReport) -> Markup:
    size = headline(signal, report)
    p_value = signal.adjusted_p_value
    return element(
        "tr",
        element("th", element("a", short(signal.signal, most=40), href=f"#{link}"), scope="row", title=signal.signal),
        cell(verdict_badge(signal.verdict), sorts_as=-verdict_rank(signal.verdict)),
        cell(
            words.NONE if signal.verdict is not Verdict.DRIFT else severity_badge(signal.severity),
            sorts_as=-severity_rank(signal.severity),
        ),
        number(size.text if size else words.NONE, size.weight if size else None),
        number(words.probability(p_value), p_value),
        number(words.e_value(signal.e_value), signal.e_value),
        number(_moved(signal), None if signal.verdict is Verdict.NOT_ENOUGH_EVIDENCE else signal.devices_moved),
        cell(
            words.NONE if signal.onset_ns is None else words.moment(signal.onset_ns, near_ns=report.end_ns),
            look="moment",
            sorts_as=signal.onset_ns,
        ),
    )


def _moved(signal: SignalFinding) -> str:
    if signal.verdict is Verdict.NOT_ENOUGH_EVIDENCE:
        return words.NONE
    return words.of(signal.devices_moved, signal.devices)


def _since(signal: SignalFinding) -> str | None:
    if signal.onset_ns is None:
        return None
    said = f"{words.moment(signal.onset_ns)} UTC"
    if signal.onset_earliest_ns is None or signal.onset_latest_ns is None:
        return said
    earliest = words.moment(signal.onset_earliest_ns, near_ns=signal.onset_ns)
    latest = words.moment(signal.onset_latest_ns, near_ns=signal.onset_ns)
    return f"{said}; nineteen times in twenty between {earliest} and {latest}"


def _title(signal: SignalFinding) -> Markup:
    return element(
        "h3", short(signal.signal, most=120), " ", severity_badge(signal.severity), title=short(signal.signal)
    )


def _body(signal: SignalFinding, expected_name: str) -> Markup:
    return joined(
        element("p", signal.sentence, class_="said"),
        picture(signal, expected_name=expected_name),
        _segments(signal.segments),
        _evidence(signal),
        _statistics(signal),
    )


def _evidence(signal: SignalFinding) -> Markup:
    devices = f"{words.plural(signal.devices, 'device')}, {words.plural(signal.values, 'value')}"
    if signal.devices_left_out:
        devices += f"; {words.plural(signal.devices_left_out, 'device')} left out, having seen too little"
    odd = [
        f"{count:,} {said}"
        for count, said in (
            (signal.beyond_reference, "beyond the reference's range"),
            (signal.unusable, "missing, NaN or infinite"),
            (signal.torn_sketches, "sketches that could not be read"),
        )
        if count
    ]
    pairs = [
        ("judged on", devices),
        ("compared with", words.plural(signal.reference_values, "value") if signal.reference_values else None),
        ("since", _since(signal)),
        ("p of this signal alone", words.probability(signal.p_value) if signal.p_value is not None else None),
        (
            "p allowing for all signals",
            words.probability(signal.adjusted_p_value) if signal.adjusted_p_value is not None else None,
        ),
        ("e-value", words.e_value(signal.e_value) if signal.e_value is not None else None),
        ("method", signal.method or None),
        ("also counted", "; ".join(odd) or None),
    ]
    return facts((name, value) for name, value in pairs if value is not None)


def _statistics(signal: SignalFinding) -> Markup | None:
    effect = signal.effect
    if effect is None:
        return None
    interval = effect.shift_interval
    ends = "" if interval is None else f": {words.points(interval[0])} to {words.points(interval[1])}"
    rows = [
        _statistic(name, text, p_value, meaning)
        for name, value, text, p_value, meaning in (
            ("shift", effect.shift_sd, words.sigmas(effect.shift_sd), None, _SHIFT),
            ("rank shift", effect.shift_rank, words.points(effect.shift_rank), None, _RANK + ends),
            ("PSI", effect.psi, words.figure(effect.psi), effect.psi_p_value, "population stability index"),
            ("JSD", effect.jsd, words.figure(effect.jsd), None, "Jensen-Shannon divergence, 0 to 0.69"),
            ("Hellinger", effect.hellinger, words.figure(effect.hellinger), None, "Hellinger distance, 0 to 1"),
            ("KS", effect.ks_distance, words.figure(effect.ks_distance), effect.ks_p_value, _KS),
            ("W1", effect.wasserstein_1, words.figure(effect.wasserstein_1), effect.wasserstein_1_p_value, _W1),
            ("MMD", effect.mmd, words.figure(effect.mmd), effect.mmd_p_value, "maximum mean discrepancy of embeddings"),
        )
        if value is not None
    ]
    if not rows:
        return None
    heads = [head("statistic"), head("size", is_number=True), head("its p", is_number=True)]
    return element(
        "div",
        element("h4", "The numbers"),
        table(heads, rows, caption=f"Statistics of {short(signal.signal, most=80)}"),
    )


_SHIFT = "how far the mean moved, in standard deviations of the other side"
_RANK = "how far the mean rank moved, in 100 ranks"
_KS = "largest gap between the two cumulative distributions"
_W1 = "mean distance moved, in the feature's unit"


def _statistic(name: str, text: str, p_value: float | None, meaning: str) -> Markup:
    return element(
        "tr",
        element("th", name, element("small", meaning), scope="row"),
        number(text, None),
        number(words.probability(p_value), p_value),
    )


def _segments(segments: Sequence[Segment]) -> Markup | None:
    if not segments:
        return None
    heads = [
        head("where"),
        head("devices moved", is_number=True),
        head("shift", is_number=True),
        head("p", is_number=True),
        head("e", is_number=True),
    ]
    rows = [
        element(
            "tr",
            element("th", f"{short(one.by, most=40)}={short(one.value, most=60)}", scope="row"),
            number(words.of(one.devices_moved, one.devices), one.devices_moved),
            number(
                f"{words.signed(one.shift_sd)} {words.SIGMA}" if one.shift_sd is not None else words.NONE, one.shift_sd
            ),
            number(words.probability(one.p_value), one.p_value),
            number(words.e_value(one.e_value), one.e_value),
        )
        for one in segments[:MAX_SEGMENTS_SHOWN]
    ]
    left = len(segments) - len(rows)
    more = element("p", f"{words.plural(left, 'more segment')} not shown.", class_="soft") if left else None
    return element(
        "div",
        element("h4", "Where it moved"),
        table(heads, rows, caption="Segments that moved", sortable=True),
        more,
    )
