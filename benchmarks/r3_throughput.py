"""R3: how many answers a second 16 clients get over HTTP and JSON, beside the best of the peers.

Sixteen connections from one thread of wrk on the same machine, MLPerf Tiny keyword spotting; the median over rounds.
The peer that counts is the one with the most requests, in the best of its documented configurations for this load.
"""

from __future__ import annotations

from benchmarks.peers.best_peer import against_the_best
from benchmarks.peers.side_by_side import CROWD
from benchmarks.result import Result

ID = "R3"
TITLE = "requests per second of HTTP JSON, 16 clients, kws: ours over the best peer's"
TARGET = 5.0


def run() -> Result:
    """Measure everybody."""
    return against_the_best(benchmark=ID, title=TITLE, connections=CROWD, figure="requests_per_s", at_least=TARGET)
