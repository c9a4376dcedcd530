"""Models of plain files: loading, unloading and swapping them while they answer; arms; what the agent tells of them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent import Agent
from edge_agent.config import AgentConfig, ArmSection, LanesSection, ModelSection, RuntimeSection
from edge_agent.errors import MemoryBudgetError, ModelLoadError, UnknownModelError
from edge_agent.local_api.service import CallOptions, RepositoryEntry, RepositoryState
from tests.agent.runtime import onnx_files

X = {"x": np.ones((1, 3), dtype=np.float32)}


def score(agent: Agent, model: str = "m") -> float:
    return float(agent.infer(model, X).outputs["scores"][0, 1])


def replace_file(folder: Path, *, weight: float) -> None:
    onnx_files.linear(folder / "new.onnx", weight=weight).replace(folder / "m.onnx")


def test_loading_again_takes_the_new_file_and_an_unloaded_model_answers_nobody(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "m.onnx", weight=1.0)
    with Agent(models={"m": tmp_path / "m.onnx"}) as agent:
        assert score(agent) == 3.0
        replace_file(tmp_path, weight=2.0)
        assert score(agent) == 3.0
        agent.load_model("m")
        assert score(agent) == 6.0
        agent.unload_model("m")
        with pytest.raises(UnknownModelError):
            agent.infer("m", X)
        assert not agent.health().ready
        assert agent.repository() == [
            RepositoryEntry(name="m", version="0.0.0", state=RepositoryState.UNAVAILABLE, reason="unloaded")
        ]
        agent.load_model("m")
        assert score(agent) == 6.0
        assert [entry.state for entry in agent.repository()] == [RepositoryState.READY]


def test_a_file_that_does_not_load_leaves_the_old_model_at_work(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "m.onnx", weight=1.0)
    with Agent(models={"m": tmp_path / "m.onnx"}) as agent:
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        (tmp_path / "bad.onnx").replace(tmp_path / "m.onnx")
        with pytest.raises(ModelLoadError):
            agent.load_model("m")
        assert score(agent) == 3.0


def test_names_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    with Agent(models={"m": onnx_files.linear(tmp_path / "m.onnx")}) as agent:
        for change in (agent.load_model, agent.unload_model):
            with pytest.raises(UnknownModelError, match="the config has no model 'other': it has m"):
                change("other")


def test_no_call_fails_while_the_model_is_swapped(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "m.onnx", weight=1.0)
    stop = threading.Event()
    wrong: list[object] = []
    answered = [0] * 4

    def call(caller: int, agent: Agent) -> None:
        while not stop.is_set():
            try:
                if (got := score(agent)) not in (3.0, 6.0):
                    wrong.append(got)
            except Exception as error:  # noqa: BLE001 - any failure at all is what this test looks for
                wrong.append(error)
            answered[caller] += 1

    with Agent(models={"m": tmp_path / "m.onnx"}) as agent:
        callers = [threading.Thread(target=call, args=(caller, agent)) for caller in range(4)]
        for caller in callers:
            caller.start()
        for turn in range(30):
            replace_file(tmp_path, weight=1.0 + turn % 2)
            agent.load_model("m")
        while min(answered) < 50:
            agent.load_model("m")
        stop.set()
        for caller in callers:
            caller.join(30)
        assert score(agent) == 6.0

    assert wrong == []


def test_the_arms_of_a_config_share_its_calls(tmp_path: Path) -> None:
    section = ModelSection(
        path=onnx_files.linear(tmp_path / "a.onnx", weight=1.0),
        version="1.0.0",
        arms={
            "b": ArmSection(path=onnx_files.linear(tmp_path / "b.onnx", weight=2.0), version="2.0.0"),
            "c": ArmSection(path=onnx_files.linear(tmp_path / "c.onnx", weight=3.0), version="3.0.0", shadow=True),
        },
    )
    with Agent(config=AgentConfig(models={"m": section})) as agent:
        assert {score(agent) for _ in range(100)} == {3.0, 6.0}
        assert agent.infer("m", X, CallOptions(version="2.0.0")).arm == "b"
        told = {entry.arm: (entry.version, entry.weight, entry.shadow) for entry in agent.describe_models()}
        assert told == {"main": ("1.0.0", 1.0, False), "b": ("2.0.0", 1.0, False), "c": ("3.0.0", 0.0, True)}
        assert agent.describe_model("m").arm == "main"


def test_no_arm_is_exchanged_when_another_does_not_load(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "m.onnx", weight=1.0)
    arm = ArmSection(path=onnx_files.linear(tmp_path / "b.onnx", weight=2.0), version="2.0.0")
    section = ModelSection(path=tmp_path / "m.onnx", version="1.0.0", arms={"b": arm})
    with Agent(config=AgentConfig(models={"m": section})) as agent:
        replace_file(tmp_path, weight=5.0)
        arm.path.write_bytes(b"no model")
        with pytest.raises(ModelLoadError):
            agent.load_model("m")
        assert {score(agent) for _ in range(100)} == {3.0, 6.0}


def test_statistics_add_up(tmp_path: Path) -> None:
    with Agent(models={"m": onnx_files.linear(tmp_path / "m.onnx")}) as agent:
        agent.infer("m", X)
        agent.infer_many("m", [X] * 4)
        (told,) = agent.statistics()

    assert (told.name, told.arm, told.successes, told.failures) == ("m", "main", 5, 0)
    assert told.batches == {1: 1, 4: 1}
    assert told.total_ns >= told.run_ns > 0
    assert told.total_ns == told.queue_ns + told.run_ns or abs(told.total_ns - told.queue_ns - told.run_ns) < 2
    assert told.last_at_ms > 0


def test_a_model_above_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    file = shutil.copy(onnx_files.mlperf_tiny("ad.onnx"), tmp_path / "ad.onnx")
    with pytest.raises(MemoryBudgetError, match=r"model ad: .* of a budget of 1.0 MB"):
        Agent(models={"ad": file}, config=AgentConfig(runtime=RuntimeSection(memory_budget_bytes=1024 * 1024)))


def test_a_sleeping_model_is_ready_and_answers(tmp_path: Path) -> None:
    config = AgentConfig(lanes=LanesSection(max_batch=4))
    with Agent(models={"m": onnx_files.linear(tmp_path / "m.onnx")}, config=config) as agent:
        (description,) = agent.describe_models()
        assert description.max_batch == 4
        (serving,) = agent._path.live.all()
        agent._path._residency.sleep(serving.slot)
        assert [entry.reason for entry in agent.repository()] == ["asleep: loaded again when it is called"]
        assert agent.describe_models() == [description]
        assert score(agent) == 6.0
