"""What leaves the outbox first, and what is given up first. Pure.

Sending, a slot after the other, by SLOTS: events before everything, then the windows of the last minutes (what is
happening now), then the backlog, oldest first; but one slot in four is for windows while events wait, and one in eight
for the backlog, so that none of them starves. A slot whose kind has nothing left goes to the first that has.

Giving up, when merging makes no more room: by `Worth`, the least first, within one worth the oldest.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from fleet_protocol.messages import Window
from fleet_protocol.topics import TopicKind


class Worth(IntEnum):
    """How much a record is worth to the server: the windows in which nothing happened least, events most."""

    IDLE = 0
    PLAIN = 1
    TELLING = 2
    EVENT = 3


EVENT, FRESH, BACKLOG = range(3)
SLOTS = (EVENT, EVENT, EVENT, FRESH, EVENT, EVENT, EVENT, BACKLOG)


def worth_of(kind: TopicKind, window: Window | None) -> Worth:
    """The worth of a record; `window` is None for what is no window, or one that cannot be read."""
    if kind is not TopicKind.TELEMETRY:
        return Worth.EVENT
    if window is None:
        return Worth.IDLE
    if window.errors or window.outcomes is not None:
        return Worth.TELLING
    return Worth.PLAIN if window.count or window.shadow is not None else Worth.IDLE


def sending_order(
    *, events: Sequence[int], fresh: Sequence[int], backlog: Sequence[int], limit: int, turn: int
) -> list[int]:
    """Up to `limit` ids, each list's in its own order. `turn` is how many slots were given before.

    >>> sending_order(events=[9], fresh=[5, 6], backlog=[1, 2, 3], limit=5, turn=0)
    [9, 5, 6, 1, 2]
    """
    waiting = [list(reversed(ids)) for ids in (events, fresh, backlog)]
    chosen: list[int] = []
    while len(chosen) < limit and any(waiting):
        wanted = SLOTS[(turn + len(chosen)) % len(SLOTS)]
        ids = waiting[wanted] or next(ids for ids in waiting if ids)
        chosen.append(ids.pop())
    return chosen
