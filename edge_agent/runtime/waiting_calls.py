"""The calls that wait for a lane, in the order in which they will run: pure data, guarded by its owner's lock.

Order: the higher priority first; within a priority, who came first. So a call is overtaken for ever only while calls
of a higher priority keep coming; within its priority nobody overtakes it, except those that share an earlier run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from threading import Lock
from typing import TYPE_CHECKING, Any

from edge_agent.errors import AgentError
from edge_agent.runtime.batching import Likeness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_agent.runtime.session import Model

MAX_LOOKED_AT = 256
"""At most this many waiting calls are looked at for companions, so that a long queue does not cost a long look."""


class Turn(Enum):
    """Where a call that did not run at once stands."""

    WAITING = auto()
    """In the queue."""
    LEADING = auto()
    """A lane is its own: its thread runs the batch."""
    FOLLOWING = auto()
    """Another call's thread runs it along."""
    DONE = auto()
    """Its outputs or its error are there."""
    LEFT = auto()
    """Its caller has gone: nobody wants the answer."""


class WaitingCall:
    """One call, from the moment it has to wait. `awake` is held until its thread has something to do."""

    __slots__ = (
        "alone", "arrays", "awake", "batch", "batch_size", "deadline_s", "error", "joined_s", "likeness", "model",
        "outputs", "priority", "rows", "started_s", "turn",
    )  # fmt: skip

    def __init__(
        self,
        *,
        model: Model,
        arrays: Mapping[str, NDArray[Any]],
        likeness: Likeness | None,
        rows: int,
        priority: int,
        deadline_s: float | None,
        joined_s: float,
    ) -> None:
        self.model = model
        self.arrays = arrays
        self.likeness = likeness
        self.rows = rows
        self.priority = priority
        self.deadline_s = deadline_s
        self.joined_s = joined_s
        self.started_s = joined_s
        self.alone = likeness is None
        self.turn = Turn.WAITING
        self.batch: list[WaitingCall] = []
        self.batch_size = 1
        self.outputs: dict[str, NDArray[Any]] | None = None
        self.error: AgentError | None = None
        self.awake = Lock()
        self.awake.acquire()

    def may_join(self, other: WaitingCall) -> bool:
        """Whether this call can share a run with `other`."""
        return not self.alone and not other.alone and self.model is other.model and self.likeness == other.likeness


class WaitingCalls:
    """A bounded number of calls (its owner asks `len` before it adds), by priority and arrival."""

    __slots__ = ("_count", "_levels", "_priorities", "rows")

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[WaitingCall, None]] = {}
        self._priorities: list[int] = []
        self._count = 0
        self.rows = 0
        """The rows of all of them."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[WaitingCall]:
        """In the order in which they will run."""
        for priority in self._priorities:
            yield from self._levels[priority]

    def add(self, call: WaitingCall) -> None:
        """Let a call wait behind those of its priority."""
        self._level(call.priority)[call] = None
        self._count += 1
        self.rows += call.rows

    def put_back(self, calls: list[WaitingCall]) -> None:
        """Let calls that were taken wait again, in their order, ahead of all others of their priority."""
        for call in reversed(calls):
            level = self._level(call.priority)
            level[call] = None
            level.move_to_end(call, last=False)
            self._count += 1
            self.rows += call.rows

    def remove(self, call: WaitingCall) -> None:
        """Take a call out, wherever it stands."""
        level = self._levels[call.priority]
        del level[call]
        self._count -= 1
        self.rows -= call.rows
        if not level:
            del self._levels[call.priority]
            self._priorities.remove(call.priority)

    def first(self) -> WaitingCall:
        """The call that runs next."""
        return next(iter(self._levels[self._priorities[0]]))

    def last(self) -> WaitingCall:
        """The call to displace: of the lowest priority, the one that came last."""
        return next(reversed(self._levels[self._priorities[-1]]))

    def oldest_s(self) -> float | None:
        """When the call that has waited longest joined; None when nobody waits."""
        return min((next(iter(level)).joined_s for level in self._levels.values()), default=None)

    def take_batch(self, *, max_rows: int) -> list[WaitingCall]:
        """Take out the call that runs next and those behind it that share its run, up to `max_rows` in all.

        The first is taken however many rows it has. One that would not fit does not keep smaller ones behind it
        from joining.
        """
        first = self.first()
        batch = [first]
        rows = first.rows
        if not first.alone and rows < max_rows:
            for looked_at, call in enumerate(self):
                if rows >= max_rows or looked_at >= MAX_LOOKED_AT:
                    break
                if call is not first and rows + call.rows <= max_rows and call.may_join(first):
                    batch.append(call)
                    rows += call.rows
        for call in batch:
            self.remove(call)
        return batch

    def _level(self, priority: int) -> OrderedDict[WaitingCall, None]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
            self._priorities.append(priority)
            self._priorities.sort(reverse=True)
        return level


def leader_of(batch: list[WaitingCall]) -> WaitingCall:
    """Whose thread runs a batch: the call with the latest deadline, one without any first.

    So nobody is kept by a batch beyond its own deadline, and the batch is cancelled by its leader's deadline alone.
    """
    return max(batch, key=lambda call: float("inf") if call.deadline_s is None else call.deadline_s)
