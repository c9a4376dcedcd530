"""`fleet rollout watch`: follows a rollout to its end, live in a terminal, line by line elsewhere.

Invariants: it ends 0 when the rollout completed and 1 when it did not; a server that goes away while it is watched is
asked again for a bounded time and the user told; the terminal is left as it was, also by Ctrl-C.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live

from fleet_server.cli.exits import FAILED
from fleet_server.cli.output import show_json, show_line
from fleet_server.cli.rollout_screen import draw_rollout, stage_of
from fleet_server.errors import UnavailableError

POLL_S = 1.0
MAX_AWAY_S = 900.0
"""How long a server that answered before may be away."""
_ENDS = ("COMPLETED", "ROLLED_BACK", "CANCELED")


def watch_rollout(
    read: Callable[[], dict[str, Any]],
    *,
    timeout_s: float | None = None,
    as_json: bool = False,
    console: Console | None = None,
    max_away_s: float = MAX_AWAY_S,
) -> int:
    """Follow what `read` answers; returns the exit code. Raises UnavailableError where the server stays away."""
    console = console or Console()
    is_live = console.is_terminal and not console.is_dumb_terminal and not as_json
    started = heard = time.monotonic()
    view: dict[str, Any] | None = None
    live = Live(console=console, auto_refresh=False) if is_live else None
    screen: AbstractContextManager[object] = live if live is not None else nullcontext()
    teller = _Teller(as_json=as_json, live=live)
    with screen:
        while True:
            try:
                view, heard, trouble = read(), time.monotonic(), ""
            except UnavailableError as error:
                away_s = time.monotonic() - heard
                if view is None or away_s > max_away_s:
                    raise
                trouble = f"{error}; trying again"
            teller.tell(view, trouble)
            if view["state"] in _ENDS and not trouble:
                return 0 if view["state"] == "COMPLETED" else FAILED
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                if not as_json:
                    show_line(f"still {view['state']} after {timeout_s:g} s")
                return FAILED
            time.sleep(POLL_S)


class _Teller:
    """Says what is new: the whole screen when live, else a line (or JSON value) per change."""

    def __init__(self, *, as_json: bool, live: Live | None) -> None:
        self._as_json = as_json
        self._live = live
        self._told: object = None
        self._gates: dict[tuple[str, str], tuple[int, str]] = {}
        self._trouble = False

    def tell(self, view: dict[str, Any], trouble: str) -> None:
        if self._live is not None:
            self._live.update(draw_rollout(view, now_ns=time.time_ns(), trouble=trouble), refresh=True)
            return
        if bool(trouble) != self._trouble and not self._as_json:
            show_line(trouble or "the server is back")
        self._trouble = bool(trouble)
        now = (view["state"], view["stage"], view["step"], view["reason"], view["exposed_count"], view.get("phases"))
        if now != self._told and not trouble:
            self._told = now
            if self._as_json:
                show_json(view)
            else:
                self._lines(view)

    def _lines(self, view: dict[str, Any]) -> None:
        reason = f": {view['reason']}" if view["reason"] else ""
        counts = ", ".join(f"{phase} {count}" for phase, count in sorted(view.get("phases", {}).items()))
        phases = f" ({counts})" if counts else ""
        show_line(f"{view['state']} {stage_of(view)}, {view['exposed_count']} devices{phases}{reason}")
        for gate in view["gates"]:
            key, verdict = (gate["gate"], gate.get("segment", "")), (gate["stage"], gate["verdict"])
            if self._gates.get(key) != verdict:
                self._gates[key] = verdict
                of = f" of {key[1]}" if key[1] else ""
                show_line(f"  gate {key[0]}{of}: {gate['verdict']}: {gate['explanation']}")
