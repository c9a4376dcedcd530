"""Which outcomes were counted, and which of them no window has told yet. In memory; the journal is its durable half.

Invariants: a prediction's outcome is counted once, also across restarts, among the last MAX_SEEN; between two windows
at most MAX_OPEN outcomes are remembered for the journal (the rest is counted all the same). Belongs to the telemetry's
lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from sys import intern

from edge_agent.telemetry.outcome_journal import MAX_OPEN, MAX_SEEN, ReportedOutcome
from edge_agent.telemetry.series import SeriesKey


class OutcomeBook:
    """Begins with what an earlier process left: outcomes that it `counted`, and open ones."""

    def __init__(
        self, *, counted: Iterable[tuple[str, int]] = (), left_open: Iterable[ReportedOutcome] = (), keeps: bool = True
    ) -> None:
        self._keeps = keeps
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._new: list[ReportedOutcome] = []
        self._open: dict[SeriesKey, list[ReportedOutcome]] = {}
        self._open_count = 0
        for identity in counted:
            self._see(identity)
        for outcome in left_open:
            self._see(outcome.identity)
            self._remember(outcome)

    def has(self, identity: tuple[str, int]) -> bool:
        """Whether this prediction's outcome was counted."""
        return identity in self._seen

    def add(self, outcome: ReportedOutcome) -> None:
        """An outcome was counted in the open window of its series."""
        outcome = outcome._replace(boot_id=intern(outcome.boot_id))
        self._see(outcome.identity)
        if self._keeps and self._open_count < MAX_OPEN:
            self._remember(outcome)
            self._new.append(outcome)

    def take_new(self) -> list[ReportedOutcome]:
        """Those that are to be journaled now."""
        taken, self._new = self._new, []
        return taken

    def take_open(self, key: SeriesKey) -> list[ReportedOutcome]:
        """Those that a window of `key`, which closes now, tells."""
        taken = self._open.pop(key, [])
        self._open_count -= len(taken)
        if taken and self._new:
            told = {outcome.identity for outcome in taken}
            self._new = [outcome for outcome in self._new if outcome.identity not in told]
        return taken

    def _see(self, identity: tuple[str, int]) -> None:
        self._seen[identity] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _remember(self, outcome: ReportedOutcome) -> None:
        key = SeriesKey(outcome.model, outcome.version, outcome.variant, outcome.arm)
        self._open.setdefault(key, []).append(outcome)
        self._open_count += 1
