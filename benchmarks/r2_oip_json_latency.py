"""R2: how long one application waits for one answer over HTTP and JSON, beside the best of the peers.

One connection, one request at a time, MLPerf Tiny keyword spotting; the median of the rounds' medians. The peer that
counts is the one with the lowest median, in the best of its documented configurations. The plain socket client's
medians stand beside wrk's, so that nobody has to believe one client.
"""

from __future__ import annotations

from benchmarks.peers.best_peer import against_the_best
from benchmarks.peers.side_by_side import LONE
from benchmarks.result import Result

ID = "R2"
TITLE = "p50 of Open Inference Protocol v2 JSON, 1 client, kws: ours over the best peer's"
TARGET = 0.25


def run() -> Result:
    """Measure everybody."""
    return against_the_best(benchmark=ID, title=TITLE, connections=LONE, figure="p50_us", at_most=TARGET)
