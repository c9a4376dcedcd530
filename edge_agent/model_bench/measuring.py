"""Measuring variants of a model with numbers of threads and batch sizes, by turns, on this device.

Invariants: every combination runs once per round and the order turns with each round, so that a slower moment of the
machine falls on all; each run is timed by itself, after warm runs; all sessions live at once, and the memory of each
is the difference around its own load. A model that cannot take a batch size is left out, never padded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.config import RuntimeSection
from edge_agent.errors import InvalidInputError
from edge_agent.runtime.cpu import machine_facts
from edge_agent.runtime.loading import file_settings
from edge_agent.runtime.memory import footprint, pay_first_session
from edge_agent.runtime.model_file import quantizes
from edge_agent.runtime.providers import probe_inputs
from edge_agent.runtime.session import Model

MAX_BATCH = 1024
MAX_COMBINATIONS = 64
"""Variants times threads times batches: each has its share of the time."""
MAX_SAMPLES = 20_000
"""Timed runs of one combination."""
_MIN_ROUNDS = 5
_WARM_RUNS = 2
_ROUND_S = 0.004
_MAX_RUNS_A_ROUND = 64

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[float], None]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchPlan:
    """What to measure: files, numbers of threads, batch sizes, and for how long in all."""

    variants: tuple[Path, ...]
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    seconds: float = 5.0


class BenchRow(Struct, frozen=True, kw_only=True):
    """One combination. Durations of a whole run in microseconds; `items_per_s` counts rows of the batch."""

    variant: str
    threads: int
    batch: int
    p50_us: float
    p90_us: float
    p99_us: float
    items_per_s: float
    load_ms: float
    memory_mb: float
    runs: int
    is_quantized: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    path: Path
    model: Model
    threads: int
    batch: int
    arrays: Arrays
    load_ms: float
    memory_mb: float
    runs_a_round: int
    times_us: list[float]


def measure(
    plan: BenchPlan, *, inputs: Arrays | None, progress: Progress, clock: Clock = time.perf_counter
) -> list[BenchRow]:
    """A row for every combination of `plan` that the models can take, in its order.

    `inputs` are arrays by input name, made up when None, of which the first rows are used and repeated.
    Raises ModelLoadError, InferenceError, and InvalidInputError for inputs that do not fit or batches that no
    model takes.
    """
    candidates = _load(plan, inputs, clock)
    if not candidates:
        raise InvalidInputError(f"no variant takes batches of {', '.join(map(str, plan.batches))}: use --batch 1")
    begin = clock()
    end = begin + plan.seconds
    round_number = 0
    while round_number < _MIN_ROUNDS or clock() < end:
        turn = round_number % len(candidates)
        for candidate in candidates[turn:] + candidates[:turn]:
            _run(candidate, clock)
        round_number += 1
        progress(min(1.0, (clock() - begin) / plan.seconds))
        if all(len(candidate.times_us) >= MAX_SAMPLES for candidate in candidates):
            break
    return [_row(candidate) for candidate in candidates]


def _load(plan: BenchPlan, inputs: Arrays | None, clock: Clock) -> list[_Candidate]:
    pay_first_session()
    machine = machine_facts()
    candidates = []
    for path in plan.variants:
        for threads in plan.threads:
            settings, _ = file_settings(path, runtime=RuntimeSection(threads=threads), machine=machine)
            before, start = footprint(), clock()
            model = Model.load(path, settings=settings)
            load_ms = (clock() - start) * 1000
            memory_mb = footprint().growth_since(before) / 1e6
            for batch in plan.batches:
                arrays = _batch(model, inputs, batch)
                if arrays is None:
                    continue
                for _ in range(_WARM_RUNS):
                    model.execute(arrays)
                start = clock()
                model.execute(arrays)
                run_s = max(clock() - start, 1e-7)
                candidates.append(
                    _Candidate(
                        path=path,
                        model=model,
                        threads=threads,
                        batch=batch,
                        arrays=arrays,
                        load_ms=load_ms,
                        memory_mb=memory_mb,
                        runs_a_round=max(1, min(_MAX_RUNS_A_ROUND, int(_ROUND_S / run_s))),
                        times_us=[],
                    )
                )
    return candidates


def _batch(model: Model, inputs: Arrays | None, batch: int) -> Arrays | None:
    """Inputs of `batch` rows; None when the model's first axes are fixed at another size."""
    if any(not spec.shape or spec.shape[0] not in (-1, batch) for spec in model.inputs):
        # a model without any free axis runs as it is, which is a batch of one to its callers
        return model.prepare(inputs if inputs is not None else probe_inputs(model.inputs)) if batch == 1 else None
    given = inputs if inputs is not None else probe_inputs(model.inputs)
    missing = [spec.name for spec in model.inputs if spec.name not in given]
    if missing:
        raise InvalidInputError(f"the inputs have no {', '.join(missing)}: {model.path.name} takes it")
    return model.prepare({spec.name: _rows(spec.name, given[spec.name], batch) for spec in model.inputs})


def _rows(name: str, array: NDArray[Any], count: int) -> NDArray[Any]:
    if not array.ndim or not len(array):
        raise InvalidInputError(f"input {name!r} has no rows")
    repeats = -(-count // len(array))
    return np.ascontiguousarray(np.concatenate([array] * repeats)[:count])


def _run(candidate: _Candidate, clock: Clock) -> None:
    execute, arrays, times = candidate.model.execute, candidate.arrays, candidate.times_us
    if len(times) >= MAX_SAMPLES:
        return
    for _ in range(candidate.runs_a_round):
        start = clock()
        execute(arrays)
        times.append((clock() - start) * 1e6)


def _row(candidate: _Candidate) -> BenchRow:
    p50, p90, p99 = (float(value) for value in np.percentile(candidate.times_us, (50, 90, 99)))
    return BenchRow(
        variant=candidate.path.name,
        threads=candidate.threads,
        batch=candidate.batch,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        items_per_s=candidate.batch / p50 * 1e6,
        load_ms=candidate.load_ms,
        memory_mb=candidate.memory_mb,
        runs=len(candidate.times_us),
        is_quantized=quantizes(candidate.path),
    )
