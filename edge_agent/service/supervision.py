"""Keeps the supervisor informed, from one thread: starting, serving, alive or stuck, stopping.

Order: while models load, the start's timeout is extended, up to START_LIMIT_S in all → READY → WATCHDOG while nothing
is stuck, several times within the supervisor's patience → STOPPING. What is stuck is said once and the watchdog is no
longer fed: the supervisor ends this process, and a model on trial that hung is taken back by the next start's crash
guard. Without a supervisor nothing runs here.
"""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from edge_agent.service.supervisor import Supervisor

START_LIMIT_S = 900.0
_EXTENSION_S = 30.0
_LONGEST_PAUSE_S = 10.0
_SIGNS_WITHIN_PATIENCE = 4
_LOG = logging.getLogger(__name__)


class Supervision:
    """The agent's word to its supervisor. `with Supervision(...)` around the agent's whole life."""

    def __init__(self, supervisor: Supervisor | None) -> None:
        self._supervisor = supervisor
        self._what_is_stuck: Callable[[], list[str]] | None = None
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        patience_s = supervisor.watchdog_s if supervisor else None
        self._feeds = patience_s is not None
        self._pause_s = min(_LONGEST_PAUSE_S, (patience_s or _LONGEST_PAUSE_S) / _SIGNS_WITHIN_PATIENCE)

    def __enter__(self) -> Self:
        if self._supervisor is not None:
            faulthandler.enable()  # the watchdog's SIGABRT then says where each thread stands
            self._supervisor.status("starting: models are loading")
            self._thread = threading.Thread(target=self._run, args=(self._supervisor,), name="supervision", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None and self._thread is not None:
            self.stopping()
            self._thread.join()
            self._supervisor.close()

    def serving(self, what_is_stuck: Callable[[], list[str]]) -> None:
        """The agent serves. `what_is_stuck` is asked from now on, from this object's thread."""
        self._what_is_stuck = what_is_stuck
        self._changed.set()

    def stopping(self) -> None:
        """The agent ends by itself from here on. Safe to repeat."""
        if self._supervisor is not None and not self._stopping.is_set():
            self._stopping.set()
            self._changed.set()
            self._supervisor.stopping()

    def _run(self, supervisor: Supervisor) -> None:
        begun_s = time.monotonic()
        while self._what_is_stuck is None and not self._stopping.is_set():
            if time.monotonic() - begun_s < START_LIMIT_S:
                supervisor.extend_timeout(_EXTENSION_S)
            self._changed.wait(self._pause_s)
        if self._what_is_stuck is None or self._stopping.is_set():
            return
        supervisor.ready()
        supervisor.status("serving")
        was_stuck = False
        while not self._stopping.is_set():
            is_stuck = self._feed(supervisor, self._what_is_stuck, was_stuck=was_stuck)
            was_stuck = is_stuck
            self._stopping.wait(self._pause_s)

    def _feed(self, supervisor: Supervisor, look: Callable[[], list[str]], *, was_stuck: bool) -> bool:
        if not self._feeds:
            return False
        try:
            stuck = look()
        except Exception:  # noqa: BLE001 - a bug of the look must not end a process that works
            _LOG.exception("whether the agent is alive could not be seen")
            stuck = []
        if not stuck:
            supervisor.alive()
            if was_stuck:
                supervisor.status("serving")
        elif not was_stuck:
            _LOG.critical("stuck: %s: the supervisor is asked to restart this process", "; ".join(stuck))
            supervisor.status(f"stuck: {'; '.join(stuck)}")
        return bool(stuck)
