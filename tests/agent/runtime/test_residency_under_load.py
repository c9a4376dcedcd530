"""Residency under many callers, and under every order of operations."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.errors import MemoryBudgetError
from edge_agent.runtime.residency import ModelSlot, Residency
from edge_agent.runtime.session import Model
from tests.agent.runtime import onnx_files

BUDGET_BYTES = 4_000_000
"""Room for two or three small models."""
CLIENTS = 6
CALLS = 150
ONES = {"x": np.ones((1, 3), dtype=np.float32)}


def add(residency: Residency, folder: Path, weight: int, *, pinned: bool = False) -> ModelSlot:
    path = onnx_files.linear(folder / f"{weight}.onnx", weight=weight)

    def load() -> Model:
        model = Model.load(path)
        model.warm()
        return model

    return residency.add(path.stem, load, size_hint_bytes=path.stat().st_size, path=path, pinned=pinned)


def answer(residency: Residency, slot: ModelSlot) -> float:
    model = slot.model or residency.bring_back(slot, timeout_s=60)
    slot.uses += 1
    slot.last_used_ns = time.monotonic_ns()
    return float(model.run(ONES)["scores"][0, 1])


def test_every_caller_gets_its_own_answer_while_models_push_each_other_out(tmp_path: Path) -> None:
    gc.collect()
    residency = Residency(budget_bytes=BUDGET_BYTES, on_event=lambda *_: None)
    slots = [add(residency, tmp_path, weight) for weight in range(1, 7)]
    wrong: list[object] = []
    over: list[int] = []

    def client(seed: int) -> None:
        for chosen in np.random.default_rng(seed).integers(0, len(slots), CALLS):
            try:
                score = answer(residency, slots[chosen])
                if score != 3.0 * (chosen + 1):
                    wrong.append((chosen, score))
            except Exception as error:  # noqa: BLE001 - any failure at all is what this test looks for
                wrong.append(error)
            used = residency.used_bytes
            if used > BUDGET_BYTES:
                over.append(used)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    loads = sum(fact.loads for fact in residency.resident())
    residency.close()

    assert wrong == []
    assert loads > 2 * len(slots)
    # only the last step of a load, whose measure was above its estimate, may stand above the budget
    assert all(used < 1.2 * BUDGET_BYTES for used in over)


class ResidencyMachine(RuleBasedStateMachine):
    """Any order of adding, calling, sleeping, pinning and removing, against what the calls say."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="edgefleet-residency-")
        self.residency = Residency(budget_bytes=BUDGET_BYTES, on_event=lambda *_: None)
        self.slots: dict[int, ModelSlot] = {}

    def teardown(self) -> None:
        self.residency.close()
        self._folder.cleanup()

    @precondition(lambda self: len(self.slots) < 6)
    @rule(pinned=st.booleans())
    def add(self, pinned: bool) -> None:
        weight = next(number for number in range(1, 10) if number not in self.slots)
        try:
            self.slots[weight] = add(self.residency, Path(self._folder.name), weight, pinned=pinned)
        except MemoryBudgetError:
            assert sum(slot.pinned for slot in self.slots.values()) >= 2

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        weight = data.draw(st.sampled_from(sorted(self.slots)))
        try:
            assert answer(self.residency, self.slots[weight]) == 3.0 * weight
        except MemoryBudgetError:
            assert not self.slots[weight].pinned
            assert sum(slot.pinned for slot in self.slots.values()) >= 2

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def sleep(self, data: st.DataObject) -> None:
        slot = self.slots[data.draw(st.sampled_from(sorted(self.slots)))]
        was_awake = slot.model is not None
        assert self.residency.sleep(slot) == (was_awake and not slot.pinned)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        slot = self.slots[data.draw(st.sampled_from(sorted(self.slots)))]
        if slot.pinned:
            self.residency.unpin(slot)
            return
        try:
            self.residency.pin(slot)
        except MemoryBudgetError:
            assert not slot.pinned

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.residency.remove(self.slots.pop(data.draw(st.sampled_from(sorted(self.slots)))))

    @invariant()
    def what_is_awake_fits_and_what_is_pinned_is_awake(self) -> None:
        facts = self.residency.resident()
        assert {fact.name for fact in facts} == {str(weight) for weight in self.slots}
        assert all(not fact.asleep for fact in facts if fact.pinned)
        held = sum(fact.memory_bytes for fact in facts if not fact.asleep)
        assert held <= BUDGET_BYTES
        assert self.residency.used_bytes == held


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
