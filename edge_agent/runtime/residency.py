"""Many models under one memory budget: they sleep when memory is short and come back when they are called.

Order of a load, on the one loader thread (so that a difference in memory belongs to one model):
1. An estimate of the model's size must fit: what was measured for the same file before, otherwise the size of
   the file times ESTIMATE_FACTOR plus ESTIMATE_BYTES. `eviction` names who goes to sleep for it.
2. A model that leaves counts until it is really gone: calls that hold it finish on it. In use now means evicted
   only when idle ones are not enough and none became idle within BUSY_GRACE_S.
3. Load, warm, measure. The measured size counts from now on; when it does not fit after all, the model is let go.
Invariants: `used_bytes` never exceeds the budget but for what a load takes beyond its estimate while it lasts; a
pinned model never leaves; one load however many wait for it; a failure is told to all who wait, and loading again
waits for a backoff. A lookup of a model in memory takes no lock: `slot.model`, then `slot.uses += 1`.
The loader thread lives while there is work, and ends IDLE_S later.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_agent.errors import (
    AgentError,
    DeadlineExceededError,
    MemoryBudgetError,
    ModelLoadError,
    OverloadedError,
    UnknownModelError,
)
from edge_agent.runtime.memory import footprint, pay_first_session, return_freed_memory
from edge_agent.runtime.memory_ledger import MemoryLedger, file_identity, megabytes
from edge_agent.runtime.model_slot import ModelSlot, Place, ResidencyFacts, Ticket
from edge_agent.runtime.session import Model

BUSY_GRACE_S = 0.02
"""So long a load waits for a model to become idle before it takes one in use."""
ROOM_WAIT_S = 10.0
"""So long a load waits for the calls that hold memory."""
IDLE_S = 10.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
"""After a load that failed, the next one is tried after the first, doubling to the second."""
_POLL_S = 0.002

__all__ = ["ASLEEP", "AWAKE", "LOAD_FAILED", "REFUSED", "ModelSlot", "Residency", "ResidencyFacts"]

ASLEEP, AWAKE, LOAD_FAILED, REFUSED = "model_asleep", "model_awake", "model_load_failed", "model_refused"
"""The kinds of events: a model left memory, came back, could not be loaded, found no room."""

_LOG = logging.getLogger(__name__)


class Residency:
    """The models of this process and the memory they may take together. `budget_bytes` None: no limit.

    `on_event` gets (kind, model name, detail) from the loader thread, or from the caller of `sleep`.
    """

    def __init__(self, *, budget_bytes: int | None, on_event: Callable[[str, str, str], None]) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self._ledger = MemoryLedger(budget_bytes=budget_bytes)
        self._jobs: deque[Place] = deque()
        # a weak reference's callback may run anywhere, even inside our lock: SimpleQueue.put allows that
        self._signal: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_loaded = False
        self._is_closed = False

    def add(
        self,
        name: str,
        load: Callable[[], Model],
        *,
        size_hint_bytes: int,
        path: Path | None = None,
        pinned: bool = False,
        must_answer: bool = True,
    ) -> ModelSlot:
        """Load a model and give it a place. `load` returns it warmed, now and whenever it comes back.

        `size_hint_bytes` is the size of its files. With `path` an earlier measure of the same file replaces the
        estimate. One that need not answer (`must_answer` False: a shadow) puts nobody who must to sleep and is the
        first to go. Raises what `load` raises, ModelLoadError for what is no AgentError, and MemoryBudgetError.
        """
        slot = ModelSlot(name=name, pinned=pinned, must_answer=must_answer)
        place = Place(slot=slot, load=load, file_bytes=size_hint_bytes, identity=file_identity(path))
        with self._lock:
            ticket = self._order(place, is_first=True)
        self._answer(ticket, name=name, timeout_s=None)
        return slot

    def bring_back(self, slot: ModelSlot, *, timeout_s: float | None = None) -> Model:
        """The model of a slot, loaded again when it sleeps; the caller waits for that, others do not.

        Raises DeadlineExceededError after `timeout_s`, UnknownModelError for a removed slot, what loading raised,
        OverloadedError when running calls hold the memory for too long, and MemoryBudgetError.
        """
        model = slot.model
        if model is not None:
            return model
        with self._lock:
            place = self._ledger.places.get(slot.key)
            if place is None:
                raise _removed(slot.name)
            if slot.model is not None:
                return slot.model
            if place.failure is not None and time.monotonic() < place.retry_at_s:
                raise copy.copy(place.failure)
            ticket = place.ticket or self._order(place, is_first=False)
        return self._answer(ticket, name=slot.name, timeout_s=timeout_s)

    def remove(self, slot: ModelSlot) -> None:
        """Forget a slot. Safe to repeat.

        Calls that have the slot still find its model in it, so that a swap drops none of them; the memory returns
        when the slot and the calls are gone.
        """
        with self._lock:
            place = self._ledger.places.get(slot.key)
            if place is not None:
                self._ledger.remove(place)
            self._ledger.allow_retries()
            self._wake()

    def pin(self, slot: ModelSlot) -> None:
        """Keep a model in memory from now on, loaded first when it sleeps. Raises as `bring_back`, then unpinned."""
        before, slot.pinned = slot.pinned, True
        try:
            self.bring_back(slot)
        except AgentError:
            slot.pinned = before
            raise

    def unpin(self, slot: ModelSlot) -> None:
        """Let a model sleep again when memory is short."""
        with self._lock:
            slot.pinned = False
            self._ledger.allow_retries()

    def sleep(self, slot: ModelSlot) -> bool:
        """Put a model to sleep now. False when it is pinned, asleep or removed already."""
        with self._lock:
            place = self._ledger.places.get(slot.key)
            if place is None or slot.pinned or slot.model is None:
                return False
            gone = self._ledger.let_go(place)
            self._wake()
        del gone
        self._tell(ASLEEP, slot.name, "on request")
        return True

    def resident(self) -> tuple[ResidencyFacts, ...]:
        """Every model that was loaded, asleep or not, sorted by name."""
        with self._lock:
            places = [place for place in self._ledger.places.values() if place.loads]
        facts = [
            ResidencyFacts(
                name=place.slot.name,
                memory_bytes=place.slot.memory_bytes,
                pinned=place.slot.pinned,
                uses=place.slot.uses,
                last_used_ns=place.slot.last_used_ns,
                asleep=place.slot.model is None,
                loads=place.loads,
                load_s=place.slot.load_s,
            )
            for place in places
        ]
        return tuple(sorted(facts, key=lambda fact: fact.name))

    @property
    def used_bytes(self) -> int:
        """What counts against the budget: models in memory, being loaded, and let go but still held by a call."""
        with self._lock:
            return self._ledger.used_bytes

    def close(self) -> None:
        """End the loader thread and refuse who waits. Models in memory keep answering. Safe to call twice."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
            self._signal.put(None)
        if thread is not None:
            thread.join()

    # callers' side: everything down to the loader runs under the lock

    def _order(self, place: Place, *, is_first: bool) -> Ticket:
        if self._is_closed:
            raise OverloadedError(f"model {place.slot.name} is not loaded: the agent is closing")
        place.ticket = ticket = Ticket(is_first=is_first)
        self._ledger.places[place.slot.key] = place
        self._jobs.append(place)
        self._wake()
        return ticket

    def _wake(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._work, name="edgefleet-loader", daemon=True)
            self._thread.start()
        self._signal.put(None)

    def _answer(self, ticket: Ticket, *, name: str, timeout_s: float | None) -> Model:
        if not ticket.done.wait(timeout_s):
            raise DeadlineExceededError(f"model {name} was asleep and not back in memory after {timeout_s} s")
        if ticket.error is not None:
            raise copy.copy(ticket.error)
        assert ticket.model is not None  # noqa: S101 - done without an error means loaded
        return ticket.model

    # the loader's side

    def _work(self) -> None:
        while True:
            is_idle = not self._wait(IDLE_S)
            self._reap()
            while (place := self._next_job()) is not None:
                self._serve(place)
            with self._lock:
                done = self._is_closed or (is_idle and not self._ledger.is_anyone_leaving and self._signal.empty())
                if done and not self._jobs:
                    self._thread = None
                    return

    def _wait(self, timeout_s: float) -> bool:
        try:
            self._signal.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True

    def _next_job(self) -> Place | None:
        with self._lock:
            return self._jobs.popleft() if self._jobs else None

    def _reap(self) -> None:
        with self._lock:
            is_freed = self._ledger.reap()
        if is_freed:
            return_freed_memory()

    def _serve(self, place: Place) -> None:
        ticket = place.ticket
        assert ticket is not None  # noqa: S101 - every job has one
        try:
            ticket.model = self._load(place, ticket)
            place.failures, place.failure = 0, None
        except AgentError as error:
            ticket.error = _without_frames(error)
        except Exception as error:  # noqa: BLE001 - whatever a loader raises must reach its callers, not end the thread
            ticket.error = ModelLoadError(f"model {place.slot.name} could not be loaded: {error!r:.300}")
        if ticket.error is not None:
            self._fail(place, ticket, ticket.error)
        with self._lock:
            place.ticket = None
        ticket.done.set()

    def _load(self, place: Place, ticket: Ticket) -> Model:
        with self._lock:
            self._ledger.learn()
            estimate = self._ledger.estimate_bytes(place)
        self._make_room(place, estimate, ticket)
        if not self._has_loaded:
            pay_first_session()
            self._has_loaded = True
        departures = self._ledger.departures
        before, start = footprint(), time.perf_counter()
        model = place.load()
        load_s = time.perf_counter() - start
        grown = footprint().growth_since(before)
        self._reap()
        size = place.size_from(grown, is_disturbed=self._ledger.departures != departures, estimate_bytes=estimate)
        signal = self._signal  # not self: that would be a circle, and keep models until a garbage collection
        alive = weakref.ref(model, lambda _: signal.put(None))
        try:
            with self._lock:
                self._ledger.remember(place, size)
            self._make_room(place, size, ticket)
            with self._lock:
                self._check_wanted(place)
                place.publish(model, alive=alive, load_s=load_s)
                self._ledger.newest_key = place.slot.key
        except AgentError:
            with self._lock:
                self._ledger.is_leaving(alive, size)
                place.held_bytes = 0
            raise
        if not ticket.is_first:
            self._tell(AWAKE, place.slot.name, f"loaded again in {load_s * 1000:.0f} ms, {megabytes(size)}")
        return model

    def _fail(self, place: Place, ticket: Ticket, error: AgentError) -> None:
        with self._lock:
            place.held_bytes = 0
            if ticket.is_first:
                self._ledger.remove(place)
            elif not isinstance(error, OverloadedError):
                place.failures += 1
                place.failure = error
                place.retry_at_s = time.monotonic() + backoff_s(place.failures)
        if not isinstance(error, UnknownModelError):
            is_refused = isinstance(error, MemoryBudgetError | OverloadedError)
            self._tell(REFUSED if is_refused else LOAD_FAILED, place.slot.name, str(error))

    def _check_wanted(self, place: Place) -> None:
        if place.slot.key not in self._ledger.places:
            raise _removed(place.slot.name)
        if self._is_closed:
            raise OverloadedError(f"model {place.slot.name} is not loaded: the agent is closing")

    def _make_room(self, place: Place, need_bytes: int, ticket: Ticket) -> None:
        """Let `place` hold `need_bytes`, which the budget allows when this returns."""
        start_s = time.monotonic()
        while True:
            self._reap()
            waited_s = time.monotonic() - start_s
            with self._lock:
                self._check_wanted(place)
                plan = self._ledger.plan(place, need_bytes, may_take_busy=waited_s >= BUSY_GRACE_S)
                if not plan.is_possible or waited_s >= ROOM_WAIT_S:
                    raise self._ledger.refusal(place, need_bytes, is_lasting=not plan.is_possible or ticket.is_first)
                if not plan.victims and not plan.must_wait:
                    place.held_bytes = need_bytes
                    return
                victims = [self._ledger.places[key] for key in plan.victims]
                gone = [self._ledger.let_go(victim) for victim in victims]
            del gone
            for victim in victims:
                self._tell(ASLEEP, victim.slot.name, f"{place.slot.name} needs the memory")
            if plan.must_wait:
                self._wait(_POLL_S)

    def _tell(self, kind: str, name: str, detail: str) -> None:
        try:
            self._on_event(kind, name, detail)
        except Exception:  # noqa: BLE001 - somebody else's fault must not end the loader thread
            _LOG.exception("an event of residency was not taken: %s %s %s", kind, name, detail)


def backoff_s(failures: int) -> float:
    """How long to wait with the next load after so many failed ones in a row, at least one."""
    return float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 32)))


def _without_frames(error: AgentError) -> AgentError:
    # the frames of a traceback would keep a model in memory that was just refused
    error.__traceback__ = None
    error.__context__ = None
    return error


def _removed(name: str) -> UnknownModelError:
    return UnknownModelError(f"model {name} is no longer loaded here")
