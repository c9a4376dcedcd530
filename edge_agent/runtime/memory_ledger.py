"""The ledger of the memory that models take: what is held, what is leaving, who could make room, and the refusal.

Only data: no threads, no loading. Every method is called under residency's lock. Invariant: what a place holds counts
from the moment its room is granted until its model is really gone, which a weak reference tells.
"""

from __future__ import annotations

import time
import weakref
from pathlib import Path

from msgspec import Struct

from edge_agent.errors import AgentError, MemoryBudgetError, OverloadedError
from edge_agent.runtime.eviction import Candidate, Popularity, RoomPlan, plan_room
from edge_agent.runtime.model_slot import Place
from edge_agent.runtime.session import Model

ESTIMATE_FACTOR = 1.3
ESTIMATE_BYTES = 1_500_000
"""Together at least what the MLPerf Tiny models measure: ONNX Runtime's arena and session take 1.4 MB, weights in
another layout up to 1.3 times their file."""
LEAVING_PATIENCE_S = 1.0
"""So long the end of a model that was let go is counted on; what a call holds for longer, others make room for."""
MAX_KNOWN_FILES = 1024

FileIdentity = tuple[str, int, int]


class _Leaving(Struct, frozen=True, kw_only=True):
    """A model that was let go and that a call may still hold."""

    alive: weakref.ref[Model]
    held_bytes: int
    since_s: float


