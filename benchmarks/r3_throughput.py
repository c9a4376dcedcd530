"""R3: how many answers a second 16 clients get over HTTP and JSON, beside the best of the peers.

Sixteen connections from one thread of wrk on the same machine, MLPerf Tiny keyword spotting; the median over rounds.
The peer that counts is the one with the most requests, in the best of its documented configurations for this load.
"""

from __future__ import annotations

from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.side_by_side import CROWD, compare
from benchmarks.result import Result

ID = "R3"
TITLE = "requests per second of HTTP JSON, 16 clients, kws: ours over the best peer's"
TARGET = 5.0
ROUNDS = 5
ROUND_S = 5


def run() -> Result:
    """Measure everybody. A missing peer or a failed request of ours fails the benchmark: its bar would be unknown."""
    compared = compare(connections=CROWD, rounds=ROUNDS, duration_s=ROUND_S)
    servers = {name: compared.describe(name) for name in compared.turns}
    ours = servers[EDGEFLEET.name]
    best = max(compared.peers, key=lambda name: float(servers[name]["requests_per_s"]), default=None)
    ratio = round(ours["requests_per_s"] / servers[best]["requests_per_s"], 3) if best else 0.0
    by_round = [
        round(own / peer, 3)
        for own, peer in zip(ours["requests_per_s_by_round"], servers[best]["requests_per_s_by_round"], strict=True)
    ] if best else []  # fmt: skip
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f">= {TARGET}",
        holds=ratio >= TARGET and not compared.failed and ours["failures"] == 0,
        figures={
            "best_peer": best,
            "ratio_by_round": by_round,
            "servers": servers,
            "failed": compared.failed,
            "configurations_tried": compared.trials,
            "rounds": ROUNDS,
            "seconds_per_round": ROUND_S,
            "running_at_a_time": 1,
        },
    )
