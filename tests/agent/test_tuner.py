"""Measuring models in the background, and loading them again when that pays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent import Agent
from edge_agent.config import AgentConfig, RuntimeSection
from edge_agent.errors import ModelLoadError
from edge_agent.tuner import BackgroundTuner
from tests.agent.runtime import onnx_files
from tests.real_servers.processes import wait_until

KEY = ("m", "main")


class Bench:
    """What a tuner is given, and what it did with it."""

    def __init__(self) -> None:
        self.idle = True
        self.is_better = True
        self.fault: Exception | None = None
        self.measured: list[Path] = []
        self.reloaded: list[tuple[str, str]] = []
        self.tuner = BackgroundTuner(
            measure=self._measure, reload=self.reloaded.append, is_idle=lambda: self.idle, look_every_s=0.01
        )

    def _measure(self, file: Path) -> bool:
        self.measured.append(file)
        if self.fault is not None:
            raise self.fault
        return self.is_better


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.tuner.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return onnx_files.linear(tmp_path / "m.onnx")


def test_a_model_that_can_be_faster_is_loaded_again_and_measured_once(bench: Bench, file: Path) -> None:
    bench.tuner.offer(KEY, file)
    wait_until(lambda: bench.reloaded == [KEY], timeout_s=60, what="the tuner")
    bench.tuner.offer(KEY, file)  # as loading it again does
    wait_until(lambda: bench.tuner._thread is None, timeout_s=60, what="the tuner")

    assert bench.measured == [file]


def test_a_model_that_is_fast_already_is_left_at_work(bench: Bench, file: Path) -> None:
    bench.is_better = False
    bench.tuner.offer(KEY, file)
    wait_until(lambda: bench.tuner._thread is None, timeout_s=60, what="the tuner")

    assert (bench.measured, bench.reloaded) == ([file], [])


def test_nothing_is_measured_while_calls_run(bench: Bench, file: Path) -> None:
    asked = threading.Event()

    def is_idle() -> bool:
        asked.set()
        return bench.idle

    bench.idle = False
    bench.tuner._is_idle = is_idle
    bench.tuner.offer(KEY, file)
    for _ in range(3):
        asked.clear()
        assert asked.wait(10)
    assert bench.measured == []
    bench.idle = True

    wait_until(lambda: bench.measured == [file], timeout_s=60, what="the tuner")


@pytest.mark.parametrize("fault", [ModelLoadError("gone"), ZeroDivisionError("a bug")])
def test_a_measurement_that_fails_harms_nothing(bench: Bench, file: Path, tmp_path: Path, fault: Exception) -> None:
    bench.fault = fault
    bench.tuner.offer(KEY, file)
    wait_until(lambda: bench.tuner._thread is None, timeout_s=60, what="the tuner")
    bench.fault = None
    bench.tuner.offer(KEY, onnx_files.linear(tmp_path / "other.onnx"))

    wait_until(lambda: bench.reloaded == [KEY], timeout_s=60, what="the tuner")


def test_an_agent_with_a_cache_remembers_what_it_measured(tmp_path: Path, file: Path) -> None:
    config = AgentConfig(runtime=RuntimeSection(cache_dir=tmp_path / "cache"))
    x = {"x": np.ones((1, 3), dtype=np.float32)}

    def tunings() -> list[Path]:
        return list((tmp_path / "cache" / "tunings").glob("*"))

    with Agent(models={"m": file}, config=config) as agent:
        wait_until(lambda: len(tunings()) == 1, timeout_s=60, what="the tuner")
        assert agent.infer("m", x).outputs["scores"].tolist() == [[0.0, 6.0]]
    written = [path.stat().st_mtime_ns for path in tunings()]
    with Agent(models={"m": file}, config=config) as agent:
        tuner = agent._models._tuner
        assert tuner is not None
        wait_until(lambda: tuner._thread is None, timeout_s=60, what="the tuner")
    assert [path.stat().st_mtime_ns for path in tunings()] == written


def test_an_agent_without_a_cache_measures_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[..., object]] = []
    monkeypatch.setattr(BackgroundTuner, "offer", lambda *_: made.append(BackgroundTuner))
    with Agent(models={"m": file}):
        pass
    assert made == []
