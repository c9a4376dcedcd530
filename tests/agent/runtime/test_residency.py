"""Models that sleep when memory is short, and come back when they are called."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.errors import (
    MemoryBudgetError,
    UnknownModelError,
)
from edge_agent.runtime.memory import resident_bytes, return_freed_memory
from edge_agent.runtime.model_slot import Place
from edge_agent.runtime.residency import Residency
from edge_agent.runtime.session import Model
from tests.agent.runtime import onnx_files
from tests.agent.runtime.opened_residency import (
    MB,
    ONES,
    Opened,
    awake,
    large_file_in,
    loader,
    opened_in,
    sleeps,
    wait_until,
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with opened_in(tmp_path) as made:
        yield made


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    return large_file_in(tmp_path)


def test_a_slot_knows_its_model_whether_it_sleeps_or_not(opened: Opened) -> None:
    residency = opened()
    slot = opened.add(residency, "a")

    assert not sleeps(slot)
    assert residency.bring_back(slot).run(ONES)["scores"].tolist() == [[0.0, 6.0]]
    assert residency.sleep(slot)

    assert sleeps(slot)
    assert [spec.name for spec in (*slot.inputs, *slot.outputs)] == ["x", "scores"]
    assert slot.is_batchable
    assert slot.load_s > 0
    assert slot.memory_bytes > 1000
    assert opened.told == [("model_asleep", "a", "on request")]


def test_loading_the_same_file_again_measures_nearly_the_same(opened: Opened) -> None:
    residency = opened()
    for name in ("kws", "ic", "vww", "ad"):
        path = onnx_files.mlperf_tiny(f"{name}.onnx")
        sizes = [residency.add(name, loader(path), size_hint_bytes=path.stat().st_size).memory_bytes for _ in range(4)]

        assert max(sizes) <= 1.1 * min(sizes), name
        assert path.stat().st_size < min(sizes) < path.stat().st_size + 2.5 * MB, name


def test_unloading_gives_the_memory_back_to_the_system(opened: Opened, large_file: Path) -> None:
    residency = opened()
    opened.add(residency, "first")  # libraries that the first model touches are not the large model's
    return_freed_memory()
    before = resident_bytes()
    slot = residency.add("large", loader(large_file), size_hint_bytes=large_file.stat().st_size)
    loaded, measured = resident_bytes(), slot.memory_bytes

    residency.remove(slot)
    del slot

    assert loaded - before > 45 * MB
    assert 50 * MB < measured < 55 * MB
    wait_until(lambda: resident_bytes() < before + 5 * MB, "fall of the resident memory")


def test_many_blocks_of_weights_go_back_to_the_system_as_well(opened: Opened, tmp_path: Path) -> None:
    path = large_file_in(tmp_path, layers=60)
    residency = opened()
    slot = residency.add("layered", loader(path), size_hint_bytes=path.stat().st_size)
    for _ in range(2):  # what malloc has freed once, it takes from its heap the next time
        residency.sleep(slot)
        residency.bring_back(slot)
    loaded = resident_bytes()

    residency.sleep(slot)

    assert loaded > 50 * MB
    wait_until(lambda: resident_bytes() < loaded - 40 * MB, "fall of the resident memory")


def test_a_size_measured_while_other_memory_was_freed_is_not_kept(opened: Opened) -> None:
    slot = opened.add(opened(), "a")
    place = Place(slot=slot, load=lambda: slot.model or loader(Path("absent"))(), file_bytes=100, identity=None)

    assert place.size_from(200, is_disturbed=True, estimate_bytes=1000) == 1000
    assert place.size_from(800, is_disturbed=False, estimate_bytes=1000) == 800
    assert place.size_from(200, is_disturbed=True, estimate_bytes=800) == 800
    assert place.size_from(10, is_disturbed=False, estimate_bytes=800) == 100


def test_models_sleep_so_that_the_others_fit(opened: Opened) -> None:
    residency = opened(4 * MB)
    slots = [opened.add(residency, name, weight=weight) for weight, name in enumerate("abcde", start=1)]

    assert residency.used_bytes <= 4 * MB
    assert slots[-1].model is not None
    assert 2 <= len(awake(residency)) <= 3
    assert {kind for kind, _, _ in opened.told} == {"model_asleep"}

    for weight, slot in enumerate(slots, start=1):
        answer = residency.bring_back(slot).run(ONES)["scores"]
        assert answer.tolist() == [[0.0, 3.0 * weight]]
        assert residency.used_bytes <= 4 * MB


def test_a_model_that_is_called_stays_and_one_that_is_not_sleeps(opened: Opened) -> None:
    residency = opened(4 * MB)
    busy, idle = opened.add(residency, "busy"), opened.add(residency, "idle")
    busy.uses += 1000

    for name in "abcdef":
        opened.add(residency, name).uses += 1

    assert busy.model is not None
    assert sleeps(idle)


def test_a_pinned_model_never_sleeps(opened: Opened) -> None:
    residency = opened(4 * MB)
    pinned = opened.add(residency, "pinned", pinned=True)

    for name in "abcdef":
        opened.add(residency, name).uses += 1000

    assert pinned.model is not None
    assert not residency.sleep(pinned)


def test_a_model_that_cannot_fit_is_refused_with_the_numbers(opened: Opened) -> None:
    residency = opened(3 * MB)
    opened.add(residency, "pinned", pinned=True)

    with pytest.raises(MemoryBudgetError) as refused:
        residency.add("large", loader(Path("absent.onnx")), size_hint_bytes=2 * MB)

    message = str(refused.value)
    assert message.startswith("no memory for model large: it is expected to take 4.1 MB of a budget of 3.0 MB; pinned")
    assert message.endswith("raise memory_budget_bytes, unpin or remove a model")
    assert opened.told == [("model_refused", "large", message)]


def test_a_model_larger_than_it_looked_is_let_go_again(opened: Opened, large_file: Path) -> None:
    residency = opened(20 * MB)
    other = opened.add(residency, "other", pinned=True)
    return_freed_memory()
    before = resident_bytes()

    with pytest.raises(MemoryBudgetError, match=r"model large: it takes 5\d\.\d MB of a budget of 20\.0 MB"):
        residency.add("large", loader(large_file), size_hint_bytes=100)

    wait_until(lambda: residency.used_bytes == other.memory_bytes, "end of the large model")
    wait_until(lambda: resident_bytes() < before + 5 * MB, "fall of the resident memory")


def test_the_measured_size_of_a_file_replaces_the_estimate(opened: Opened) -> None:
    path = onnx_files.linear(opened.folder / "small.onnx")
    residency = opened(20 * MB)
    # judged by the size that is claimed for it, it could not be loaded a second time
    residency.remove(residency.add("small", loader(path), size_hint_bytes=10 * MB, path=path))
    opened.add(residency, "pinned", pinned=True)
    residency.add("half", loader(path), size_hint_bytes=7 * MB, pinned=True)

    again = residency.add("again", loader(path), size_hint_bytes=10 * MB, path=path)

    assert again.memory_bytes >= 10 * MB
    with pytest.raises(MemoryBudgetError):
        residency.add("unknown", loader(path), size_hint_bytes=10 * MB, pinned=True)


def test_memory_counts_until_the_last_call_lets_go(opened: Opened) -> None:
    residency = opened(10 * MB)
    slot = opened.add(residency, "a")
    held: Model | None = slot.model
    assert held is not None
    size = residency.used_bytes

    residency.sleep(slot)

    assert residency.used_bytes == size > 0
    assert held.run(ONES)["scores"].tolist() == [[0.0, 6.0]]
    held = None
    wait_until(lambda: residency.used_bytes == 0, "end of the model")


def test_an_idle_model_sleeps_before_one_in_use(opened: Opened) -> None:
    residency = opened(3 * MB)
    in_use, idle = opened.add(residency, "in-use"), opened.add(residency, "idle")
    idle.uses += 1000
    held = in_use.model

    opened.add(residency, "new")

    assert in_use.model is held is not None
    assert sleeps(idle)


def test_a_shadow_puts_nobody_to_sleep_and_goes_first(opened: Opened) -> None:
    residency = opened(4 * MB)
    shadow = opened.add(residency, "shadow", must_answer=False)
    shadow.uses += 1000
    slots = [opened.add(residency, name) for name in "ab"]
    opened.add(residency, "c")

    assert sleeps(shadow)
    before = awake(residency)
    with pytest.raises(MemoryBudgetError, match="may not put those that must answer to sleep"):
        residency.bring_back(shadow)
    assert awake(residency) == before

    while slots:
        residency.remove(slots.pop())
    assert residency.bring_back(shadow) is shadow.model


def test_pinning_loads_a_sleeping_model_or_leaves_it_unpinned(opened: Opened) -> None:
    residency = opened(3 * MB)
    slots = [opened.add(residency, name) for name in "abc"]

    residency.pin(slots[0])
    residency.pin(slots[1])
    with pytest.raises(MemoryBudgetError):
        residency.pin(slots[2])

    assert [slot.pinned for slot in slots] == [True, True, False]
    residency.unpin(slots[0])
    residency.pin(slots[2])
    assert [slot.model is None for slot in slots] == [True, False, False]


def test_a_removed_slot_is_gone_and_removing_it_again_is_nothing(opened: Opened) -> None:
    residency = opened(10 * MB)
    slot, sleeper = opened.add(residency, "a"), opened.add(residency, "b")
    residency.sleep(sleeper)

    for _ in range(2):
        residency.remove(slot)
        residency.remove(sleeper)

    assert residency.resident() == ()
    assert not residency.sleep(slot)
    with pytest.raises(UnknownModelError, match="b is no longer loaded here"):
        residency.bring_back(sleeper)


def test_a_call_that_found_its_slot_before_the_removal_still_finds_the_model(opened: Opened) -> None:
    residency = opened(10 * MB)
    slot = opened.add(residency, "a")

    residency.remove(slot)

    assert residency.bring_back(slot).run(ONES)["scores"].tolist() == [[0.0, 6.0]]
    assert residency.used_bytes > 0
    del slot
    wait_until(lambda: residency.used_bytes == 0, "end of the model")


def test_what_was_refused_counts_while_somebody_holds_it_and_leaves_nothing_behind(opened: Opened) -> None:
    path = onnx_files.linear(opened.folder / "a.onnx")
    residency, held = opened(4 * MB), list[Model]()
    opened.add(residency, "pinned", pinned=True)

    def load() -> Model:
        held.extend(loader(path)() for _ in range(4))
        return held[0]

    used, gone = residency.used_bytes, weakref.ref(load)
    with pytest.raises(MemoryBudgetError):
        residency.add("hoarder", load, size_hint_bytes=100)

    assert residency.used_bytes > used + 3 * MB
    held.clear()
    wait_until(lambda: residency.used_bytes == used, "end of the refused model")
    del load
    gc.collect()
    assert gone() is None


def test_the_first_model_of_a_process_measures_as_the_second() -> None:
    """In a process of its own: ONNX Runtime's registries are nobody's."""
    path = onnx_files.mlperf_tiny("kws.onnx")
    script = (
        "from pathlib import Path\n"
        "from edge_agent.runtime.residency import Residency\n"
        "from tests.agent.runtime.opened_residency import loader\n"
        "residency = Residency(budget_bytes=None, on_event=print)\n"
        f"slots = [residency.add(name, loader(Path({str(path)!r})), size_hint_bytes=1) for name in 'ab']\n"
        "print(*(slot.memory_bytes for slot in slots))\n"
        "residency.close()\n"
    )

    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)

    first, second = (int(size) for size in output.stdout.split())
    assert abs(first - second) < 0.1 * second


def test_of_models_called_alike_the_one_that_came_last_goes_first(opened: Opened) -> None:
    residency = opened(4 * MB)
    slots = [opened.add(residency, name) for name in "abc"]
    for slot in slots:
        slot.uses, slot.load_s = 10, 0.01
    slots[2].last_used_ns = time.monotonic_ns()

    opened.add(residency, "new")

    assert [sleeps(slot) for slot in slots] == [False, False, True]


def test_models_called_in_a_circle_larger_than_memory_are_not_all_loaded_every_time(opened: Opened) -> None:
    residency = opened(4 * MB)
    slots = [opened.add(residency, name) for name in "abcde"]
    before = sum(fact.loads for fact in residency.resident())

    for _ in range(20):
        for slot in slots:
            residency.bring_back(slot)
            slot.uses += 1
            slot.last_used_ns = time.monotonic_ns()

    assert sum(fact.loads for fact in residency.resident()) - before < 0.75 * 20 * len(slots)


def test_old_habits_are_counted_once(opened: Opened) -> None:
    residency = opened(4 * MB)
    old, new = opened.add(residency, "old"), opened.add(residency, "new")
    old.uses += 1000
    others = [opened.add(residency, name) for name in "xy"]

    for turn in range(60):
        for slot in (new, others[turn % 2]):
            residency.bring_back(slot)
            slot.uses += 10
            slot.last_used_ns = time.monotonic_ns()

    assert sleeps(old)
    assert not sleeps(new)


def test_a_residency_that_is_dropped_frees_its_models_without_a_garbage_collection(opened: Opened) -> None:
    residency = Residency(budget_bytes=None, on_event=lambda *_: None)
    slot = opened.add(residency, "a")
    assert slot.model is not None
    gone = weakref.ref(slot.model)
    residency.close()
    gc.disable()
    try:
        del residency, slot
        assert gone() is None
    finally:
        gc.enable()
