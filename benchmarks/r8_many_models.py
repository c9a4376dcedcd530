"""R8: how often models are loaded again under a memory budget, against the fewest loads possible.

Ten copies of the MLPerf Tiny models, a budget for four of the mean size, calls by Zipf's law (exponent 1, seeded), from
one client and from eight. The ratio is loads over the exact optimum that knows the future, on the order in which the
calls were served, from the same models in memory at the start; the worse of the two runs counts. A failed call is a
miss of the target whatever the ratio. LRU's ratio on the same trace stands beside it. Measured on residency alone,
where the times of calls that found their model in memory and of those that waited for it are told apart, and on the
whole agent, where a call counts as served when it is answered; the worst ratio of all counts.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.belady import fewest_loads, least_recently_used_loads
from benchmarks.result import Result
from edge_agent import Agent
from edge_agent.config import AgentConfig, ModelSection, RuntimeSection
from edge_agent.runtime.residency import AWAKE, ModelSlot, Residency
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import TensorSpec

ID = "R8"
TITLE = "ten models, memory for four, Zipf(1.0) calls: reloads over the fewest possible"
TARGET = 1.5
MODELS = 10
IN_MEMORY = 4
CALLS = 6_000
SEED = 8
KINDS = ("kws", "ic", "vww", "ad")

_ROOT = Path(__file__).resolve().parents[1]


def run() -> Result:
    """Measure the sizes, then residency and the agent, each with one client and with eight."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-r8-") as folder:
        files = _copies(Path(folder))
        runs = [
            measure(files, sizes, IN_MEMORY * sum(sizes) // MODELS, clients=clients)
            for measure, sizes in ((_measure_residency, _sizes(files)), (_measure_agent, _agent_sizes(files)))
            for clients in (1, 8)
        ]
    worst = max(one["ratio"] for one in runs)
    failures = sum(one["failures"] for one in runs)
    return Result(
        id=ID,
        title=TITLE,
        ratio=worst,
        target=f"<= {TARGET}, no failures",
        holds=worst <= TARGET and failures == 0,
        figures={"runs": runs},
    )


def _copies(folder: Path) -> list[Path]:
    source = Path(os.environ.get("EDGEFLEET_MLPERF_TINY", _ROOT.parent / "shared" / "mlperf_tiny"))
    return [
        Path(shutil.copyfile(source / f"{KINDS[number % len(KINDS)]}.onnx", folder / f"model-{number}.onnx"))
        for number in range(MODELS)
    ]


def _loader(path: Path) -> Callable[[], Model]:
    def load() -> Model:
        model = Model.load(path)
        model.warm()
        return model

    return load


def _add_all(residency: Residency, files: list[Path]) -> list[ModelSlot]:
    return [residency.add(path.stem, _loader(path), size_hint_bytes=path.stat().st_size) for path in files]


def _sizes(files: list[Path]) -> list[int]:
    residency = Residency(budget_bytes=None, on_event=lambda *_: None)
    try:
        return [slot.memory_bytes for slot in _add_all(residency, files)]
    finally:
        residency.close()


def _agent_sizes(files: list[Path]) -> list[int]:
    with Agent(config=_config(files, None)) as agent:
        return [agent.describe_model(file.stem).memory_bytes or 0 for file in files]


def _config(files: list[Path], budget: int | None) -> AgentConfig:
    return AgentConfig(
        models={file.stem: ModelSection(path=file) for file in files},
        runtime=RuntimeSection(threads=1, memory_budget_bytes=budget),
    )


def _measure_residency(files: list[Path], sizes: list[int], budget: int, *, clients: int) -> dict[str, Any]:
    residency = Residency(budget_bytes=budget, on_event=lambda *_: None)
    try:
        slots = _add_all(residency, files)
        at_start = [number for number, slot in enumerate(slots) if slot.model is not None]
        loads_before = _loads(residency)
        calls = _ResidencyCalls(residency, slots)
        calls.run(clients)
        loads = _loads(residency) - loads_before
    finally:
        residency.close()
    return {
        "what": "residency",
        "clients": clients,
        **_judged(calls, loads, sizes, budget, at_start),
        "most_used_over_budget": round(calls.most_used_bytes / budget, 3),
        "hit_ms": _percentiles(calls.hits_ms),
        "miss_ms": _percentiles(calls.misses_ms),
    }


def _measure_agent(files: list[Path], sizes: list[int], budget: int, *, clients: int) -> dict[str, Any]:
    with Agent(config=_config(files, budget)) as agent, _LoadsInLog() as log:
        asleep = {entry.name for entry in agent.repository() if entry.reason.startswith("asleep")}
        at_start = [number for number, file in enumerate(files) if file.stem not in asleep]
        calls = _AgentCalls(agent, [file.stem for file in files])
        calls.run(clients)
    return {
        "what": "agent",
        "clients": clients,
        **_judged(calls, log.loads, sizes, budget, at_start),
        "call_ms": _percentiles(calls.all_ms),
    }


def _judged(calls: _Calls, loads: int, sizes: list[int], budget: int, at_start: list[int]) -> dict[str, Any]:
    fewest = fewest_loads(calls.served, sizes_bytes=sizes, budget_bytes=budget, at_start=at_start)
    lru = least_recently_used_loads(calls.served, sizes_bytes=sizes, budget_bytes=budget, at_start=at_start)
    return {
        "budget_mb": round(budget / 1e6, 2),
        "sizes_mb": [round(size / 1e6, 2) for size in sizes],
        "calls": len(calls.served),
        "failures": calls.failures,
        "reloads": loads,
        "fewest_possible": fewest,
        "ratio": round(loads / fewest, 3),
        "lru_ratio": round(lru / fewest, 3),
    }


class _LoadsInLog(logging.Handler):
    """Counts the models that the agent says it loaded again."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.loads = 0
        self._logger = logging.getLogger("edge_agent.agent")
        self._level = self._logger.level

    def emit(self, record: logging.LogRecord) -> None:
        self.loads += AWAKE in record.getMessage()

    def __enter__(self) -> _LoadsInLog:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


def _loads(residency: Residency) -> int:
    return sum(fact.loads for fact in residency.resident())


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 99)} | {"count": len(values)}


class _Calls:
    """The calling side: clients share one seeded list of wanted models, each takes the next."""

    def __init__(self) -> None:
        random = np.random.default_rng(SEED)
        weights = 1 / np.arange(1, MODELS + 1)
        ranked = random.permutation(MODELS)
        self.served: list[int] = []
        self.failures = 0
        self._turns = iter(ranked[random.choice(MODELS, size=CALLS, p=weights / weights.sum())].tolist())
        self._taking = threading.Lock()

    def run(self, clients: int) -> None:
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self) -> None:
        while True:
            with self._taking:
                number = next(self._turns, None)
            if number is None:
                return
            try:
                self.call(number)
            except Exception:  # noqa: BLE001 - any failure at all counts against the target
                self.failures += 1

    def call(self, number: int) -> None:
        raise NotImplementedError


class _ResidencyCalls(_Calls):
    def __init__(self, residency: Residency, slots: list[ModelSlot]) -> None:
        super().__init__()
        self.hits_ms: list[float] = []
        self.misses_ms: list[float] = []
        self.most_used_bytes = 0
        self._residency = residency
        self._slots = slots
        self._inputs = [_zeros(slot.inputs) for slot in slots]

    def call(self, number: int) -> None:
        slot = self._slots[number]
        start = time.perf_counter()
        model = slot.model
        is_hit = model is not None
        if model is None:
            model = self._residency.bring_back(slot)
        slot.uses += 1
        slot.last_used_ns = time.monotonic_ns()
        self.served.append(number)
        model.run(self._inputs[number])
        (self.hits_ms if is_hit else self.misses_ms).append((time.perf_counter() - start) * 1000)
        if not is_hit:
            self.most_used_bytes = max(self.most_used_bytes, self._residency.used_bytes)


class _AgentCalls(_Calls):
    def __init__(self, agent: Agent, names: list[str]) -> None:
        super().__init__()
        self.all_ms: list[float] = []
        self._agent = agent
        self._names = names
        self._inputs = [_zeros(agent.describe_model(name).inputs) for name in names]

    def call(self, number: int) -> None:
        start = time.perf_counter()
        self._agent.infer(self._names[number], self._inputs[number])
        self.served.append(number)
        self.all_ms.append((time.perf_counter() - start) * 1000)


def _zeros(inputs: Sequence[TensorSpec]) -> dict[str, NDArray[np.float32]]:
    return {spec.name: np.zeros([max(size, 1) for size in spec.shape], dtype=np.float32) for spec in inputs}
