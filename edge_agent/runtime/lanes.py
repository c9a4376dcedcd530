"""The lanes of one model: how many of its calls run at once, who waits, what waits too long, what shares a run.

A lane is one run at a time. Order of a call, and its invariants:
1. A free lane is taken at once, on the caller's thread (`try_enter` and `leave`, or `run`): one lock each. A lane is
   only free while nobody waits, so nobody is overtaken by newcomers.
2. Otherwise the call waits: at most `max_waiting` of them, the higher priority first, then the earlier. One more is
   refused with OverloadedError, or displaces a waiting one of a lower priority. Nothing else is ever refused.
3. A lane that becomes free goes to the first waiting call and to those that can share its run (`batching`): as many
   rows as pay, of calls that wait already; nobody waits for company. One of the batch's own threads, the leader,
   runs it and hands the others their rows. No thread is ever started for it: handing work to a thread of the lane
   and back costs one more wake-up per call (measured: p99 three to four times as long with 16 callers of one lane).
4. A call leaves at its deadline: from the queue, or from a batch that goes on without it. A run is cancelled when the
   deadlines of all its calls have passed; the leader has the last of them, so it is never kept longer than it
   allows. Cancelling waits for the operator in progress (`run_deadlines`).
5. When a batch fails, its calls wait again, first in line, and run alone: a bad call costs itself only.
6. Calls end on the model that they came with, also after `close`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import TIMEOUT_MAX, Lock
from typing import TYPE_CHECKING, Any

from edge_agent.errors import AgentError, DeadlineExceededError, InferenceError, OverloadedError, WouldWaitError
from edge_agent.runtime.batching import BatchSizer, concatenate, likeness_of, split
from edge_agent.runtime.lane_load import CallFigures, LaneLoad
from edge_agent.runtime.run_deadlines import RUN_DEADLINES
from edge_agent.runtime.waiting_calls import Turn, WaitingCall, WaitingCalls, leader_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_agent.runtime.session import Model

    Arrays = Mapping[str, NDArray[Any]]
    Outputs = dict[str, NDArray[Any]]

MAX_LIMIT = 64
"""More lanes than this are a mistake: each may hold a core."""


class Lanes:
    """The lanes and the queue of one model as it serves."""

    __slots__ = (
        "_acquire", "_attention", "_busy_s", "_clock", "_figures", "_free", "_idle_waiters", "_limit", "_lock",
        "_max_waiting", "_release", "_sizer", "_waiting", "is_closed", "max_batch", "name",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        limit: int,
        max_waiting: int,
        max_batch: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`limit` runs at once, `max_waiting` calls in the queue, `max_batch` rows in a run that calls share."""
        _check_limit(limit)
        self.name = name
        self.max_batch = max_batch
        self.is_closed = False
        self._clock = clock
        self._lock = Lock()
        # bound once: an attribute and a method less on the hottest path than `with self._lock`
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._limit = limit
        self._free = limit
        self._busy_s = 0.0
        self._attention = False
        self._waiting = WaitingCalls()
        self._idle_waiters: list[Lock] = []
        self._max_waiting = max_waiting
        self._sizer = BatchSizer(largest=max_batch)
        self._figures = CallFigures()

    def try_enter(self) -> bool:
        """Take a free lane for a run on this thread: `leave` it after True; False means that the call must wait."""
        now_s = self._clock()
        self._acquire()
        try:
            if self._free <= 0:
                return False
            self._free -= 1
            self._busy_s -= now_s
            return True
        finally:
            self._release()

    def leave(self) -> None:
        """Give the lane back that `try_enter` took."""
        now_s = self._clock()
        self._acquire()
        try:
            self._free += 1
            self._busy_s += now_s
            if self._attention:
                self._attend(now_s)
        finally:
            self._release()

    def run(
        self, model: Model, arrays: Arrays, *, priority: int = 0, deadline_ns: int | None = None, may_wait: bool = True
    ) -> tuple[Outputs, float, int]:
        """(outputs, microseconds waited, calls that shared the run) for arrays that `model.prepare` returned.

        `deadline_ns` is on the clock of `time.perf_counter_ns`. Raises DeadlineExceededError, OverloadedError,
        InferenceError, and WouldWaitError when `may_wait` is False and no lane is free.
        """
        deadline_s = None if deadline_ns is None else deadline_ns / 1e9
        joined_s = self._clock()
        if deadline_s is not None and joined_s >= deadline_s:
            with self._lock:
                self._figures.cancelled += 1
            raise self._late("before it began")
        if Lanes.try_enter(self):
            return self._run_here(model, arrays, deadline_s), 0.0, 1
        if not may_wait:
            raise WouldWaitError(f"every lane of {self.name} is taken")
        likeness, rows = likeness_of(arrays) if model.is_batchable else (None, 1)
        call = WaitingCall(
            model=model,
            arrays=arrays,
            likeness=likeness,
            rows=rows,
            priority=priority,
            deadline_s=deadline_s,
            joined_s=joined_s,
        )
        try:
            self._join(call)
            self._await_turn(call)
            if call.turn is Turn.LEADING:
                self._lead(call)
        except BaseException:
            self._abandon(call)
            raise
        if call.error is not None:
            raise call.error
        assert call.outputs is not None  # noqa: S101 - a call that is done without an error has its outputs
        return call.outputs, (call.started_s - joined_s) * 1e6, call.batch_size

    def set_limit(self, limit: int) -> None:
        """Let `limit` runs happen at once from now on; runs in progress end as they are."""
        _check_limit(limit)
        with self._lock:
            self._free += limit - self._limit
            self._limit = limit
            self._attend(self._clock())

    def close(self) -> None:
        """Say that new calls go elsewhere. Those that wait, and those that still come, are answered as ever."""
        self.is_closed = True

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs and nobody waits, at most `timeout_s`. Returns whether it came to that."""
        until_s = self._clock() + timeout_s
        idle = Lock()
        idle.acquire()
        while True:
            with self._lock:
                if self._free == self._limit and not self._waiting:
                    return True
                self._idle_waiters.append(idle)
                self._attention = True
            came = idle.acquire(timeout=min(max(0.0, until_s - self._clock()), TIMEOUT_MAX))
            if not came:
                with self._lock:
                    if idle in self._idle_waiters:
                        self._idle_waiters.remove(idle)
                    return self._free == self._limit and not self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nobody waits."""
        return self._free == self._limit

    @property
    def progress(self) -> tuple[float, int]:
        """(a figure that changes whenever a run begins or ends, free lanes): the same twice is a standstill."""
        return self._busy_s, self._free

    def load(self) -> LaneLoad:
        """What the lanes do now and did so far."""
        with self._lock:
            now_s = self._clock()
            running = self._limit - self._free
            oldest_s = self._waiting.oldest_s()
            return LaneLoad(
                at_s=now_s,
                limit=self._limit,
                running=running,
                waiting=len(self._waiting),
                busy_ns=int((self._busy_s + running * now_s) * 1e9),
                queued=self._figures.queued,
                queue_wait_ns=int(self._figures.wait_s * 1e9),
                queue_wait_ewma_ms=self._figures.wait_ewma_s(now_s) * 1e3,
                longest_wait_ms=max(0.0, now_s - oldest_s) * 1e3 if oldest_s is not None else 0.0,
                service_us=self._figures.service_s * 1e6,
                shed=self._figures.shed,
                cancelled=self._figures.cancelled,
            )

    def _join(self, call: WaitingCall) -> None:
        """Wait in the queue, or get the lane that became free in the meantime. Raises OverloadedError."""
        with self._lock:
            if self._free <= 0 and len(self._waiting) >= self._max_waiting:
                last = self._waiting.last()
                self._figures.shed += 1
                if last.priority >= call.priority:
                    call.turn = Turn.LEFT
                    raise self._overloaded("is full")
                self._waiting.remove(last)
                last.error = self._overloaded("gave this call's place to one of a higher priority")
                last.turn = Turn.DONE
                last.awake.release()
            self._waiting.add(call)
            self._attend(self._clock())

    def _attend(self, now_s: float) -> None:
        """Give free lanes to waiting calls, and tell who waits for idleness. Under the lock."""
        while self._free > 0 and self._waiting:
            size = self._sizer.size_for(self._waiting.rows) if len(self._waiting) > 1 else 1
            batch = self._waiting.take_batch(max_rows=size)
            self._free -= 1
            self._busy_s -= now_s
            leader = leader_of(batch)
            for call in batch:
                call.turn = Turn.FOLLOWING
                call.started_s = now_s
                self._figures.waited(max(0.0, now_s - call.joined_s), now_s=now_s)
            leader.turn = Turn.LEADING
            leader.batch = batch
            leader.awake.release()
        if self._free == self._limit and not self._waiting:
            for idle in self._idle_waiters:
                idle.release()
            self._idle_waiters.clear()
        self._attention = bool(self._waiting) or bool(self._idle_waiters)

    def _await_turn(self, call: WaitingCall) -> None:
        """Return when the call leads or is done. Raises DeadlineExceededError."""
        if call.deadline_s is None:
            call.awake.acquire()
            return
        if call.awake.acquire(timeout=min(max(0.0, call.deadline_s - self._clock()), TIMEOUT_MAX)):
            return
        with self._lock:
            if call.turn in (Turn.LEADING, Turn.DONE):
                return
            if call.turn is Turn.WAITING:
                self._waiting.remove(call)
                self._attend(self._clock())
            where = "in the queue" if call.turn is Turn.WAITING else "while it ran"
            call.turn = Turn.LEFT
            self._figures.cancelled += 1
        raise self._late(where)

    def _abandon(self, call: WaitingCall) -> None:
        """Let a call go whose thread was interrupted or had no memory: what it held goes to the others."""
        with self._lock:
            if call.turn is Turn.WAITING:
                self._waiting.remove(call)
                self._attend(self._clock())
            elif call.turn is Turn.LEADING:
                self._put_back_others(call, alone=False)
                self._pass_on(call, self._clock())
            call.turn = Turn.LEFT

    def _lead(self, leader: WaitingCall) -> None:
        """Run the batch of `leader` on its thread and lane, hand out the answers, pass the lane on."""
        members = [call for call in leader.batch if call.turn is not Turn.LEFT]
        self._hand_out(leader, members, self._answers(leader, members))

    def _answers(self, leader: WaitingCall, members: list[WaitingCall]) -> list[Outputs | AgentError]:
        """What each member gets. Where the batch fails, the leader is its only member from then on."""
        if len(members) > 1:
            try:
                arrays = concatenate([call.arrays for call in members])
                outputs = self._execute(leader.model, arrays, leader.deadline_s)
                return [*split(outputs, [call.rows for call in members])]
            except DeadlineExceededError:
                return [self._late("while it ran") for _ in members]
            except (InferenceError, MemoryError):
                members[:] = [leader]
                leader.alone = True
                with self._lock:
                    self._put_back_others(leader, alone=True)
                    self._attend(self._clock())
        try:
            return [self._execute(leader.model, leader.arrays, leader.deadline_s)]
        except AgentError as error:
            return [error]

    def _hand_out(self, leader: WaitingCall, members: list[WaitingCall], answers: list[Outputs | AgentError]) -> None:
        now_s = self._clock()
        followers = []
        with self._lock:
            for call, answer in zip(members, answers, strict=True):
                if call.turn is Turn.LEFT:
                    continue
                if isinstance(answer, AgentError):
                    call.error = answer
                    self._figures.cancelled += isinstance(answer, DeadlineExceededError)
                else:
                    call.outputs = answer
                call.batch_size = len(members)
                call.turn = Turn.DONE
                if call is not leader:
                    followers.append(call)
            lane_s = now_s - leader.started_s
            self._figures.served(lane_s / len(members))
            if leader.error is None and leader.likeness is not None and not leader.alone:
                self._sizer.measured(rows=sum(call.rows for call in members), run_us=lane_s * 1e6)
            # the next leader wakes before those who only carry an answer away
            self._pass_on(leader, now_s)
        for call in followers:
            call.awake.release()

    def _pass_on(self, leader: WaitingCall, now_s: float) -> None:
        """Let the lane of `leader` go to whoever is next. Under the lock."""
        leader.batch = []
        self._free += 1
        self._busy_s += now_s
        self._attend(now_s)

    def _put_back_others(self, leader: WaitingCall, *, alone: bool) -> None:
        others = [call for call in leader.batch if call.turn is Turn.FOLLOWING]
        for call in others:
            call.turn = Turn.WAITING
            call.alone = call.alone or alone
        self._waiting.put_back(others)

    def _run_here(self, model: Model, arrays: Arrays, deadline_s: float | None) -> Outputs:
        """Run on the lane that this thread has entered, and leave it."""
        entered_s = self._clock()
        late = 0
        try:
            return self._execute(model, arrays, deadline_s)
        except DeadlineExceededError:
            late = 1
            raise
        finally:
            now_s = self._clock()
            with self._lock:
                self._figures.cancelled += late
                self._figures.served(now_s - entered_s)
                self._free += 1
                self._busy_s += now_s
                if self._attention:
                    self._attend(now_s)

    def _execute(self, model: Model, arrays: Arrays, deadline_s: float | None) -> Outputs:
        """One run, cancelled at its deadline. Raises DeadlineExceededError and InferenceError."""
        if deadline_s is None:
            return model.execute(arrays)
        if self._clock() >= deadline_s:
            raise self._late("in the queue")
        options = model.new_run_options()
        watched = RUN_DEADLINES.watch(deadline_s, options)
        try:
            return model.execute(arrays, options)
        except InferenceError:
            if RUN_DEADLINES.forget(watched):
                raise self._late("while it ran") from None
            raise
        finally:
            RUN_DEADLINES.forget(watched)

    def _late(self, where: str) -> DeadlineExceededError:
        return DeadlineExceededError(f"a call of {self.name} reached its deadline {where}")

    def _overloaded(self, what: str) -> OverloadedError:
        """Under the lock."""
        waiting = len(self._waiting)
        retry_after_s = self._figures.retry_after_s(waiting=waiting, limit=self._limit)
        return OverloadedError(
            f"the queue of {self.name} {what}: {waiting} calls wait for {self._limit} lanes"
            f" at {self._figures.service_s * 1e3:.1f} ms per call: try again in {retry_after_s:.2f} s",
            retry_after_s=retry_after_s,
        )


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit is {limit}: use 1 to {MAX_LIMIT} lanes")
