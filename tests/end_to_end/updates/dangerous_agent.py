"""The real agent, which dies where the plan in the environment says. It is started as a script.

Plan (JSON): `"kill_at": "THREAD:NUMBER"` sends itself SIGKILL at that crash point; `"record": FILE` writes a line
for every point it passes; `"abort_on": SHA256` with `"abort_while": "warming"` or `"serving"` calls abort() when the
model file of that digest runs for an update, or for a caller; `"machine_boot_id": FILE` is read in place of the
kernel's.

Crash points, counted per thread: before every call of the functions of `edge_agent.durable_files` (they call each
other: before anything, between temporary and rename, between rename and fsync of the folder), after the last of
them, and before and after every SQLite commit of the outbox.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent import durable_files

_WARMING_THREADS = ("updater", "edgefleet-loader")
_COUNTS: Counter[str] = Counter()
_PLAN: dict[str, str] = json.loads(os.environ["DANGEROUS_AGENT_PLAN"])


def pass_point(label: str) -> None:
    """One crash point."""
    thread = threading.current_thread().name
    _COUNTS[thread] += 1
    point = f"{thread}:{_COUNTS[thread]}"
    if "record" in _PLAN:
        with Path(_PLAN["record"]).open("a") as file:
            file.write(f"{point} {label}\n")
    if _PLAN.get("kill_at") == point:
        os.kill(os.getpid(), signal.SIGKILL)


class _CountedConnection(sqlite3.Connection):
    def __exit__(self, *failure: Any) -> Any:
        if not self.in_transaction:
            return super().__exit__(*failure)
        pass_point("before commit")
        result = super().__exit__(*failure)
        pass_point("after commit")
        return result


def _counted(name: str, function: Callable[..., None]) -> Callable[..., None]:
    def counted(*arguments: Any) -> None:
        pass_point(f"before {name} {' '.join(str(a) for a in arguments if isinstance(a, Path))}")
        function(*arguments)
        if name == "sync_folder":
            pass_point("after sync_folder")

    return counted


def _abort_while_running(sha256: str, *, warming: bool) -> None:
    from edge_agent.runtime.session import Model

    execute = Model.execute

    def execute_or_abort(self: Model, *arguments: Any) -> Any:
        if self.path.name == sha256 and (threading.current_thread().name in _WARMING_THREADS) is warming:
            os.abort()
        return execute(self, *arguments)

    Model.execute = execute_or_abort  # type: ignore[assignment, method-assign]  # a native crash cannot be had in any milder way


def main() -> int:
    """Set the traps, then run the agent as ever."""
    for name in ("replace_file", "move_into_place", "sync_folder"):
        setattr(durable_files, name, _counted(name, getattr(durable_files, name)))
    # only now may the modules that import those functions by name be loaded
    from edge_agent import cli
    from edge_agent.control import updater

    sqlite3.connect = partial(sqlite3.connect, factory=_CountedConnection)  # type: ignore[assignment]  # same signature
    if "machine_boot_id" in _PLAN:
        updater._MACHINE_BOOT_ID = Path(_PLAN["machine_boot_id"])
    if "abort_on" in _PLAN:
        _abort_while_running(_PLAN["abort_on"], warming=_PLAN["abort_while"] == "warming")
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
