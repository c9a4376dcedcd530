"""Keeps work that is done again and again to a share of one core.

Work that cost `c` seconds of processor time beyond FREE_S is not due again for c / share seconds, so that a rollout of
a hundred thousand devices is looked at less often than one of ten, and neither keeps the server from its ingest.
Invariant: what costs less than FREE_S is always due.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator

FREE_S = 0.05
"""Processor time for which nobody waits."""
SHARE = 0.05
"""Of one core, for each kind of work on each rollout."""


class WorkShare:
    """When each (rollout, kind of work) is due again. For one thread: it measures the thread's processor time."""

    def __init__(
        self,
        *,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share, self._clock, self._spent = share, clock, spent
        self._due: dict[tuple[str, str], float] = {}

    def is_due(self, rollout_id: str, kind: str) -> bool:
        """Whether the work may be done now."""
        return self._clock() >= self._due.get((rollout_id, kind), 0.0)

    @contextlib.contextmanager
    def measured(self, rollout_id: str, kind: str) -> Iterator[None]:
        """Do the work in this; it is charged also when it fails."""
        began = self._spent()
        try:
            yield
        finally:
            cost_s = max(0.0, self._spent() - began - FREE_S)
            self._due[rollout_id, kind] = self._clock() + cost_s / self._share

    def excuse(self, rollout_id: str, kind: str) -> None:
        """Let the work be due at once."""
        self._due.pop((rollout_id, kind), None)

    def keep(self, rollout_ids: Collection[str]) -> None:
        """Forget every other rollout."""
        self._due = {key: due for key, due in self._due.items() if key[0] in rollout_ids}
