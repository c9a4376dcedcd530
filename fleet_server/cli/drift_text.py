"""Drift reports in a terminal: the verdict in a sentence first, then a line for each signal.

A signal's course is a row of bars, one per time: their height is size, on the fixed scale of the signal's kind that the
page's heat map uses too; a dot is a time without data.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.cli.output import show_line, show_table
from fleet_server.drift.findings import DriftReport, SignalFinding, Verdict
from fleet_server.drift.page import words
from fleet_server.drift.page.blocks import VERDICTS
from fleet_server.drift.page.heat_map import Times, blocks, times_of
from fleet_server.drift.page.markup import short
from fleet_server.drift.page.signals import in_order
from fleet_server.drift.page.sizes import SCALES, headline

COURSE_CHARS = 32
MAX_NAME_CHARS = 40
NO_DATA = "·"
_BARS = "▁▂▃▅▆█"
_HEADS = ("SIGNAL", "VERDICT", "SEVERITY", "SIZE", "P", "MOVED", "SINCE (UTC)")


def show_reports(reports: Sequence[DriftReport]) -> None:
    """Print reports, the sentence of each first; what moved stands on top."""
    for report in reports:
        show_line(report.sentence)
        for said in cautions(report):
            show_line(said)
        if not report.signals:
            continue
        times = times_of(report, most=COURSE_CHARS)
        course = () if times is None else (course_head(times),)
        show_table((*_HEADS, *course), [signal_row(report, signal, times) for signal in in_order(report)])
        for signal in in_order(report):
            if signal.verdict is Verdict.DRIFT and signal.sentence:
                show_line(f"  {signal.sentence}")


def cautions(report: DriftReport) -> list[str]:
    """What was not read, in sentences."""
    said = []
    if report.devices_sampled_of:
        said.append(f"A sample of {words.of(report.seen.devices, report.devices_sampled_of)} devices was read.")
    if report.windows_truncated:
        windows = words.plural(report.windows, "window")
        said.append(f"Not all of the span was read, but {windows}: look back less far to see all.")
    return said


def course_head(times: Times) -> str:
    """The head of the bars: from when, and how long each is."""
    return f"FROM {words.moment(times.start_ns)}, {words.length(times.step_ns * times.group)} EACH"


def signal_row(report: DriftReport, signal: SignalFinding, times: Times | None) -> tuple[str, ...]:
    """A signal's line: one text per column."""
    size = headline(signal, report)
    is_judged = signal.verdict is not Verdict.NOT_ENOUGH_EVIDENCE
    row = (
        short(signal.signal, most=MAX_NAME_CHARS),
        VERDICTS[signal.verdict],
        signal.severity.value if signal.verdict is Verdict.DRIFT else "",
        size.text if size else "",
        words.probability(signal.adjusted_p_value) if signal.adjusted_p_value is not None else "",
        words.of(signal.devices_moved, signal.devices) if is_judged else "",
        "" if signal.onset_ns is None else words.moment(signal.onset_ns, near_ns=report.end_ns),
    )
    return row if times is None else (*row, course_of(signal, times))


def course_of(signal: SignalFinding, times: Times) -> str:
    """The bars of a signal, at most COURSE_CHARS."""
    width = times.step_ns * times.group
    places = -(-times.columns // times.group)
    bars = [NO_DATA] * places
    for one in blocks(signal.timeline, times):
        bars[(one.start_ns - times.start_ns) // width] = _BARS[SCALES[signal.kind].level(one.cell.size)]
    return "".join(bars)
