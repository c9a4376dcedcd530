"""Pure functions of numbers, numpy and scipy only: what evidence says, with a stated error rate."""

from fleet_server.statistics.binomial_sequences import rate_interval
from fleet_server.statistics.confidence_sequences import mean_interval
from fleet_server.statistics.intervals import Interval

__all__ = ["Interval", "mean_interval", "rate_interval"]
