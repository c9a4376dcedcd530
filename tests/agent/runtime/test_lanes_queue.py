from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.runtime.batching import likeness_of
from edge_agent.runtime.waiting_calls import WaitingCall, WaitingCalls, leader_of

MODELS: tuple[Any, ...] = (SimpleNamespace(name="first"), SimpleNamespace(name="second"))


def call_of(
    *,
    rows: int = 1,
    width: int = 3,
    priority: int = 0,
    model: int = 0,
    deadline_s: float | None = None,
    at_s: float = 0.0,
) -> WaitingCall:
    arrays = {"x": np.zeros((rows, width), np.float32)}
    likeness, counted = likeness_of(arrays)
    return WaitingCall(
        model=MODELS[model],
        arrays=arrays,
        likeness=likeness,
        rows=counted,
        priority=priority,
        deadline_s=deadline_s,
        joined_s=at_s,
    )


def test_the_call_without_a_deadline_leads_and_otherwise_the_latest() -> None:
    soon, late, never = call_of(deadline_s=1.0), call_of(deadline_s=9.0), call_of()

    assert leader_of([soon, late]) is late
    assert leader_of([soon, never, late]) is never


def test_a_call_that_does_not_fit_does_not_keep_smaller_ones_out() -> None:
    waiting = WaitingCalls()
    calls = [call_of(rows=rows) for rows in (2, 7, 2)]
    for call in calls:
        waiting.add(call)

    assert waiting.take_batch(max_rows=8) == [calls[0], calls[2]]


def test_a_call_larger_than_a_batch_runs_by_itself() -> None:
    waiting = WaitingCalls()
    calls = [call_of(rows=20), call_of()]
    for call in calls:
        waiting.add(call)

    assert waiting.take_batch(max_rows=8) == [calls[0]]


class QueueOrder(RuleBasedStateMachine):
    """The queue beside a plain list that is sorted anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = WaitingCalls()
        self.expected: list[WaitingCall] = []
        self.taken: list[WaitingCall] = []
        self.clock_s = 0.0

    def _in_order(self) -> list[WaitingCall]:
        return sorted(self.expected, key=lambda call: -call.priority)  # stable: arrival within a priority

    @rule(
        rows=st.integers(1, 6),
        width=st.integers(1, 2),
        priority=st.integers(-2, 2),
        model=st.integers(0, 1),
        alone=st.booleans(),
    )
    def join(self, rows: int, width: int, priority: int, model: int, alone: bool) -> None:
        self.clock_s += 1.0
        call = call_of(rows=rows, width=width, priority=priority, model=model, at_s=self.clock_s)
        call.alone = alone
        self.waiting.add(call)
        self.expected.append(call)

    @precondition(lambda self: self.expected)
    @rule(max_rows=st.integers(1, 12))
    def take(self, max_rows: int) -> None:
        order = self._in_order()
        batch, rows = [order[0]], order[0].rows
        for call in order[1:]:
            alike = call.model is order[0].model and call.arrays["x"].shape[1] == order[0].arrays["x"].shape[1]
            if alike and not call.alone and not order[0].alone and rows + call.rows <= max_rows:
                batch.append(call)
                rows += call.rows
        assert self.waiting.take_batch(max_rows=max_rows) == batch
        self.expected = [call for call in self.expected if call not in batch]
        self.taken = batch

    @precondition(lambda self: self.taken)
    @rule()
    def fail_and_put_back(self) -> None:
        self.waiting.put_back(self.taken)
        self.expected = [*self.taken, *self.expected]
        self.taken = []

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        call = self.expected.pop(data.draw(st.integers(0, len(self.expected) - 1)))
        self.waiting.remove(call)

    @precondition(lambda self: self.expected)
    @rule()
    def displace(self) -> None:
        last = self._in_order()[-1]
        assert self.waiting.last() is last
        self.waiting.remove(last)
        self.expected.remove(last)

    @invariant()
    def order_and_counts_agree(self) -> None:
        assert list(self.waiting) == self._in_order()
        assert len(self.waiting) == len(self.expected)
        assert self.waiting.rows == sum(call.rows for call in self.expected)
        if self.expected:
            assert self.waiting.first() is self._in_order()[0]
        else:
            assert self.waiting.oldest_s() is None


TestQueueOrder = QueueOrder.TestCase
TestQueueOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
