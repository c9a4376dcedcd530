"""A rollout's plan (`fleet rollout create --dry-run`) as text: who, in what order, how long, how much, what is seen."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fleet_server.cli.output import show_facts, show_line, show_table
from fleet_server.cli.rollout_screen import duration

NAMED_DEVICES = 5
"""Devices named of each stage; --json has more."""


def show_plan(plan: Mapping[str, Any]) -> None:
    """The whole plan."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in plan["left_out"].items())
    show_facts(
        (
            ("dry run", f"{plan['model']} {plan['version']}; nothing was changed"),
            ("starts", f"{datetime.fromtimestamp(plan['starts_ns'] // 10**9, UTC):%Y-%m-%d %H:%M} UTC"),
            ("devices", f"{plan['selected']} selected" + (f"; left out: {left_out}" if left_out else "")),
            ("hardware", ", ".join(f"{count} {name or 'unknown'}" for name, count in plan["hardware"].items())),
            ("control", _named(plan["control"], plan["control_devices"])),
            ("takes at least", duration(plan["least_s"])),
            ("on top of it", "; ".join(plan["waits"])),
            ("downloads", _bytes(plan["size_bytes"])),
            ("order", f'by salt {plan["salt"]}: "salt" in the policy keeps this order'),
        )
    )
    every = [*plan["stages"], *([plan["release"]] if plan["release"] else [])]
    show_table(
        ("STAGE", "NEW", "IN ALL", "BEGINS AFTER", "EXPOSING", "BAKE", "DOWNLOADS", "DEVICES IN ORDER"),
        [
            (
                each["stage"] + 1 if each["bake_s"] else "control",
                each["new"],
                each["total"],
                duration(each["starts_s"]) + (" and approval" if each["needs_approval"] else ""),
                duration(each["deploy_s"]),
                duration(each["bake_s"]),
                _bytes(each["size_bytes"]),
                _named(each["new"], each["devices"], with_count=False),
            )
            for each in every
        ],
    )
    if plan["gates"]:
        show_line("What each gate sees at the end of each bake (80 % power), and how a model fares that is")
        show_line("twice as bad as allowed:")
        show_table(
            ("GATE", "STAGE", "ALLOWED", "SEES FROM", "FAILS", "PASSES"),
            [
                (
                    each["gate"],
                    each["stage"] + 1,
                    _harm(each["margin"], each["unit"]),
                    "never" if each["smallest_harm"] is None else _harm(each["smallest_harm"], each["unit"]),
                    chance(each["bad_fails"]),
                    chance(each["bad_passes"]),
                )
                for each in plan["gates"]
            ],
        )
        for gate, note in dict.fromkeys((each["gate"], each["note"]) for each in plan["gates"] if each["note"]):
            show_line(f"{gate}: {note}")
    for each in plan["broken"]:
        by_stage = ", ".join(f"stage {index + 1} {chance(share)}" for index, share in enumerate(each["passes"]))
        show_line(f"A model that {each['how']} one device in five comes through {each['gate']}: {by_stage}")


def chance(share: float) -> str:
    """A chance in percent, never rounded to certainty."""
    if share <= 0:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.3g} %"


def _harm(value: float, unit: str) -> str:
    if unit == "degrees":
        return f"+{value:.3g} °C"
    if unit == "ratio":
        return f"+{100 * value:.3g} %"
    if unit == "points":
        return f"{100 * value:.3g} points"
    return f"{100 * value:.3g} %" if unit == "share" else f"{value:.3g}"


def _named(count: int, devices: list[str], *, with_count: bool = True) -> str:
    names = " ".join(devices[:NAMED_DEVICES]) + (" …" if count > NAMED_DEVICES else "")
    return f"{count} {names}".rstrip() if with_count else names


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
