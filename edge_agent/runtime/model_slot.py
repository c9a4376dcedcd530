"""The place of one model file that may sleep, and what residency keeps about it.

Invariants: `ModelSlot` is read without a lock, at any moment by any thread; only residency writes it, but for
`uses` and `last_used_ns`, which the serving path writes and which may lose a count to another thread.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from msgspec import Struct, field

from edge_agent.errors import AgentError
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import TensorSpec

MAX_SAMPLES = 5
"""Measured sizes and load times of one file that are kept; their medians count."""
_IDLE_REFERENCES = 2  # the slot's own and the one that sys.getrefcount is given

_keys = itertools.count(1)


class ModelSlot:
    """The place of one model file that may sleep: `model` is None while it does; the signature stays.

    Read without a lock; the serving path writes `uses` and `last_used_ns` (monotonic), residency all the rest.
    """

    __slots__ = (
        "inputs", "is_batchable", "key", "last_used_ns", "load_s", "memory_bytes", "model", "must_answer", "name",
        "outputs", "pinned", "uses",
    )  # fmt: skip

    def __init__(self, *, name: str, pinned: bool = False, must_answer: bool = True) -> None:
        self.key = next(_keys)
        self.name = name
        self.model: Model | None = None
        self.uses = 0
        self.last_used_ns = 0
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.is_batchable = False
        self.memory_bytes = 0
        self.load_s = 0.0
        self.pinned = pinned
        self.must_answer = must_answer

    @property
    def is_busy(self) -> bool:
        """Whether a call holds the model at this moment."""
        return sys.getrefcount(self.model) > _IDLE_REFERENCES if self.model is not None else False


class ResidencyFacts(Struct, frozen=True, kw_only=True):
    """One model as residency sees it. `memory_bytes` is what it takes awake, `loads` how often it was loaded."""

    name: str
    memory_bytes: int
    pinned: bool
    uses: int
    last_used_ns: int
    asleep: bool
    loads: int
    load_s: float


class Ticket:
    """One load that any number of callers wait for."""

    __slots__ = ("done", "error", "is_first", "model")

    def __init__(self, *, is_first: bool) -> None:
        self.done = threading.Event()
        self.error: AgentError | None = None
        self.is_first = is_first
        self.model: Model | None = None


class Place(Struct, kw_only=True):
    """What residency knows about one slot. `held_bytes` counts against the budget."""

    slot: ModelSlot
    load: Callable[[], Model]
    file_bytes: int
    identity: tuple[str, int, int] | None
    held_bytes: int = 0
    samples: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    load_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    alive: weakref.ref[Model] | None = None
    ticket: Ticket | None = None
    seen_uses: int = 0
    loads: int = 0
    failures: int = 0
    failure: AgentError | None = None
    retry_at_s: float = 0.0

    def size_from(self, grown_bytes: int, *, is_disturbed: bool, estimate_bytes: int) -> int:
        """The size to count after a load during which memory grew so much: the median of the last ones.

        Never below the files' size, which may be mapped. A load during which other memory returned
        (`is_disturbed`) grew by more than it seems: its figure serves only upwards, and is not kept.
        """
        measured = max(grown_bytes, self.file_bytes)
        if not is_disturbed:
            self.samples.append(measured)
        if not self.samples:
            return max(measured, estimate_bytes)
        return sorted(self.samples)[(len(self.samples) - 1) // 2]

    def publish(self, model: Model, *, alive: weakref.ref[Model], load_s: float) -> None:
        """Let the slot answer with a model that was just loaded.

        The median of the last load times counts: one load on a busy CPU must not decide who sleeps.
        """
        slot = self.slot
        slot.inputs, slot.outputs, slot.is_batchable = model.inputs, model.outputs, model.is_batchable
        self.load_times_s.append(load_s)
        slot.load_s = sorted(self.load_times_s)[(len(self.load_times_s) - 1) // 2]
        slot.last_used_ns = time.monotonic_ns()
        slot.model = model
        self.alive = alive
        self.loads += 1
