"""The checks over a batch of windows: what is kept, what is set aside, what sketches are left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from fleet_protocol.messages import Window
from fleet_server.ingest.checks import Facts, Fault, Reason, Span, faults_of
from fleet_server.ingest.sketch_checks import check_sketches


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A window that does not count, with every reason."""

    window: Window
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A sketch that does not count; its window does."""

    device: str
    fault: Fault


@dataclass(slots=True, kw_only=True)
class Checked:
    """What the checks made of a batch: `kept` without their bad sketches, `originals` the same as they came."""

    kept: list[Window] = field(default_factory=list)
    originals: list[Window] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def check_windows(windows: Sequence[Window], facts_of: Callable[[Window], Facts], span: Span) -> Checked:
    """Every check over a batch."""
    checked = Checked()
    passed: list[tuple[Window, Facts]] = []
    for window in windows:
        facts = facts_of(window)
        faults = faults_of(window, facts, span)
        if faults:
            checked.set_aside.append(SetAside(window=window, faults=faults))
        else:
            passed.append((window, facts))
    for (window, _), verdict in zip(passed, check_sketches(passed), strict=True):
        if verdict.contradiction:
            fault = Fault(Reason.CONTRADICTION, verdict.contradiction)
            checked.set_aside.append(SetAside(window=window, faults=[fault]))
            continue
        checked.dropped += [Dropped(device=window.device, fault=fault) for fault in verdict.faults]
        checked.kept.append(replace(window, **verdict.changes) if verdict.changes else window)
        checked.originals.append(window)
    return checked
