"""Many threads at once: whatever happens around it, each caller gets its own answer."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import AgentError, DeadlineExceededError, InferenceError, OverloadedError, WouldWaitError
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.session import Model
from tests.agent.runtime.onnx_files import mlperf_tiny, row_of_table

THREADS = 24
CALLS = 250


def change_limits(lanes: Lanes, stop: threading.Event, seed: int) -> None:
    choose = random.Random(seed)
    while not stop.wait(0.002):
        lanes.set_limit(choose.randint(1, 4))


@pytest.mark.parametrize(("name", "shape"), [("ad.onnx", (640,)), ("kws.onnx", (49, 10, 1))])
def test_every_caller_gets_its_own_answer_under_batching_deadlines_priorities_and_limit_changes(
    name: str, shape: tuple[int, ...]
) -> None:
    model = Model.load(mlperf_tiny(name))
    model.warm()
    assert model.is_batchable
    rng = np.random.default_rng(7)
    inputs = [rng.normal(scale=2, size=(1 + at % 3, *shape)).astype(np.float32) for at in range(32)]
    want = [model.execute({"input_1": array})["Identity"] for array in inputs]
    rows = [row for answer in want for row in answer]
    assert not any(np.allclose(one, other, rtol=1e-2, atol=1e-3) for one, other in itertools.pairwise(rows))
    lanes = Lanes(name="m", limit=1, max_waiting=16, max_batch=16)
    ends: Counter[str] = Counter()
    counting = threading.Lock()
    batches: Counter[int] = Counter()

    def caller(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(CALLS):
            at = choose.randrange(len(inputs))
            timeout_s = choose.choice([None, None, 0.0002, 0.003, 5.0])
            deadline_ns = None if timeout_s is None else time.perf_counter_ns() + int(timeout_s * 1e9)
            arrays = {"input_1": inputs[at]}
            how = "answered"
            batch_size = 0
            try:
                if choose.random() < 0.2 and lanes.try_enter():
                    try:
                        outputs = model.execute(arrays)
                    finally:
                        lanes.leave()
                else:
                    outputs, _, batch_size = lanes.run(
                        model, arrays, priority=choose.randint(-1, 1), deadline_ns=deadline_ns,
                        may_wait=choose.random() < 0.95,
                    )  # fmt: skip
                np.testing.assert_allclose(outputs["Identity"], want[at], rtol=1e-3, atol=1e-4)
            except (OverloadedError, DeadlineExceededError, WouldWaitError) as error:
                how = type(error).__name__
            with counting:
                ends[how] += 1
                batches[batch_size] += 1

    stop = threading.Event()
    changer = threading.Thread(target=change_limits, args=(lanes, stop, 3))
    changer.start()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(caller, seed) for seed in range(THREADS)]:
                future.result(60)
    finally:
        stop.set()
        changer.join()

    load = lanes.load()
    assert lanes.wait_idle(10)
    assert sum(ends.values()) == THREADS * CALLS
    assert ends["answered"] > THREADS * CALLS / 4
    assert ends["DeadlineExceededError"] == load.cancelled
    assert ends["OverloadedError"] == load.shed
    assert max(batches) > 1
    assert load.waiting == 0


def test_bad_calls_fail_alone_among_many_good_ones(tmp_path: Path) -> None:
    model = Model.load(row_of_table(tmp_path / "table.onnx"))
    model.warm()
    model.is_batchable = True
    lanes = Lanes(name="m", limit=2, max_waiting=1000, max_batch=8)
    wrong: list[str] = []

    def caller(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(CALLS):
            rows = [choose.choice([0, 1]) for _ in range(choose.randint(1, 3))]
            bad = choose.random() < 0.1
            try:
                outputs, _, _ = lanes.run(model, {"x": np.array([*rows, 99] if bad else rows)})
                got: object = outputs["y"].tolist()
            except AgentError as error:
                got = type(error)
            if got != (InferenceError if bad else [(10.0, 20.0)[row] for row in rows]):
                wrong.append(f"{rows} {bad} {got}")

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(caller, seed) for seed in range(THREADS)]:
            future.result(60)

    assert wrong == []
    assert lanes.wait_idle(10)
    assert lanes.load().busy_ns > 0
