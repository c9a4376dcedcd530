"""Runs a candidate on sampled calls, in idle time, and counts how often it answers otherwise.

Invariants:
1. the candidate never answers, delays or harms a call: a call hands over copies of what it had and gave, if there is
   room for them, and takes no lock for it; everything else happens on one thread of low priority, started by the
   first sample, and whatever the candidate does wrong is counted there;
2. the candidate runs only while no call is running or waiting (`is_idle`) and the device has something to spare
   (`may_run`), and at most `max_share` of the time, counted over its whole life but for one run;
3. what waits is bounded in number and bytes; what finds no room is not sampled, and counted.

A comparison is of one call. Classification: any row's winning class differs. Anything else: any number of any output
differs by more than ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE x the served number. NaN agrees with NaN only.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AgentError, InvalidInputError

MAX_WAITING = 16
"""Samples that wait for idle time, give or take calls that arrive in the same moment."""
MAX_SAMPLE_BYTES = 1024 * 1024
"""Inputs and outputs of one call; a larger one is not sampled."""
DEFAULT_MAX_SHARE = 0.10
RELATIVE_TOLERANCE = 0.05
ABSOLUTE_TOLERANCE = 1e-3

_MAX_CREDIT_S = 1.0  # idle time saved up beyond this is lost: a burst of samples must not run unbounded
_LOOK_AGAIN_S = 0.1
_STOP_TIMEOUT_S = 5.0
# Not the lowest: this thread holds the interpreter's lock for moments, and where other processes keep every core busy
# the kernel would hardly let it run to give the lock back to a call.
_NICENESS = 5
_CLASSIFICATION = "classification"
_LOG = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[np.generic]]


class TimeShare:
    """A token bucket of seconds: `share` of the time that passes may be spent, up to _MAX_CREDIT_S saved up.

    What a run will take is known only afterwards: it may overdraw, and then nothing runs until the debt is paid.
    """

    def __init__(self, *, share: float, now_s: float) -> None:
        self._share, self._credit_s, self._at_s = share, 0.0, now_s

    def wait_s(self, now_s: float) -> float:
        """How long to wait before the next run; 0 when it may begin."""
        self._credit_s = min(_MAX_CREDIT_S, self._credit_s + (now_s - self._at_s) * self._share)
        self._at_s = now_s
        return max(0.0, -self._credit_s / self._share)

    def spend(self, seconds: float) -> None:
        """A run took so long."""
        self._credit_s -= seconds


class ShadowRunner:
    """One candidate beside what answers.

    `run` gives the candidate's outputs for prepared inputs. `on_compared(disagreed)` and `on_error(kind)` are called
    on the runner's thread. `task` is the manifest's. Raises ValueError for a `max_share` outside (0, 1].
    """

    def __init__(
        self,
        *,
        run: Callable[[Tensors], Tensors],
        task: str,
        is_idle: Callable[[], bool],
        may_run: Callable[[], bool],
        on_compared: Callable[[bool], None],
        on_error: Callable[[str], None],
        max_share: float = DEFAULT_MAX_SHARE,
    ) -> None:
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share is {max_share}: it is a share of the time, above 0 and at most 1")
        self._run, self._task, self._is_idle, self._may_run = run, task, is_idle, may_run
        self._on_compared, self._on_error = on_compared, on_error
        self._budget = TimeShare(share=max_share, now_s=time.monotonic())
        self._waiting: SimpleQueue[tuple[Tensors, Tensors] | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._beginning = threading.Lock()
        self._thread: threading.Thread | None = None
        self._run_since_s: float | None = None
        self.not_sampled = 0

    def offer(self, inputs: Tensors, outputs: Tensors) -> None:
        """A call was answered: prepared `inputs`, and `outputs` of the model that answered. Never waits.

        Both are copied, for the caller may go on to use its arrays.
        """
        if self._waiting.qsize() >= MAX_WAITING or _size_bytes(inputs) + _size_bytes(outputs) > MAX_SAMPLE_BYTES:
            self.not_sampled += 1
            return
        self._waiting.put((_copied(inputs), _copied(outputs)))
        if self._thread is None:
            self._begin()

    @property
    def oldest_run_s(self) -> float:
        """For how long the candidate has been at the sample it works on; 0 when it rests."""
        since_s = self._run_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def stop(self) -> None:
        """End; what waits is let go. A candidate that hangs is left behind on its daemon thread."""
        self._stopping.set()
        self._waiting.put(None)
        with self._beginning:
            thread = self._thread
        if thread is not None:
            thread.join(_STOP_TIMEOUT_S)

    def _begin(self) -> None:
        with self._beginning:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        _step_back()
        while (sample := self._waiting.get()) is not None and self._wait_for_leave():
            self._run_since_s = started_s = time.monotonic()
            self._compare(*sample)
            self._run_since_s = None
            self._budget.spend(time.monotonic() - started_s)

    def _wait_for_leave(self) -> bool:
        """Wait until a run is in place. False when the runner stops instead."""
        while not self._stopping.is_set():
            pause_s = self._budget.wait_s(time.monotonic())
            if not pause_s:
                if self._is_idle() and self._may_run():
                    return True
                pause_s = _LOOK_AGAIN_S
            self._stopping.wait(pause_s)
        return False

    def _compare(self, inputs: Tensors, outputs: Tensors) -> None:
        try:
            self._on_compared(disagrees(self._task, outputs, self._run(inputs)))
        except InvalidInputError:
            self._on_error("invalid_input")
        except AgentError:
            self._on_error("inference")
        except Exception:  # noqa: BLE001 - a candidate's fault must not end the comparison with it
            _LOG.exception("the shadow failed on one sample; it goes on with the next")
            self._on_error("internal")


def disagrees(task: str, served: Tensors, candidate: Tensors) -> bool:
    """Whether the candidate answered one call otherwise than the model that served it; see the module."""
    if task == _CLASSIFICATION and served and candidate:
        first, other = next(iter(served.values())), next(iter(candidate.values()))
        if _has_classes(first) and _has_classes(other):
            return first.shape[:-1] != other.shape[:-1] or not np.array_equal(_winners(first), _winners(other))
    return any(name not in candidate or _differs(array, candidate[name]) for name, array in served.items())


def _has_classes(array: NDArray[np.generic]) -> bool:
    return array.ndim >= 1 and array.shape[-1] > 1 and array.dtype.kind in "iuf"


def _winners(scores: NDArray[np.generic]) -> NDArray[np.generic]:
    """The winning class per row; rows that hold a NaN have none, and all look the same."""
    winners = scores.argmax(axis=-1)
    return np.where(np.isnan(scores).any(axis=-1), -1, winners) if scores.dtype.kind == "f" else winners


def _differs(served: NDArray[np.generic], candidate: NDArray[np.generic]) -> bool:
    if served.shape != candidate.shape:
        return True
    if served.dtype.kind not in "biuf" or candidate.dtype.kind not in "biuf":
        return not np.array_equal(served, candidate)
    got, want = candidate.astype(np.float64), served.astype(np.float64)
    return not np.allclose(got, want, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)


def _size_bytes(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())


def _copied(tensors: Tensors) -> Tensors:
    return {name: array.copy() for name, array in tensors.items()}


def _step_back() -> None:
    """A low priority for this thread alone, where the system has one per thread (Linux)."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
