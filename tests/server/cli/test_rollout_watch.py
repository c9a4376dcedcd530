"""`fleet rollout watch`: live in a terminal, lines elsewhere, through a restart of the server, to the right end."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fleet_server.cli import rollout_watch
from fleet_server.cli.rollout_screen import BAR_WIDTH, draw_rollout, duration
from fleet_server.cli.rollout_watch import watch_rollout
from fleet_server.errors import UnavailableError

_NOW_NS = 1_780_000_000 * 10**9
_GATE = {"gate": "error_rate", "stage": 1, "verdict": "inconclusive", "explanation": "not enough", "evidence": {}}
_VIEW: dict[str, Any] = {
    "id": "4f6fa0c2d3",
    "model": "digits",
    "version": "1.1.0",
    "state": "ACTIVE",
    "stage": 1,
    "stages": 2,
    "step": "BAKING",
    "reason": "",
    "bake_extensions": 1,
    "exposed_count": 250,
    "control_count": 100,
    "restored_count": 0,
    "policy": {"stages": [{"percent": 5, "bake_s": 3600}, {"percent": 100, "bake_s": 7200, "needs_approval": True}]},
    "phases": {"HEALTHY": 248, "DOWNLOADING": 1, "REVERTED": 1},
    "exposures": [50, 200],
    "next": {"what": "the end of the bake", "until_ns": _NOW_NS + 3500 * 10**9, "waiting": 3, "blocked": 2,
             "per_minute": 42.0},
    "approvals": [{"actor": "key:ann", "stage": 1, "at_ns": 0}],
    "approvals_needed": 1,
    "segments": [{"segment": "aarch64", "exposed": 9, "restored": 9, "halted_because": "latency\x1b[2J"}],
    "gates": [_GATE],
}  # fmt: skip


def _but(**changes: Any) -> dict[str, Any]:
    return {**_VIEW, **changes}


def _reader(*answers: dict[str, Any] | Exception) -> Callable[[], dict[str, Any]]:
    left: Iterator[dict[str, Any] | Exception] = iter(answers)

    def read() -> dict[str, Any]:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_watch, "POLL_S", 0.001)


def _drawn(view: dict[str, Any], **told: Any) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(draw_rollout(view, now_ns=_NOW_NS, **told))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def test_the_screen_has_stages_phases_control_gates_segments_pace_and_what_is_next() -> None:
    text = _drawn(_VIEW, trouble="the server is away")
    for part in (
        "ACTIVE", "2/2 BAKING", "extended 1 times", "✓  stage 1  5 %", "▶  stage 2", "+200 devices", "approval",
        "250 exposed", "HEALTHY 248", "REVERTED 1", "control 100", "3 of this stage waiting", "error_rate",
        "inconclusive", "aarch64", "in 58 min 20 s", "pace 42 a minute", "2 wait for their maintenance", "1/1 key:ann",
        "the server is away",
    ):  # fmt: skip
        assert part in text, part
    assert "━" * (BAR_WIDTH - 1) + "─ " in text  # three of 253 still wait
    assert "\x1b" not in text


def test_a_view_of_an_older_server_is_drawn_without_what_it_does_not_say() -> None:
    old = {name: _VIEW[name] for name in _VIEW if name not in ("phases", "exposures", "next", "segments", "approvals")}
    assert "250 exposed" in _drawn(old)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (3500, "58 min 20 s"), (7200, "2 h"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_a_duration_reads_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("ROLLED_BACK", 1), ("CANCELED", 1)])
def test_elsewhere_each_change_is_a_line_and_the_end_is_the_exit_code(
    state: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = _but(gates=[{**_GATE, "verdict": "fail"}], phases={"HEALTHY": 2})
    assert (
        watch_rollout(_reader(_VIEW, _VIEW, _but(phases={"HEALTHY": 1}), failed, _but(state=state, step=None))) == code
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ACTIVE 2/2 BAKING, 250 devices (DOWNLOADING 1, HEALTHY 248, REVERTED 1)"
    assert [line for line in lines if "gate" in line] == [
        "  gate error_rate: inconclusive: not enough",
        "  gate error_rate: fail: not enough",
        "  gate error_rate: inconclusive: not enough",
    ]
    assert lines[-2].startswith(state)


def test_json_is_one_value_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    done = _but(state="COMPLETED")
    assert watch_rollout(_reader(_VIEW, _VIEW, done), as_json=True) == 0
    assert [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()] == [_VIEW, done]


def test_a_server_that_restarts_is_asked_again_and_the_user_told(capsys: pytest.CaptureFixture[str]) -> None:
    away = UnavailableError("cannot reach the server at http://fleet")
    assert watch_rollout(_reader(_VIEW, away, away, _VIEW, _but(state="COMPLETED"))) == 0
    out = capsys.readouterr().out
    assert out.count("cannot reach the server at http://fleet; trying again") == 1
    assert out.count("the server is back") == 1


def test_a_server_that_never_answered_or_stays_away_is_an_error() -> None:
    away = UnavailableError("cannot reach the server")
    with pytest.raises(UnavailableError):
        watch_rollout(_reader(away))
    with pytest.raises(UnavailableError):
        watch_rollout(_reader(_VIEW, away), max_away_s=0)


def test_a_watch_with_a_timeout_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch_rollout(lambda: _VIEW, timeout_s=0) == 1
    assert "still ACTIVE after 0 s" in capsys.readouterr().out


_IN_A_TERMINAL = """
import signal, sys
from fleet_server.cli.rollout_watch import watch_rollout
import msgspec
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background inherits that it is ignored
view = msgspec.json.decode(sys.argv[1])
try:
    watch_rollout(lambda: view)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    """A real terminal: the cursor is hidden while it draws, and shown again at the end."""
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[3])}
    watching = subprocess.Popen(
        [sys.executable, "-c", _IN_A_TERMINAL, msgspec.json.encode(_VIEW).decode()],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env=environment,
    )
    os.close(other_end)
    said = b""
    deadline = time.monotonic() + 30
    try:
        while b"250 exposed" not in said and time.monotonic() < deadline:
            said += _read(terminal)
        watching.send_signal(signal.SIGINT)
        while b"\x1b[?25h" not in said and time.monotonic() < deadline:
            said += _read(terminal)
        assert watching.wait(timeout=30) == 130
    finally:
        watching.kill()
        watching.wait()
        os.close(terminal)
    assert said.rindex(b"\x1b[?25h") > said.index(b"\x1b[?25l")


def _read(terminal: int) -> bytes:
    if not select.select([terminal], [], [], 1.0)[0]:
        return b""
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is closed
        return b""
