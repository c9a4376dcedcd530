"""Swapping models while they answer."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import UnknownModelError
from edge_agent.runtime.live_models import LiveModels, Serving
from edge_agent.runtime.session import Model
from tests.agent.runtime import onnx_files


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.load(onnx_files.linear(tmp_path / "linear.onnx"))


def serving(model: Model, *, name: str = "m", version: str = "1.0.0") -> Serving:
    return Serving(
        name=name, version=version, variant="fp32", arm="main", bundle=None, model=model, labels=(), task="regression"
    )


def test_an_unknown_model_is_told_with_what_is_loaded(model: Model) -> None:
    live = LiveModels()
    with pytest.raises(UnknownModelError, match="nothing yet"):
        live.get("m")
    live.swap(serving(model, name="b"))
    live.swap(serving(model, name="a"))

    with pytest.raises(UnknownModelError, match=r"no model 'm' is loaded here: loaded is a, b"):
        live.get("m")


def test_a_swap_answers_with_what_served_before(model: Model) -> None:
    live = LiveModels()
    first, second = serving(model), serving(model, version="2.0.0")

    assert live.swap(first) is None
    assert live.swap(second) is first
    assert live.get("m") is second
    assert live.names() == ("m",)
    assert live.all() == (second,)


def test_removing_a_model_leaves_the_others_and_is_repeatable(model: Model) -> None:
    live = LiveModels()
    live.swap(serving(model, name="a"))
    kept = serving(model, name="b")
    live.swap(kept)

    removed = live.remove("a")

    assert removed is not None
    assert removed.name == "a"
    assert live.remove("a") is None
    assert live.all() == (kept,)


def test_a_model_swapped_out_lives_until_its_last_user_lets_go(tmp_path: Path) -> None:
    live = LiveModels()
    live.swap(serving(Model.load(onnx_files.linear(tmp_path / "one.onnx"))))
    in_progress: Serving | None = live.get("m")
    assert in_progress is not None
    gone = weakref.ref(in_progress.model._session)

    live.swap(serving(Model.load(onnx_files.linear(tmp_path / "two.onnx"))))
    gc.collect()
    assert in_progress.model.run({"x": [[1, 1, 1]]})["scores"].tolist() == [[0.0, 6.0]]
    assert gone() is not None
    in_progress = None
    gc.collect()

    assert gone() is None


def test_no_call_fails_or_sees_a_mixture_while_models_are_swapped_under_load(tmp_path: Path) -> None:
    live = LiveModels()
    versions = [
        serving(Model.load(onnx_files.linear(tmp_path / f"{w}.onnx", weight=w)), version=f"{w}.0.0") for w in (1, 2, 3)
    ]
    live.swap(versions[0])
    stop = threading.Event()
    wrong: list[object] = []
    answered = [0] * 4

    def call(caller: int) -> None:
        x = np.ones((1, 3), dtype=np.float32)
        while not stop.is_set():
            try:
                current = live.get("m")
                score = current.model.run({"x": x})["scores"][0, 1]
                if score != 3.0 * int(current.version[0]):
                    wrong.append((current.version, score))
            except Exception as error:  # noqa: BLE001 - any failure at all is what this test looks for
                wrong.append(error)
            answered[caller] += 1

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for turn in range(2_000):
        live.swap(versions[turn % 3])
    while min(answered) < 50:
        live.swap(versions[0])
    stop.set()
    for caller in callers:
        caller.join(30)

    assert wrong == []
