"""How far each device's clock is off, told apart from telemetry that is late. Pure, but for what `record` writes.

What a device dates reaches the server after a delay that is never negative, so (its time - the server's) is at most the
clock's skew. From one observation to the next, in this order:
1. one above the estimate, or within TOLERANCE_NS below it, is prompt: the estimate rises to it at once;
2. lower ones are late, unless AGREEING in a row, each dated later than the one before, agree within TOLERANCE_NS: a
   backlog's dates move on while it is sent and do not agree, a clock that was set back does;
3. a date heard again (what is retained, what is sent again) says nothing.
Until something else is shown a clock is taken to be right. Message by message this costs under a microsecond or two;
the database is written only when a figure changed by what a person would care about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from fleet_server.database.tables import device_clocks

TOLERANCE_NS = 2 * 10**9
AGREEING = 4
OFF_NS = 10 * 10**9
"""A clock further off than this is off."""
MAX_DEVICES = 200_000
_WORTH_WRITING_NS = 500_000_000
_LATE_WORTH_WRITING_NS = 60 * 10**9
_REWRITE_NS = 3_600 * 10**9
_MAX_NS = 2**63 - 1


@dataclass(slots=True)
class Clock:
    """The running estimate of one device: `skew_ns` is its time minus the server's, None before anything prompt."""

    skew_ns: int | None = None
    candidates: list[tuple[int, int]] = field(default_factory=list)
    last_at_ns: int = -1

    def observe(self, at_ns: int, received_ns: int) -> None:
        """Something that the device dated `at_ns` was received at `received_ns`."""
        offset_ns = at_ns - received_ns
        presumed_ns = self.skew_ns or 0
        if offset_ns >= presumed_ns - TOLERANCE_NS:
            self.skew_ns = offset_ns if self.skew_ns is None else max(self.skew_ns, offset_ns)
            self.candidates.clear()
        elif all(at_ns > earlier_ns + TOLERANCE_NS for earlier_ns, _ in self.candidates):
            if any(abs(offset_ns - other_ns) > TOLERANCE_NS for _, other_ns in self.candidates):
                self.candidates.clear()
            self.candidates.append((at_ns, offset_ns))
            if len(self.candidates) >= AGREEING:
                self.skew_ns = max(other_ns for _, other_ns in self.candidates)
                self.candidates.clear()

    def late_ns(self, at_ns: int, received_ns: int) -> int:
        """How late a message came, by the device's own corrected clock."""
        return max(0, received_ns - at_ns + (self.skew_ns or 0))


@dataclass(slots=True)
class _Written:
    skew_ns: int
    late_ns: int
    at_ns: int


@dataclass(slots=True)
class _Watched:
    clock: Clock = field(default_factory=Clock)
    written: _Written | None = None


class Clocks:
    """The clocks of the devices heard last, at most MAX_DEVICES. For one thread."""

    def __init__(self) -> None:
        self._watched: OrderedDict[str, _Watched] = OrderedDict()

    def observe(self, device: str, at_ns: int, received_ns: int) -> None:
        """A device dated something."""
        watched = self._watched.get(device)
        if watched is None:
            watched = self._watched[device] = _Watched()
            if len(self._watched) > MAX_DEVICES:
                self._watched.popitem(last=False)
        else:
            self._watched.move_to_end(device)
        watched.clock.observe(at_ns, received_ns)

    def due(self, newest_ns: Mapping[str, int], received_ns: int) -> list[dict[str, Any]]:
        """Rows to write of devices whose newest window ended at `newest_ns[device]`."""
        rows = []
        for device, at_ns in newest_ns.items():
            watched = self._watched.get(device)
            if watched is None or watched.clock.skew_ns is None:
                continue
            skew_ns, late_ns = watched.clock.skew_ns, watched.clock.late_ns(at_ns, received_ns)
            if _is_worth_writing(watched.written, skew_ns, late_ns, received_ns):
                rows.append(
                    {"device": device, "skew_ns": _held(skew_ns), "late_ns": _held(late_ns), "measured_ns": received_ns}
                )
        return rows

    def note_written(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """These rows are in the database."""
        for row in rows:
            watched = self._watched.get(row["device"])
            if watched is not None:
                watched.written = _Written(row["skew_ns"], row["late_ns"], row["measured_ns"])


def write_clocks(connection: Connection, fleet: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep the newest figure of each device, in the caller's transaction."""
    values = [{"fleet": fleet, **row} for row in rows]
    if not values:
        return
    statement = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(device_clocks)
    changed = {name: statement.excluded[name] for name in ("skew_ns", "late_ns", "measured_ns")}
    connection.execute(statement.on_conflict_do_update(index_elements=["fleet", "device"], set_=changed), values)


def _is_worth_writing(written: _Written | None, skew_ns: int, late_ns: int, now_ns: int) -> bool:
    return (
        written is None
        or abs(skew_ns - written.skew_ns) > _WORTH_WRITING_NS
        or abs(late_ns - written.late_ns) > _LATE_WORTH_WRITING_NS
        or now_ns - written.at_ns > _REWRITE_NS
    )


def _held(value_ns: int) -> int:
    return max(-_MAX_NS, min(_MAX_NS, value_ns))
