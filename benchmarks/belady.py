"""The fewest reloads any policy could have made on a trace, knowing the future: the yardstick of R8.

Exact for models of unequal sizes, where evicting what is used last (Belady) is only a heuristic: dynamic programming
over the sets of models in memory, so for at most MAX_MODELS. Every call needs its model in memory, as in the agent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_MODELS = 14


def fewest_loads(
    trace: Sequence[int], *, sizes_bytes: Sequence[int], budget_bytes: int, at_start: Collection[int] = ()
) -> int:
    """The least number of loads that answers `trace`, of indices into `sizes_bytes`, from `at_start` in memory."""
    models = len(sizes_bytes)
    assert models <= MAX_MODELS
    sets = np.arange(1 << models)
    total = sum(((sets >> model) & 1) * size for model, size in enumerate(sizes_bytes))
    does_not_fit = total > budget_bytes
    loads = np.full(1 << models, np.inf)  # by the set in memory, at least
    loads[sum(1 << model for model in at_start)] = 0
    _allow_leaving(loads, models)
    for model in trace:
        before = loads.reshape(-1, 2, 1 << model)
        loads = np.full(1 << models, np.inf)
        loads.reshape(-1, 2, 1 << model)[:, 1] = np.minimum(before[:, 1], before[:, 0] + 1)
        loads[does_not_fit] = np.inf
        _allow_leaving(loads, models)
    return int(loads.min())


def least_recently_used_loads(
    trace: Sequence[int], *, sizes_bytes: Sequence[int], budget_bytes: int, at_start: Sequence[int] = ()
) -> int:
    """What plain LRU loads on the same trace. `at_start` from the least to the most recent."""
    memory = dict.fromkeys(at_start)
    loads = 0
    for model in trace:
        if model in memory:
            del memory[model]
        else:
            loads += 1
            while memory and sum(sizes_bytes[one] for one in memory) + sizes_bytes[model] > budget_bytes:
                del memory[next(iter(memory))]
        memory[model] = None
    return loads


def _allow_leaving(loads: NDArray[np.float64], models: int) -> None:
    for model in range(models):
        halves = loads.reshape(-1, 2, 1 << model)
        np.minimum(halves[:, 0], halves[:, 1], out=halves[:, 0])
