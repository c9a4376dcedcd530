"""How fast a candidate is here: always beside another model, in turns, so that a slow moment falls on both.

Figures are of one sample at a time in the agent's runtime with its default settings. What is compared are medians
over rounds; a round is as many runs as fill some hundred microseconds, so that the clock's own cost vanishes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.runtime.session import Arrays, Model

WARM_UP_RUNS = 5
MIN_ROUNDS = 9
MAX_ROUNDS = 400
_ROUND_US = 300.0
_MAX_RUNS_A_ROUND = 50


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Microseconds of one run over the rounds."""

    p50_us: float
    p90_us: float


def measure_in_turns(models: Sequence[Model], sample: Arrays, *, budget_s: float) -> list[Latency]:
    """The latency of each model for `sample` (one sample, prepared), all measured in turns within `budget_s`.

    At least MIN_ROUNDS rounds are measured, however long they take. Raises InferenceError.
    """
    for model in models:
        for _ in range(WARM_UP_RUNS):
            model.execute(sample)
    runs = [_runs_a_round(model, sample) for model in models]
    figures: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + budget_s
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() >= end:
            break
        # who goes first changes: the second finds warmer caches
        places = range(len(models)) if number % 2 else range(len(models) - 1, -1, -1)
        for place in places:
            model, count = models[place], runs[place]
            start = time.perf_counter_ns()
            for _ in range(count):
                model.execute(sample)
            figures[place].append((time.perf_counter_ns() - start) / count / 1000)
    return [
        Latency(p50_us=float(np.percentile(found, 50)), p90_us=float(np.percentile(found, 90))) for found in figures
    ]


def _runs_a_round(model: Model, sample: Arrays) -> int:
    start = time.perf_counter_ns()
    model.execute(sample)
    run_us = max((time.perf_counter_ns() - start) / 1000, 0.1)
    return max(1, min(_MAX_RUNS_A_ROUND, int(_ROUND_US / run_us)))