class MemoryLedger:
    """What models hold of `budget_bytes`; None is no limit."""

    def __init__(self, *, budget_bytes: int | None) -> None:
        self.budget_bytes = budget_bytes
        self.places: dict[int, Place] = {}
        self.newest_key = 0
        self.departures = 0
        self._leaving: list[_Leaving] = []
        self._popularity = Popularity()
        self._known_bytes: dict[FileIdentity, int] = {}

    @property
    def used_bytes(self) -> int:
        """What counts against the budget: models in memory, being loaded, and let go but still held by a call."""
        return sum(place.held_bytes for place in self.places.values()) + self.leaving_bytes

    @property
    def leaving_bytes(self) -> int:
        """What running calls still hold of models that were let go."""
        return sum(one.held_bytes for one in self._leaving if one.alive() is not None)

    @property
    def is_anyone_leaving(self) -> bool:
        """Whether the end of a model that was let go is still awaited."""
        return bool(self._leaving)

    def let_go(self, place: Place) -> Model | None:
        """Take a model from its slot. The answer is our last reference: drop it outside the lock, it takes time."""
        model, place.slot.model = place.slot.model, None
        if place.alive is not None:
            self.is_leaving(place.alive, place.held_bytes)
            place.alive = None
        place.held_bytes = 0
        return model

    def is_leaving(self, alive: weakref.ref[Model], held_bytes: int) -> None:
        """Count `held_bytes` until the model that `alive` points to is gone."""
        self._leaving.append(_Leaving(alive=alive, held_bytes=held_bytes, since_s=time.monotonic()))

    def reap(self) -> bool:
        """Forget the models that are really gone. Whether there was one."""
        still = [one for one in self._leaving if one.alive() is not None]
        is_freed = len(still) < len(self._leaving)
        self._leaving = still
        self.departures += is_freed
        return is_freed

    def remove(self, place: Place) -> None:
        """Forget a place, and what is known of its name when no other has it.

        The slot keeps its model: a call that found the slot before may be about to take it. It counts until the slot
        and the calls are gone.
        """
        self.places.pop(place.slot.key, None)
        if all(other.slot.name != place.slot.name for other in self.places.values()):
            self._popularity.forget(place.slot.name)
        if place.alive is not None:
            self.is_leaving(place.alive, place.held_bytes)
            place.alive = None
        place.held_bytes = 0

    def allow_retries(self) -> None:
        """Let models that found no room try again at once: there may be some now."""
        for place in self.places.values():
            if isinstance(place.failure, MemoryBudgetError):
                place.failures, place.failure = 0, None

    def estimate_bytes(self, place: Place) -> int:
        """What a place will take: as measured for this slot or file before, otherwise judged by its files' size."""
        known = self._known_bytes.get(place.identity, 0) if place.identity is not None else 0
        return place.slot.memory_bytes or known or int(place.file_bytes * ESTIMATE_FACTOR) + ESTIMATE_BYTES

    def remember(self, place: Place, size_bytes: int) -> None:
        """Keep the measured size of a place and its file."""
        place.slot.memory_bytes = size_bytes
        if place.identity is not None:
            while len(self._known_bytes) >= MAX_KNOWN_FILES:
                self._known_bytes.pop(next(iter(self._known_bytes)))
            self._known_bytes[place.identity] = size_bytes

    def learn(self) -> None:
        """Take in the calls since the last time."""
        calls: dict[str, int] = {}
        for place in self.places.values():
            uses = place.slot.uses
            calls[place.slot.name] = calls.get(place.slot.name, 0) + uses - place.seen_uses
            place.seen_uses = uses
        self._popularity.observe(calls, names=calls)

    def plan(self, wanted: Place, need_bytes: int, *, may_take_busy: bool) -> RoomPlan:
        """What has to happen for `wanted` to hold `need_bytes`."""
        if self.budget_bytes is None:
            return RoomPlan()
        free = self.budget_bytes - self.used_bytes + wanted.held_bytes
        soon = time.monotonic() - LEAVING_PATIENCE_S
        expected = sum(one.held_bytes for one in self._leaving if one.since_s > soon and one.alive() is not None)
        candidates = self._candidates(wanted)
        plan = plan_room(
            candidates, need_bytes=need_bytes, free_bytes=free, leaving_bytes=expected, may_take_busy=may_take_busy
        )
        if plan.is_possible:
            return plan
        return plan_room(
            candidates,
            need_bytes=need_bytes,
            free_bytes=free,
            leaving_bytes=self.leaving_bytes,
            may_take_busy=may_take_busy,
        )

    def refusal(self, wanted: Place, need_bytes: int, *, is_lasting: bool) -> AgentError:
        """Why `wanted` cannot have `need_bytes`, in numbers: for good, or as long as calls go on."""
        others = [one for one in self.places.values() if one is not wanted and one.held_bytes]
        pinned = sum(one.held_bytes for one in others if one.slot.pinned)
        in_use = sum(one.held_bytes for one in others if not one.slot.pinned and one.slot.is_busy)
        kind = "takes" if wanted.slot.memory_bytes else "is expected to take"
        message = (
            f"no memory for model {wanted.slot.name}: it {kind} {megabytes(need_bytes)} of a budget of "
            f"{megabytes(self.budget_bytes or 0)}; pinned models hold {megabytes(pinned)}, models in use "
            f"{megabytes(in_use + self.leaving_bytes)}"
        )
        if not wanted.slot.must_answer:
            message += ", and it may not put those that must answer to sleep"
        if is_lasting:
            return MemoryBudgetError(f"{message}: raise memory_budget_bytes, unpin or remove a model")
        return OverloadedError(f"{message}: try again shortly")

    def _candidates(self, wanted: Place) -> list[Candidate]:
        shares = self._popularity.shares(place.slot.name for place in self.places.values())
        return [
            Candidate(
                key=place.slot.key,
                size_bytes=place.held_bytes,
                load_s=place.slot.load_s,
                share=shares[place.slot.name],
                last_used_ns=place.slot.last_used_ns,
                is_newest=place.slot.key == self.newest_key,
                is_busy=place.slot.is_busy,
                must_answer=place.slot.must_answer,
            )
            for place in self.places.values()
            if place is not wanted
            and place.slot.model is not None
            and not place.slot.pinned
            and (wanted.slot.must_answer or not place.slot.must_answer)
        ]


def file_identity(path: Path | None) -> FileIdentity | None:
    """What tells the same file again without reading it: path, size and time of change."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return str(path), status.st_size, status.st_mtime_ns


def megabytes(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1e6:.1f} MB"
