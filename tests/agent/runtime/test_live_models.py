"""Swapping models while they answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import UnknownModelError
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.live_models import LiveModels, Serving
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.session import Model
from edge_agent.telemetry.series import Series, SeriesKey
from tests.agent.runtime import onnx_files


@pytest.fixture
def residency() -> Iterator[Residency]:
    opened = Residency(budget_bytes=None, on_event=lambda kind, name, detail: None)
    yield opened
    opened.close()


@pytest.fixture
def slot(tmp_path: Path, residency: Residency) -> ModelSlot:
    return loaded(residency, tmp_path, weight=2.0)


def loaded(residency: Residency, folder: Path, *, weight: float) -> ModelSlot:
    file = onnx_files.linear(folder / f"{weight}.onnx", weight=weight)
    return residency.add(str(weight), lambda: Model.load(file), size_hint_bytes=1)


def serving(
    slot: ModelSlot,
    *,
    name: str = "m",
    version: str = "1.0.0",
    arm: str = "main",
    weight: float = 1.0,
    shadow: bool = False,
) -> Serving:
    return Serving(
        name=name, version=version, variant="fp32", arm=arm, weight=weight, shadow=shadow, bundle=None, slot=slot,
        lanes=Lanes(name=name, limit=1, max_waiting=1, max_batch=1),
        series=Series(SeriesKey(name, version, "fp32", arm)), labels=(), task="regression",
    )  # fmt: skip


def test_an_unknown_model_is_told_with_what_is_loaded(slot: ModelSlot) -> None:
    live = LiveModels()
    with pytest.raises(UnknownModelError, match="nothing yet"):
        live.get("m")
    live.swap(serving(slot, name="b"))
    live.swap(serving(slot, name="a"))

    with pytest.raises(UnknownModelError, match=r"no model 'm' is loaded here: loaded is a, b"):
        live.get("m")


def test_a_swap_answers_with_what_served_before(slot: ModelSlot) -> None:
    live = LiveModels()
    first, second = serving(slot), serving(slot, version="2.0.0")

    assert live.swap(first) is None
    assert live.swap(second) is first
    assert live.get("m").only is second
    assert live.names() == ("m",)
    assert live.all() == (second,)


def test_removing_a_model_leaves_the_others_and_is_repeatable(slot: ModelSlot) -> None:
    live = LiveModels()
    live.swap(serving(slot, name="a"))
    kept = serving(slot, name="b")
    live.swap(kept)

    removed = live.remove("a")

    assert removed is not None
    assert removed.name == "a"
    assert live.remove("a") is None
    assert live.all() == (kept,)


def test_several_arms_answer_and_a_shadow_answers_nobody(slot: ModelSlot) -> None:
    live = LiveModels()
    main, other = serving(slot, weight=3.0), serving(slot, arm="b", version="2.0.0")
    live.swap(other)
    assert live.get("m").only is other
    live.swap(main)
    live.swap(serving(slot, arm="candidate", shadow=True))

    route = live.get("m")

    assert route.only is None
    assert [(choice.name, choice.weight) for choice in route.choices] == [("b", 1.0), ("main", 3.0)]
    assert route.main() is main
    assert live.remove("m", "b") is other
    assert live.get("m").only is main
    live.remove("m")
    with pytest.raises(UnknownModelError):  # what is left is a shadow
        live.get("m")
    assert live.names() == ()
    assert [entry.arm for entry in live.all()] == ["candidate"]


def test_a_new_weight_loads_nothing(slot: ModelSlot) -> None:
    live = LiveModels()
    live.swap(serving(slot))
    live.swap(serving(slot, arm="b"))

    live.set_weight("m", "b", 9.0)
    live.set_weight("m", "absent", 9.0)

    assert [choice.weight for choice in live.get("m").choices] == [9.0, 1.0]
    changed = live.find("m", "b")
    assert changed is not None
    assert changed.slot is slot


def test_no_call_fails_or_sees_a_mixture_while_models_are_swapped_under_load(
    tmp_path: Path, residency: Residency
) -> None:
    live = LiveModels()
    versions = [serving(loaded(residency, tmp_path, weight=w), version=f"{w}.0.0") for w in (1, 2, 3)]
    live.swap(versions[0])
    stop = threading.Event()
    wrong: list[object] = []
    answered = [0] * 4

    def call(caller: int) -> None:
        x = np.ones((1, 3), dtype=np.float32)
        while not stop.is_set():
            try:
                current = live.get("m").arms[0]
                assert current.slot.model is not None
                score = current.slot.model.run({"x": x})["scores"][0, 1]
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
