"""A process that writes windows to an embedded store until it is killed, and prints each acknowledged sequence."""

from __future__ import annotations

import sys
from pathlib import Path

from fleet_server.telemetry_store import EmbeddedStore
from tests.server.telemetry_store.windows import RETENTION_S, T0_NS, window

WINDOWS_PER_WRITE = 7


def main() -> None:
    """Write batches of WINDOWS_PER_WRITE for ever."""
    store = EmbeddedStore(Path(sys.argv[1]))
    store.set_up(raw_retention_s=RETENTION_S)
    sequence = 0
    while True:
        batch = [window(sequence=sequence + n, end_ns=T0_NS + sequence + n) for n in range(1, WINDOWS_PER_WRITE + 1)]
        store.write("home", batch)
        sequence += WINDOWS_PER_WRITE
        sys.stdout.write(f"{sequence}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
