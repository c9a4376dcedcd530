"""Simulated rollouts: the real engine over a simulated fleet and clock. See docs/rollout_simulation.md."""

from fleet_server.rollouts.simulation.breaks import Breaks, parse_breaks
from fleet_server.rollouts.simulation.run import End, Judge, Look, RunResult, Scenario, simulate_rollout
from fleet_server.rollouts.simulation.summary import Share, Summary, binomial_share, simulate_rollouts, summarize
from fleet_server.rollouts.simulation.world import RecordedDevices, WorldSettings

__all__ = [
    "Breaks",
    "End",
    "Judge",
    "Look",
    "RecordedDevices",
    "RunResult",
    "Scenario",
    "Share",
    "Summary",
    "WorldSettings",
    "binomial_share",
    "parse_breaks",
    "simulate_rollout",
    "simulate_rollouts",
    "summarize",
]
