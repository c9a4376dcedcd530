"""A fleet-week under the drift monitor, without broker and store: what arrived by each look, and what the look said.

The decisions are the server's own (`fleet_server.drift.monitor`): windows that arrived by GRACE_S after an hour's end,
each once, are looked at as the device hours that they are. Invariants:
- a look sees exactly what a server would have then: late windows are missing, and there at a later look;
- outcomes are handed to the watch once, those of the hours since the look before, as the server does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks.drift.null_fleet import DAYS, HOUR_NS, MODEL, MONDAY_NS, VERSION, arrivals, manifest
from fleet_protocol.messages import Window
from fleet_server.drift.findings import SignalFinding, Verdict
from fleet_server.drift.monitor import MonitorSettings, OutcomeWatch, look_at, watch_outcomes
from fleet_server.drift.segments import DeviceFacts
from fleet_server.drift.signals import Reference, reference_of
from fleet_server.drift.tallies import Tally
from fleet_server.drift.watching import GRACE_S
from fleet_server.simulator import VirtualFleet

NS = 10**9


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What a look said. `hour` counts from the week's beginning."""

    hour: int
    signal: str
    sentence: str
    p_value: float | None


@dataclass(kw_only=True)
class Week:
    """All alarms of a fleet-week, and how many looks there were."""

    alarms: list[Alarm] = field(default_factory=list)
    looks: int = 0
    windows: int = 0
    repeats: int = 0

    def first_alarm_h(self, *, after_h: float) -> int | None:
        """The first look with an alarm at or after that hour."""
        return min((alarm.hour for alarm in self.alarms if alarm.hour >= after_h), default=None)

    def has_alarm(self, *, after_h: float) -> bool:
        """Whether any look at or after that hour raised one."""
        return self.first_alarm_h(after_h=after_h) is not None


def watch_week(fleet: VirtualFleet, settings: MonitorSettings, *, days: float = DAYS, first_look_h: int = 1) -> Week:
    """Run the monitor over a fleet's first days; its first look is that many hours after the first window began."""
    reference = reference_of(manifest())
    facts = {
        name: DeviceFacts(labels=character.labels(), cpu_signature=character.hardware.cpu_signature)
        for name, character in zip(fleet.names, fleet.characters, strict=True)
    }
    every_ns, span_ns = settings.look_every_s * NS, settings.span_s * NS
    hours: defaultdict[int, list[Window]] = defaultdict(list)
    known: set[tuple[str, int]] = set()
    week, watch = Week(), OutcomeWatch()
    look_ns = MONDAY_NS + max(every_ns, first_look_h * HOUR_NS)
    stream = arrivals(fleet, days=days)
    arrival = next(stream, None)
    while look_ns <= MONDAY_NS + round(days * 24) * HOUR_NS:
        while arrival is not None and arrival.at_ns <= look_ns + GRACE_S * NS:
            window = arrival.window
            week.windows += 1
            if (window.device, window.sequence) in known:
                week.repeats += 1
            elif window.count:
                known.add((window.device, window.sequence))
                hours[(window.end_ns - 1) // HOUR_NS].append(window)
            arrival = next(stream, None)
        seen = _between(hours, look_ns - span_ns, look_ns)
        report = look_at(reference, seen, facts, start_ns=look_ns - span_ns, end_ns=look_ns, settings=settings)
        fresh = _between(hours, look_ns - every_ns, look_ns)
        watch, outcome_alarm = watch_outcomes(watch, _outcomes(reference, fresh), settings=settings)
        week.looks += 1
        hour = (look_ns - MONDAY_NS) // HOUR_NS
        found = [*report.signals, *([outcome_alarm] if outcome_alarm is not None else [])]
        week.alarms += [_alarm(hour, finding) for finding in found if finding.verdict is Verdict.DRIFT]
        for old in [one for one in hours if one < (look_ns - span_ns) // HOUR_NS - 1]:
            del hours[old]
        look_ns += every_ns
    return week


def _between(hours: dict[int, list[Window]], start_ns: int, end_ns: int) -> list[Window]:
    return [window for hour in range(start_ns // HOUR_NS, end_ns // HOUR_NS) for window in hours.get(hour, ())]


def _outcomes(reference: Reference, windows: list[Window]) -> Tally:
    only = Reference(
        model=MODEL,
        version=VERSION,
        signals=(),
        expected_accuracy=reference.expected_accuracy,
        values=reference.values,
    )
    return Tally(only, step_ns=HOUR_NS).add_all(windows)


def _alarm(hour: int, finding: SignalFinding) -> Alarm:
    return Alarm(hour=hour, signal=finding.signal, sentence=finding.sentence, p_value=finding.adjusted_p_value)
