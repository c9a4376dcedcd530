"""Measures models on this CPU while nobody needs it, and has those loaded again that can be faster.

One model after the other, once for each file, CPU and ONNX Runtime: what was found is kept with the optimised
graphs. Invariants: measuring begins only while no call runs or waits, at the lowest priority, and never takes
memory that a budget has not left over; what serves is exchanged as for any other load, without a gap.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_agent.errors import AgentError

_LOG = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
"""How often the tuner looks whether the models are idle."""
_LOWEST_PRIORITY = 19
_STOP_TIMEOUT_S = 5.0


class BackgroundTuner:
    """`measure(file)` tells whether loading the file again would make it faster; `reload` does that, by its key."""

    def __init__(
        self,
        *,
        measure: Callable[[Path], bool],
        reload: Callable[[tuple[str, str]], None],
        is_idle: Callable[[], bool],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._look_every_s = look_every_s
        self._measure, self._reload, self._is_idle = measure, reload, is_idle
        self._waiting: dict[tuple[str, str], Path] = {}
        self._seen: set[tuple[Path, int]] = set()
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def offer(self, key: tuple[str, str], file: Path) -> None:
        """A model was put to work as `key` (name, arm). One that was measured before is left alone."""
        with suppress(OSError), self._guard:
            mark = (file, file.stat().st_mtime_ns)
            if mark in self._seen or self._stopping.is_set():
                return
            self._seen.add(mark)
            self._waiting[key] = file
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tuner", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End; a measurement in progress is given a moment."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def _work(self) -> None:
        with suppress(
            OSError, AttributeError
        ):  # the priority of this thread alone, where the system has one per thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while not self._stopping.wait(self._look_every_s):
            if not self._is_idle():
                continue
            with self._guard:
                if not self._waiting:
                    self._thread = None
                    return
                key, file = self._waiting.popitem()
            try:
                if self._measure(file) and not self._stopping.is_set():
                    _LOG.info("%s: loading it again with the settings that were measured as faster", "/".join(key))
                    self._reload(key)
            except AgentError as error:
                _LOG.warning("%s could not be measured: %s", file, error)
            except Exception:  # noqa: BLE001 - a bug here must not take anything else with it
                _LOG.exception("measuring %s failed", file)
