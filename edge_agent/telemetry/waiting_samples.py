"""Sampled inputs on their way from the serving path to the telemetry thread, in bounded room.

Invariants: never more than MAX_WAITING calls and about MAX_WAITING_BYTES wait; when the room is used up a random half
of what waits is let go (and the caller samples half as often), so that of the calls since the last emptying each still
has the same chance, the early ones no better than the late.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_WAITING = 256
MAX_WAITING_BYTES = 16 * 1024 * 1024
MAX_INPUT_BYTES = 5 * 1024 * 1024
"""Inputs of one call that are larger are not copied for features; nor are outputs. 640 x 640 x 3 floats fit."""
MAX_TOGETHER_BYTES = 1024 * 1024
"""Calls are absorbed together up to this size: the features of a batch take several times its memory."""

Tensors = Mapping[str, NDArray[np.generic]]
S = TypeVar("S")


class CallSample(NamedTuple, Generic[S]):
    """One sampled call: copies of its tensors, and what they cost the serving path, in seconds."""

    series: S
    inputs: Tensors
    outputs: Tensors | None
    size_bytes: int
    cost_s: float


class WaitingSamples(Generic[S]):
    """Put by any thread, taken by one."""

    def __init__(self) -> None:
        self._waiting: deque[CallSample[S]] = deque()
        self._bytes = 0  # not exact where threads race; each emptying begins again
        self._thinning = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sample: CallSample[S]) -> bool:
        """Keep a sample. False when the room is used up: half were let go, and half as many should come."""
        self._waiting.append(sample)
        self._bytes += sample.size_bytes
        if len(self._waiting) <= MAX_WAITING and self._bytes <= MAX_WAITING_BYTES:
            return True
        if not self._thinning.acquire(blocking=False):
            return True  # another thread is at it
        try:
            self._thin()
        finally:
            self._thinning.release()
        return False

    def _thin(self) -> None:
        count, kept_bytes = len(self._waiting), 0
        coins = random.getrandbits(count + 1)
        for place in range(count):
            try:
                sample = self._waiting.popleft()
            except IndexError:  # taken meanwhile
                break
            if coins >> place & 1:
                self._waiting.append(sample)
                kept_bytes += sample.size_bytes
        self._bytes = kept_bytes

    def take(self) -> list[CallSample[S]]:
        """Everything that waits now."""
        taken = []
        for _ in range(len(self._waiting)):
            try:
                taken.append(self._waiting.popleft())
            except IndexError:  # thinned meanwhile
                break
        self._bytes = 0
        return taken


def copied(tensors: Tensors) -> tuple[Tensors | None, int]:
    """(a copy of a call's tensors, which its caller may change, its bytes); (None, 0) of what is too large."""
    size_bytes = sum(array.nbytes for array in tensors.values())
    if size_bytes > MAX_INPUT_BYTES:
        return None, 0
    return {name: array.copy() for name, array in tensors.items()}, size_bytes


def together(samples: list[CallSample[S]]) -> Iterator[list[CallSample[S]]]:
    """The samples in groups that may be absorbed as one batch: of one series, alike in all but their rows."""
    groups: dict[object, list[CallSample[S]]] = {}
    sizes: dict[object, int] = {}
    for sample in samples:
        likeness = (id(sample.series), _likeness(sample.inputs), sample.outputs and _likeness(sample.outputs))
        if likeness[1] is None or (sample.outputs is not None and likeness[2] is None):
            yield [sample]
            continue
        if sizes.get(likeness, 0) + sample.size_bytes > MAX_TOGETHER_BYTES and likeness in groups:
            yield groups.pop(likeness)
            sizes[likeness] = 0
        groups.setdefault(likeness, []).append(sample)
        sizes[likeness] = sizes.get(likeness, 0) + sample.size_bytes
    yield from groups.values()


def joined(tensors: list[Tensors]) -> Tensors:
    """The tensors of calls that are alike, one after the other; none of no calls."""
    if len(tensors) <= 1:
        return tensors[0] if tensors else {}
    return {name: np.concatenate([call[name] for call in tensors]) for name in tensors[0]}


def _likeness(tensors: Tensors) -> object | None:
    """What tensors that may be joined have in common; None where a tensor has no rows or another number of them."""
    rows = {array.shape[0] if array.ndim else None for array in tensors.values()}
    if len(rows) != 1 or None in rows:
        return None
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in tensors.items())
