"""Who waits for a load, for how long, and what happens when it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.errors import (
    DeadlineExceededError,
    MemoryBudgetError,
    ModelLoadError,
    OverloadedError,
    UnknownModelError,
)
from edge_agent.runtime import memory_ledger
from edge_agent.runtime import residency as residency_module
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.session import Model
from tests.agent.runtime import onnx_files
from tests.agent.runtime.opened_residency import (
    MB,
    ONES,
    Opened,
    in_thread,
    loader,
    loaders,
    opened_in,
    sleeps,
    wait_until,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with opened_in(tmp_path) as made:
        yield made


def test_however_many_wait_the_model_is_loaded_once(opened: Opened) -> None:
    residency, gate, loads = opened(), threading.Event(), list[int]()
    load_file = loader(onnx_files.linear(opened.folder / "slow.onnx"))

    def load() -> Model:
        loads.append(1)
        assert gate.wait(20)
        return load_file()

    gate.set()
    slot = residency.add("slow", load, size_hint_bytes=100)
    residency.sleep(slot)
    gate.clear()
    callers = [in_thread(lambda: residency.bring_back(slot)) for _ in range(8)]
    wait_until(lambda: len(loads) == 2, "second load")
    gate.set()
    for thread, _ in callers:
        thread.join(20)

    assert len(loads) == 2
    assert {id(answers[0]) for _, answers in callers} == {id(slot.model)}


def test_a_load_delays_no_call_of_a_model_in_memory(opened: Opened) -> None:
    residency, gate, loads = opened(), threading.Event(), list[int]()
    load_file = loader(onnx_files.linear(opened.folder / "slow.onnx"))

    def load() -> Model:
        loads.append(1)
        assert gate.wait(20)
        return load_file()

    other = opened.add(residency, "other")
    thread, answers = in_thread(lambda: residency.add("slow", load, size_hint_bytes=100))
    wait_until(lambda: loads == [1], "start of the load")

    assert residency.bring_back(other, timeout_s=0.0).run(ONES)["scores"].tolist() == [[0.0, 6.0]]
    assert residency.used_bytes > other.memory_bytes
    assert answers == []
    gate.set()
    thread.join(20)
    assert isinstance(answers[0], ModelSlot)


def test_a_caller_waits_no_longer_than_it_said_and_the_load_goes_on(opened: Opened) -> None:
    residency, gate = opened(), threading.Event()
    load_file = loader(onnx_files.linear(opened.folder / "slow.onnx"))
    gate.set()

    def load() -> Model:
        assert gate.wait(20)
        return load_file()

    slot = residency.add("slow", load, size_hint_bytes=100)
    residency.sleep(slot)
    gate.clear()

    with pytest.raises(DeadlineExceededError, match=r"slow was asleep and not back in memory after 0\.05 s"):
        residency.bring_back(slot, timeout_s=0.05)
    gate.set()

    assert residency.bring_back(slot, timeout_s=20) is slot.model


def test_a_failed_load_is_told_to_everybody_and_tried_again_after_a_backoff(opened: Opened) -> None:
    residency, attempts, gate = opened(), list[int](), threading.Event()
    path = onnx_files.linear(opened.folder / "gone.onnx")
    gate.set()

    def load() -> Model:
        attempts.append(1)
        assert gate.wait(20)
        return loader(path)()

    slot = residency.add("gone", load, size_hint_bytes=100)
    residency.sleep(slot)
    content = path.read_bytes()
    path.unlink()
    gate.clear()
    callers = [in_thread(lambda: residency.bring_back(slot)) for _ in range(4)]
    wait_until(lambda: len(attempts) == 2, "second attempt")
    wait_until(lambda: all(thread.is_alive() for thread, _ in callers), "waiting callers")
    gate.set()
    for thread, _ in callers:
        thread.join(20)

    assert all(isinstance(answers[0], ModelLoadError) for _, answers in callers)
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"gone\.onnx"):  # the backoff: no second attempt yet
        residency.bring_back(slot)
    assert len(attempts) == 2

    def is_back() -> bool:
        try:
            return residency.bring_back(slot) is slot.model
        except ModelLoadError:
            return False

    wait_until(is_back, "return of the model")
    assert len(attempts) == 3
    assert [kind for kind, _, _ in opened.told].count("model_load_failed") == 1


def test_the_backoff_grows_to_a_bound() -> None:
    waits = [residency_module.backoff_s(failures) for failures in range(1, 2000)]

    assert waits[:3] == [0.1, 0.2, 0.4]
    assert waits == sorted(waits)
    assert waits[-1] == residency_module.BACKOFF_MAX_S


def test_what_a_loader_raises_besides_is_a_load_error_and_leaves_no_trace(opened: Opened) -> None:
    residency = opened(10 * MB)

    def load() -> Model:
        raise OSError("the disk is gone")

    with pytest.raises(ModelLoadError, match=r"model broken could not be loaded: .*the disk is gone"):
        residency.add("broken", load, size_hint_bytes=100)

    assert residency.used_bytes == 0
    assert residency.resident() == ()
    assert opened.add(residency, "next").model is not None


def test_a_slot_is_busy_exactly_while_a_call_holds_its_model(opened: Opened) -> None:
    slot = opened.add(opened(), "a")
    seen = [slot.is_busy]

    held = slot.model
    seen.append(slot.is_busy)
    del held
    seen.append(slot.is_busy)

    assert seen == [False, True, False]


def test_with_every_model_in_use_a_load_waits_for_one_to_be_free(opened: Opened) -> None:
    residency = opened(3 * MB)
    slots = [opened.add(residency, name) for name in "ab"]
    held: list[Model | None] = [slot.model for slot in slots]
    assert None not in held

    thread, answers = in_thread(lambda: opened.add(residency, "new"))
    wait_until(lambda: any(sleeps(slot) for slot in slots), "victim")

    assert not answers
    assert residency.used_bytes <= 3 * MB
    held.clear()
    thread.join(20)
    assert isinstance(answers[0], ModelSlot)


def test_a_load_does_not_wait_for_ever_for_calls_that_hold_the_memory(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "ROOM_WAIT_S", 0.1)
    residency = opened(3 * MB)
    sleeper = opened.add(residency, "sleeper")
    slots = [opened.add(residency, name) for name in "ab"]
    residency.sleep(sleeper)
    held = [residency.bring_back(slot) for slot in slots]

    with pytest.raises(OverloadedError, match=r"models in use [2-3]\.\d MB: try again shortly"):
        residency.bring_back(sleeper)
    with pytest.raises(MemoryBudgetError):
        opened.add(residency, "new")

    held.clear()
    assert residency.bring_back(sleeper) is sleeper.model


def test_a_model_that_a_call_never_lets_go_makes_others_sleep_instead_of_blocking(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_ledger, "LEAVING_PATIENCE_S", 0.05)
    residency = opened(4 * MB)
    slots = [opened.add(residency, name) for name in "abc"]
    held = slots[0].model
    assert residency.sleep(slots[0])

    new = opened.add(residency, "new")

    assert held is not None
    assert not sleeps(new)
    assert sum(sleeps(slot) for slot in slots) == 2


def test_the_loader_stays_until_the_last_model_that_left_is_gone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "IDLE_S", 0.01)
    residency = opened()
    slot = opened.add(residency, "a")
    held = [slot.model]
    residency.sleep(slot)
    (working,) = loaders()

    working.join(0.2)

    assert working.is_alive()
    held.clear()
    working.join(20)
    assert not working.is_alive()


def test_a_slot_removed_while_it_loads_is_not_put_back(opened: Opened) -> None:
    residency, gate, loads = opened(10 * MB), threading.Event(), list[int]()
    load_file = loader(onnx_files.linear(opened.folder / "slow.onnx"))
    gate.set()

    def load() -> Model:
        loads.append(1)
        assert gate.wait(20)
        return load_file()

    slot = residency.add("slow", load, size_hint_bytes=100)
    residency.sleep(slot)
    gate.clear()
    thread, answers = in_thread(lambda: residency.bring_back(slot))
    wait_until(lambda: len(loads) == 2, "second load")

    residency.remove(slot)
    gate.set()
    thread.join(20)

    assert isinstance(answers[0], UnknownModelError)
    assert sleeps(slot)
    wait_until(lambda: residency.used_bytes == 0, "end of the model")


def test_an_event_that_is_not_taken_stops_nothing(opened: Opened) -> None:
    def refuse(kind: str, name: str, detail: str) -> None:
        raise ValueError(kind, name, detail)

    residency = Residency(budget_bytes=3 * MB, on_event=refuse)
    try:
        slots = [opened.add(residency, name) for name in "abc"]
        assert all(residency.bring_back(slot) is not None for slot in slots)
    finally:
        residency.close()


def test_the_loader_ends_when_there_is_nothing_to_load_and_starts_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "IDLE_S", 0.02)
    residency = opened()

    slot = opened.add(residency, "a")
    wait_until(lambda: not loaders(), "end of the loader")
    residency.sleep(slot)

    assert residency.bring_back(slot) is slot.model
    wait_until(lambda: not loaders(), "second end of the loader")


def test_after_closing_what_is_in_memory_answers_and_nothing_is_loaded(opened: Opened) -> None:
    residency = opened()
    slot, sleeper = opened.add(residency, "a"), opened.add(residency, "b")
    residency.sleep(sleeper)

    residency.close()
    residency.close()

    assert residency.bring_back(slot).run(ONES)["scores"].tolist() == [[0.0, 6.0]]
    with pytest.raises(OverloadedError, match="closing"):
        residency.bring_back(sleeper)
    assert loaders() == []
