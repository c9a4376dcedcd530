"""R2: how long one application waits for one answer over HTTP and JSON, beside the best of the peers.

One connection, one request at a time, MLPerf Tiny keyword spotting; the median of the rounds' medians. The peer that
counts is the one with the lowest median, in the best of its documented configurations. The plain socket client's
medians stand beside wrk's, so that nobody has to believe one client.
"""

from __future__ import annotations

from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.side_by_side import LONE, compare
from benchmarks.result import Result

ID = "R2"
TITLE = "p50 of Open Inference Protocol v2 JSON, 1 client, kws: ours over the best peer's"
TARGET = 0.25
ROUNDS = 5
ROUND_S = 5


def run() -> Result:
    """Measure everybody. A missing peer or a failed request of ours fails the benchmark: its bar would be unknown."""
    compared = compare(connections=LONE, rounds=ROUNDS, duration_s=ROUND_S)
    servers = {name: compared.describe(name) for name in compared.turns}
    ours = servers[EDGEFLEET.name]
    best = min(compared.peers, key=lambda name: float(servers[name]["p50_us"]), default=None)
    ratio = round(ours["p50_us"] / servers[best]["p50_us"], 3) if best else float("inf")
    by_round = [
        round(own / peer, 3)
        for own, peer in zip(ours["p50_us_by_round"], servers[best]["p50_us_by_round"], strict=True)
    ] if best else []  # fmt: skip
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f"<= {TARGET}",
        holds=ratio <= TARGET and not compared.failed and ours["failures"] == 0,
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
