"""A process that takes windows in, or merges, until it is killed; it prints a line for each batch or round.

`python -m tests.server.merging.working ingest|merge FOLDER T0_NS SEED`. Time runs FASTER times as fast as it does, from
T0_NS of the real clock on, so that graces, leases and rounds of minutes pass within a test.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.server.merging.fleets import H0_NS, HOUR_NS, Clock, open_fleet, windows_of

FASTER = 200
WINDOWS = 400
BATCH = 20


def fast_now_ns(t0_ns: int) -> int:
    """The hastened clock, the same in every process."""
    return H0_NS + HOUR_NS + (time.time_ns() - t0_ns) * FASTER


class HastenedClock(Clock):
    """`fast_now_ns` as a clock."""

    def __init__(self, t0_ns: int) -> None:
        super().__init__()
        self._t0_ns = t0_ns

    def __call__(self) -> int:
        return fast_now_ns(self._t0_ns)


def main() -> None:
    """Work as the arguments say."""
    deed, folder, t0_ns, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with open_fleet(folder, HastenedClock(t0_ns)) as fleet:
        if deed == "merge":
            merger = fleet.merger()
            while True:
                merger.step()
                _tell("merged")
                time.sleep(0.01)
        windows = windows_of(1, count=WINDOWS)
        random.Random(seed).shuffle(windows)
        for at in range(0, WINDOWS, BATCH):
            fleet.take_in(windows[at : at + BATCH])
            _tell("took in")
        _tell("all is in")


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
