"""A rollout's view drawn for a terminal: state, stages, devices by phase, gates, and what happens next. Pure.

Invariants: every text goes through `printable`; a field that an older server does not send is left out, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fleet_server.cli.output import printable

BAR_WIDTH = 50
MAX_GATE_ROWS = 30
MAX_SEGMENT_ROWS = 12

_STATES = {
    "COMPLETED": "bold green",
    "ACTIVE": "bold cyan",
    "PAUSED": "bold yellow",
    "ROLLING_BACK": "bold red",
    "ROLLED_BACK": "bold red",
}
_VERDICTS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_HARMED = ("REJECTED", "FAILED", "REVERTED", "LOST")


def stage_of(view: Mapping[str, Any]) -> str:
    """Where a rollout is: "2/3 BAKING"."""
    step = f" {view['step']}" if view["step"] else ""
    return f"{min(view['stage'] + 1, view['stages'])}/{view['stages']}{step}"


def draw_rollout(view: Mapping[str, Any], *, now_ns: int, trouble: str = "") -> RenderableType:
    """The whole screen; `trouble` says why the view is not fresh."""
    parts: list[RenderableType] = [_head(view), _stages(view), _devices(view)]
    if view.get("segments"):
        parts.append(_segments(view["segments"]))
    if view.get("gates"):
        parts.append(_gates(view["gates"]))
    parts.append(_next(view, now_ns))
    if trouble:
        parts.append(Text(printable(trouble), style="bold yellow"))
    title = Text(printable(f" {view['model']} {view['version']} "), style="bold")
    return Panel(Group(*parts), title=title, subtitle=Text(printable(f" {view['id']} ")), box=box.ROUNDED)


def duration(seconds: float) -> str:
    """A time span in two units at most: "3 h 20 min"."""
    whole = max(0, round(seconds))
    for (long, big), (short, small) in (
        (("d", 86_400), ("h", 3_600)),
        (("h", 3_600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {long}" + (f" {rest} {short}" if rest else "")
    return f"{whole} s"


def _head(view: Mapping[str, Any]) -> RenderableType:
    head = Text()
    head.append(view["state"], style=_STATES.get(view["state"], "bold"))
    head.append(f"  stage {stage_of(view)}")
    if view["bake_extensions"]:
        head.append(f"  bake extended {view['bake_extensions']} times", style="yellow")
    if view["reason"]:
        head.append(f"\n{printable(view['reason'])}")
    return head


def _stages(view: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    exposures: Sequence[int] = view.get("exposures", [])
    for index, stage in enumerate(view["policy"]["stages"]):
        is_done = index < view["stage"] or view["state"] == "COMPLETED"
        is_now = index == view["stage"] and not is_done
        mark = Text(
            "✓" if is_done else "▶" if is_now else "·", style="green" if is_done else "cyan" if is_now else "dim"
        )
        size = f"{stage['count']} devices" if stage.get("count") else f"{stage['percent']:g} %"
        new = f"+{exposures[index]} devices" if index < len(exposures) and exposures[index] else ""
        approval = "approval" if stage.get("needs_approval") else ""
        table.add_row(mark, f"stage {index + 1}", size, f"bake {duration(stage['bake_s'])}", new, Text(approval))
    return table


def _devices(view: Mapping[str, Any]) -> RenderableType:
    phases: Mapping[str, int] = view.get("phases", {})
    waiting = (view.get("next") or {}).get("waiting", 0)
    harmed = sum(count for phase, count in phases.items() if phase in _HARMED)
    healthy = phases.get("HEALTHY", 0)
    moving = sum(phases.values()) - harmed - healthy
    bar = Text()
    shares = (("━", "green", healthy), ("━", "yellow", moving), ("━", "red", harmed), ("─", "dim", waiting))
    for (char, style, _), cells in zip(shares, _cells([count for *_, count in shares]), strict=True):
        bar.append(char * cells, style=style)
    line = Text(f"{view['exposed_count']} exposed")
    for phase, count in sorted(phases.items()):
        style = "red" if phase in _HARMED else "green" if phase == "HEALTHY" else "yellow"
        line.append("  ").append(f"{phase} {count}", style=style)
    if waiting:
        line.append(f"  {waiting} of this stage waiting", style="dim")
    if view.get("control_count"):
        line.append(f"  control {view['control_count']}", style="cyan")
    if view.get("restored_count"):
        line.append(f"  restored {view['restored_count']}", style="red")
    return Group(bar, line) if bar.plain else line


def _cells(counts: Sequence[int]) -> list[int]:
    """Widths in proportion to the counts, at least one cell for any that is there."""
    whole = sum(counts)
    if not whole:
        return [0] * len(counts)
    widths = [max(1, count * BAR_WIDTH // whole) if count else 0 for count in counts]
    widths[widths.index(max(widths))] += BAR_WIDTH - sum(widths)
    return widths


def _segments(segments: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("SEGMENT", "EXPOSED", "RESTORED", "TAKEN BACK BECAUSE"):
        table.add_column(column, overflow="fold")
    for each in segments[:MAX_SEGMENT_ROWS]:
        because = printable(each.get("halted_because", ""))
        table.add_row(
            Text(printable(each["segment"] or "-")),
            str(each["exposed"]),
            str(each["restored"]),
            Text(because, style="red"),
        )
    return _with_rest(table, len(segments) - MAX_SEGMENT_ROWS, "segments")


def _gates(gates: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("GATE", "STAGE", "VERDICT", "WHY"):
        table.add_column(column, overflow="fold", no_wrap=column in ("GATE", "VERDICT"))
    for each in gates[:MAX_GATE_ROWS]:
        name = each["gate"] + (f" [{each['segment']}]" if each.get("segment") else "")
        table.add_row(
            Text(printable(name)),
            str(each["stage"] + 1),
            Text(each["verdict"], style=_VERDICTS.get(each["verdict"], "")),
            Text(printable(each["explanation"])),
        )
    return _with_rest(table, len(gates) - MAX_GATE_ROWS, "results")


def _next(view: Mapping[str, Any], now_ns: int) -> RenderableType:
    line = Text("next: ", style="bold")
    upcoming: Mapping[str, Any] = view.get("next") or {}
    what = upcoming.get("what", "")
    line.append(printable(what) if what else "nothing, it is over", style="default")
    until_ns = upcoming.get("until_ns")
    if until_ns:
        left_s = (until_ns - now_ns) / 1e9
        line.append(f", in {duration(left_s)}" if left_s > 0 else ", due now", style="cyan")
    if upcoming.get("per_minute") is not None:
        line.append(f"; pace {upcoming['per_minute']:.4g} a minute")
    if upcoming.get("blocked"):
        line.append(f"; {upcoming['blocked']} wait for their maintenance hours")
    if needed := view.get("approvals_needed"):
        given = [each["actor"] for each in view.get("approvals", []) if each["stage"] == view["stage"]]
        line.append(f"; approvals {len(given)}/{needed} {printable(', '.join(given))}".rstrip())
    return line


def _with_rest(table: Table, rest: int, what: str) -> RenderableType:
    return Group(table, Text(f"and {rest} more {what}", style="dim")) if rest > 0 else table
