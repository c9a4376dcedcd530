"""Several processes take windows in and merge at once, and are killed: the series is that of the windows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.real_servers.processes import Process, wait_until
from tests.server.merging.fleets import Fleet, assert_all_is_as_the_windows_are, marks, windows_of
from tests.server.merging.working import WINDOWS, fast_now_ns

ROOT = Path(__file__).parents[3]
_DEADLINE_S = 60.0


def test_processes_that_are_killed_in_the_middle_leave_the_series_of_the_windows(fleet: Fleet, tmp_path: Path) -> None:
    t0_ns = time.time_ns()
    started: list[Process] = []

    def start(deed: str, seed: int) -> Process:
        arguments: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.server.merging.working",
            deed,
            tmp_path,
            str(t0_ns),
            str(seed),
        ]
        name = f"{deed}-{seed}-{len(started)}"
        started.append(Process(arguments, folder=tmp_path, name=name, env={"PYTHONPATH": str(ROOT)}))
        return started[-1]

    def lines(process: Process) -> int:
        return process.stdout_path.read_bytes().count(b"\n")

    try:
        mergers = [start("merge", 1), start("merge", 2)]
        ingests = [start("ingest", 1), start("ingest", 2)]
        for round_, after in enumerate((2, 5, 9)):  # kill one of each kind in the middle of its work, and start another
            wait_until(lambda: lines(ingests[0]) >= after, _DEADLINE_S, "batches are taken in")  # noqa: B023 - awaited here
            wait_until(lambda: min(map(lines, mergers)) > after, _DEADLINE_S, "rounds are merged")  # noqa: B023 - as above
            ingests.pop(0).kill()
            mergers.pop(0).kill()
            ingests.append(start("ingest", 10 + round_))
            mergers.append(start("merge", 10 + round_))
        for process in ingests:
            wait_until(lambda: b"all is in" in process.stdout_path.read_bytes(), _DEADLINE_S, "all windows are in")  # noqa: B023 - as above
        for process in mergers:
            before = lines(process)
            wait_until(lambda: lines(process) > before + 1, _DEADLINE_S, "merging goes on")  # noqa: B023 - as above
            process.kill()
    finally:
        for process in started:
            process.kill()
    windows = windows_of(1, count=WINDOWS)
    fleet.clock.now_ns = fast_now_ns(t0_ns)
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=False)
    fleet.merge_all()
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)
    assert marks(fleet) == []
