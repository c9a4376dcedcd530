"""Lanes of a model that has not proven itself: whatever of its runs hangs keeps nobody else.

As `Lanes`, and:
1. every run in progress is known with its start, so that the one that runs longest can be asked for;
2. no run begins on a thread that must not wait (`may_wait` off): one that hangs there would stop all it serves;
3. `give_up` ends what can be ended. Waiting calls, and those that share a run with another's thread, get a
   ModelHungError at once; runs are cancelled, which ONNX Runtime heeds between two operators; a thread inside an
   operator that does not end stays there, and is all that is lost;
4. closed with runs in progress they are given up `hang_timeout_s` later, if they still run: nobody watches them then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_agent.errors import ModelHungError, WouldWaitError
from edge_agent.runtime.lanes import Lanes
from edge_agent.runtime.run_deadlines import RUN_DEADLINES
from edge_agent.runtime.waiting_calls import Turn, WaitingCall

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_agent.runtime.session import Model

    Arrays = Mapping[str, NDArray[Any]]
    Outputs = dict[str, NDArray[Any]]


class WatchedLanes(Lanes):
    """The lanes of a model on trial; see the module."""

    __slots__ = ("_given_up", "_leaders", "_runs", "hang_timeout_s")

    def __init__(self, *, name: str, limit: int, max_waiting: int, max_batch: int, hang_timeout_s: float) -> None:
        super().__init__(name=name, limit=limit, max_waiting=max_waiting, max_batch=max_batch)
        self.hang_timeout_s = hang_timeout_s
        self._runs: dict[int, tuple[float, Model]] = {}  # by thread: edits of a dict are atomic
        self._leaders: dict[int, WaitingCall] = {}
        self._given_up = False

    def try_enter(self) -> bool:
        """Never: every call takes the way of `run`, which is told whether it may wait."""
        return False

    def run(
        self, model: Model, arrays: Arrays, *, priority: int = 0, deadline_ns: int | None = None, may_wait: bool = True
    ) -> tuple[Outputs, float, int]:
        """As the lanes' own; raises WouldWaitError whenever the call may not wait, and ModelHungError."""
        if not may_wait:
            raise WouldWaitError(f"{self.name} is on trial")
        return super().run(model, arrays, priority=priority, deadline_ns=deadline_ns)

    @property
    def oldest_run_s(self) -> float:
        """For how long the run that began first has been running; 0 without one."""
        now_s = self._clock()
        return max((now_s - started_s for started_s, _ in list(self._runs.values())), default=0.0)

    def close(self) -> None:
        """Send new calls elsewhere. What hangs is given up: now, or once it has run too long."""
        super().close()
        left_s = self.hang_timeout_s - self.oldest_run_s
        if left_s <= 0:
            self.give_up()
        elif self._runs:
            RUN_DEADLINES.watch(self._clock() + left_s, _Drain(self))

    def release(self) -> None:
        """Send new calls elsewhere: the model has proven itself, and its runs may take as long as they like."""
        super().close()

    def give_up(self) -> None:
        """Cancel the runs, answer everybody who waits for one. Safe to repeat."""
        with self._lock:
            self._given_up = True
            waiting = list(self._waiting)
            for call in waiting:
                self._waiting.remove(call)
            following = [call for leader in self._leaders.values() for call in leader.batch if call is not leader]
            for call in [*waiting, *(call for call in following if call.turn is Turn.FOLLOWING)]:
                call.error, call.turn = self._hung(), Turn.LEFT
                call.awake.release()
        for _, model in list(self._runs.values()):
            model.cancel_runs()

    def _lead(self, leader: WaitingCall) -> None:
        with self._lock:
            self._leaders[id(leader)] = leader
        try:
            super()._lead(leader)
        finally:
            with self._lock:
                del self._leaders[id(leader)]

    def _execute(self, model: Model, arrays: Arrays, deadline_s: float | None) -> Outputs:
        if self._given_up:
            raise self._hung()
        thread = threading.get_ident()
        self._runs[thread] = (self._clock(), model)
        try:
            return super()._execute(model, arrays, deadline_s)
        finally:
            del self._runs[thread]

    def _hung(self) -> ModelHungError:
        return ModelHungError(f"{self.name} was taken back: a run of it hung for more than {self.hang_timeout_s:g} s")


class _Drain:
    """What stands for closed lanes among the runs with a deadline: cancelled, it gives them up if they still run."""

    __slots__ = ("_lanes",)

    def __init__(self, lanes: WatchedLanes) -> None:
        self._lanes = lanes

    @property
    def terminate(self) -> bool:
        """As of a run's options."""
        return False

    @terminate.setter
    def terminate(self, _: bool) -> None:
        if self._lanes.oldest_run_s >= self._lanes.hang_timeout_s:
            self._lanes.give_up()
