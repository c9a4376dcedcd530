"""Ours against the best of the peers in one figure: how R2 and R3 judge."""

from __future__ import annotations

from typing import Literal

from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.side_by_side import compare
from benchmarks.result import Result

ROUNDS = 5
ROUND_S = 5


def against_the_best(
    *,
    benchmark: str,
    title: str,
    connections: int,
    figure: Literal["p50_us", "requests_per_s"],
    at_most: float | None = None,
    at_least: float | None = None,
) -> Result:
    """Measure everybody; the ratio of `figure` is ours over the best peer's, bounded on one side.

    A missing peer or a failed request of ours fails the benchmark: its bar would be unknown.
    """
    compared = compare(connections=connections, rounds=ROUNDS, duration_s=ROUND_S)
    servers = {name: compared.describe(name) for name in compared.turns}
    ours = servers[EDGEFLEET.name]
    peers = sorted(compared.peers, key=lambda name: float(servers[name][figure]), reverse=at_least is not None)
    best = peers[0] if peers else None
    holds, ratio, by_round = False, None, []
    if best is not None:
        ratio = round(ours[figure] / servers[best][figure], 3)
        rounds = zip(ours[f"{figure}_by_round"], servers[best][f"{figure}_by_round"], strict=True)
        by_round = [round(own / peer, 3) for own, peer in rounds]
        within = (at_most is None or ratio <= at_most) and (at_least is None or ratio >= at_least)
        holds = within and not compared.failed and ours["failures"] == 0
    return Result(
        id=benchmark,
        title=title,
        ratio=ratio if ratio is not None else float("inf") if at_least is None else 0.0,
        target=f"<= {at_most}" if at_least is None else f">= {at_least}",
        holds=holds,
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
