"""The fastest settings for one model on this CPU, by measurement.

Invariants:
1. Only settings that compute the same numbers are candidates: threads, spinning, memory, and between kernels that
   neither saturate nor round more than the model's own arithmetic.
2. Each candidate is measured against the default by turns, two sessions at a time, so that a slower moment of the
   machine falls on both and a small device holds no more than two.
3. `choose`, a pure function of the medians' ratios, leaves the default only for a gain of 5 %, and of 15 % more for
   each doubling of threads: a thread is a core that another call lacks.
4. What is measured is remembered under the model's digest, the ONNX Runtime, the CPU, its quota and the default.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_agent.durable_files import replace_file
from edge_agent.errors import AgentError
from edge_agent.runtime.providers import probe_inputs
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import CPU_PROVIDER, Int8Kernels, SessionSettings, Spinning

LARGEST_RATIO = 0.95
"""A candidate's median over the default's, at which it is worth a change."""
GAIN_PER_DOUBLING = 0.15
"""What each doubling of threads must gain in addition."""
MAX_TUNED_THREADS = 8
MAX_REMEMBERED = 256
"""Tunings in one folder; what was learnt longest ago goes first."""
_MIN_ROUNDS = 5
_MAX_ROUNDS = 400
_ROUND_S = 0.01
_WARM_RUNS = 3
_MAX_RUNS_A_ROUND = 50
_MAX_FILE_BYTES = 64 * 1024
_SUFFIX = ".tuning.json"

Arrays = Mapping[str, NDArray[Any]]
Clock = Callable[[], float]


class TuningRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate: its median, the default's beside it, over how many rounds; `fault` when it did not run."""

    settings: SessionSettings
    median_us: float = 0.0
    default_us: float = 0.0
    rounds: int = 0
    fault: str = ""

    @property
    def ratio(self) -> float:
        """The candidate's median over the default's; infinite where it was not measured."""
        return self.median_us / self.default_us if self.rounds and self.default_us > 0 else math.inf


class TuningResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chosen settings and everything that was measured."""

    settings: SessionSettings
    table: tuple[TuningRow, ...]

    @property
    def is_better(self) -> bool:
        """Whether a candidate was chosen rather than the settings by default."""
        return any(row.settings == self.settings for row in self.table)


def candidates(base: SessionSettings, *, quota: float, fixed_threads: bool = False) -> tuple[SessionSettings, ...]:
    """What to measure against `base`, the likeliest first. With `fixed_threads` their number stays."""
    found: list[SessionSettings] = []
    if base.int8_kernels is Int8Kernels.U8U8:
        found.append(replace(base, int8_kernels=Int8Kernels.FLOAT))
    # memory patterns without an arena keep a block for each shape of input
    found.append(replace(base, arena=not base.arena, mem_pattern=not base.arena))
    threads = 1
    while not fixed_threads and threads <= min(math.ceil(quota), MAX_TUNED_THREADS):
        spins = (Spinning.OFF, Spinning.BOUNDED) if threads > 1 else (Spinning.OFF,)
        found += [replace(base, threads=threads, spinning=spinning) for spinning in spins]
        threads *= 2
    if fixed_threads and base.threads > 1:
        found += [replace(base, spinning=spinning) for spinning in (Spinning.OFF, Spinning.BOUNDED)]
    return tuple(settings for settings in dict.fromkeys(found) if settings != base)


def choose(base: SessionSettings, table: Iterable[TuningRow]) -> SessionSettings:
    """The settings whose ratio to the default is furthest below what its threads must gain; `base` without any."""
    best, best_margin = base, 1.0
    for row in table:
        margin = row.ratio / allowed_ratio(base.threads, row.settings.threads)
        if margin <= best_margin:
            best, best_margin = row.settings, margin
    return best


def allowed_ratio(base_threads: int, threads: int) -> float:
    """The ratio to the default at which settings of `threads` threads are worth it."""
    doublings = max(0.0, math.log2(threads / base_threads))
    return max(0.05, LARGEST_RATIO - GAIN_PER_DOUBLING * doublings)


def tune(
    path: Path,
    *,
    base: SessionSettings,
    quota: float,
    budget_s: float,
    inputs: Arrays | None = None,
    fixed_threads: bool = False,
    clock: Clock = time.perf_counter,
) -> TuningResult:
    """Measure `path` with the candidates on `inputs` (made up when None), for `budget_s` in all.

    Raises ModelLoadError or InferenceError when the model does not run with `base`. Candidates for which no time
    is left are not measured. Only the CPU is tuned.
    """
    if base.providers != (CPU_PROVIDER,):
        return TuningResult(settings=base, table=())
    default = Model.load(path, settings=base)
    arrays = default.prepare(inputs if inputs is not None else probe_inputs(default.inputs))
    default.execute(arrays)
    end = clock() + budget_s
    rows = []
    todo = candidates(base, quota=quota, fixed_threads=fixed_threads)
    for place, settings in enumerate(todo):
        left_s = end - clock()
        if left_s <= 0:
            break
        rows.append(
            _measure(default, path, settings, arrays=arrays, end=clock() + left_s / (len(todo) - place), clock=clock)
        )
    return TuningResult(settings=choose(base, rows), table=tuple(rows))


def _measure(
    default: Model, path: Path, settings: SessionSettings, *, arrays: Arrays, end: float, clock: Clock
) -> TuningRow:
    try:
        candidate = Model.load(path, settings=settings)
        for model in (default, candidate):
            for _ in range(_WARM_RUNS):
                model.execute(arrays)
        figures: dict[bool, list[float]] = {True: [], False: []}
        runs = _runs_a_round(default, arrays, clock)
        for number in range(_MAX_ROUNDS):
            if number >= _MIN_ROUNDS and clock() >= end:
                break
            # who goes first changes: the second finds warmer caches
            for is_default in (True, False) if number % 2 else (False, True):
                model = default if is_default else candidate
                start = clock()
                for _ in range(runs):
                    model.execute(arrays)
                figures[is_default].append((clock() - start) / runs * 1e6)
    except AgentError as error:
        return TuningRow(settings=settings, fault=str(error))
    return TuningRow(
        settings=settings,
        median_us=statistics.median(figures[False]),
        default_us=statistics.median(figures[True]),
        rounds=len(figures[True]),
    )


def _runs_a_round(model: Model, arrays: Arrays, clock: Clock) -> int:
    start = clock()
    model.execute(arrays)
    run_s = max(clock() - start, 1e-6)
    return max(1, min(_MAX_RUNS_A_ROUND, int(_ROUND_S / run_s)))


class KnownTunings:
    """What was measured earlier, one JSON file each in a folder."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> TuningResult | None:
        """The tuning of that key; None when there is none, or it is torn."""
        try:
            with self._file(key).open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=TuningResult)
        except (OSError, msgspec.MsgspecError, ValueError, AgentError):
            return None

    def put(self, key: str, result: TuningResult) -> None:
        """Remember `result`; a disk that does not take it is no error."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._file(key), msgspec.json.encode(result))
            files = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime)
            for old in files[:-MAX_REMEMBERED]:
                old.unlink(missing_ok=True)
        except OSError:
            return

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


def tuning_key(*, digest: str, base: SessionSettings, quota: float, signature: str, runtime_version: str) -> str:
    """The name under which a tuning is remembered."""
    import hashlib

    text = "\n".join((digest, runtime_version, signature, str(math.ceil(quota)), msgspec.json.encode(base).decode()))
    return hashlib.sha256(text.encode()).hexdigest()[:40]
