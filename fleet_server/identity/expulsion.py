"""Makes revocations true at the broker, and keeps them true.

Each round, in this order, because a device that is cut before the broker knows its certificate comes right back:
1. the list of revoked certificates is written where it is not what the database says, and the broker told to read it;
2. the connection of every revoked device that was not cut yet, or is online all the same, is cut;
3. what the broker retains of a decommissioned device is cleared;
4. that is noted. A round that fails halfway is done again by the next.

A device that is online again after it was cut means that the broker does not read the list: said in the log once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from fleet_protocol.topics import RETAINED, topic_of
from fleet_server.errors import BusUnavailableError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.revocation import Revocation, due_for_cutting, note_cut, revoked_serials
from fleet_server.message_bus.port import MessageBus, Outgoing

_LOG = logging.getLogger(__name__)
MAX_CUTS_A_ROUND = 50
RELOAD_TIMEOUT_S = 20.0
AGAIN_AFTER_S = 5.0
REWRITE_AFTER_S = 86_400.0
"""Expired certificates leave the list, and a list that somebody damaged is made good."""
_CLEAR_TIMEOUT_S = 10.0


class RevocationListFile:
    """The file the broker reads, and how it is told to. Safe over several writers: each replaces the whole file."""

    def __init__(self, *, authority: CertificateAuthority, path: Path, reload_command: Sequence[str] = ()) -> None:
        self._authority, self._path, self._reload = authority, path, tuple(reload_command)
        self._written: tuple[str, int] | None = None

    def bring_up_to_date(self, serials: Sequence[tuple[str, int]], *, now_ns: int) -> None:
        """Write the list where it is not this one; then have the broker read it. Raises OSError."""
        digest = hashlib.sha256(repr(list(serials)).encode()).hexdigest()
        if self._written and self._written[0] == digest and now_ns - self._written[1] < REWRITE_AFTER_S * 1e9:
            return
        now = datetime.fromtimestamp(now_ns / 1e9, UTC)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(self._authority.revocation_list(serials, now=now))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # the broker's user reads it; there is nothing secret in it
        temporary.replace(self._path)
        if self._reload:
            self._tell_broker()
        self._written = (digest, now_ns)

    def _tell_broker(self) -> None:
        try:
            subprocess.run(self._reload, check=True, capture_output=True, timeout=RELOAD_TIMEOUT_S, text=True)
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", "") or "").strip().splitlines()
            raise OSError(f"identity.reload_command failed: {error} {said[-1] if said else ''}") from None


class Expulsion:
    """One round at a time. `cut` ends a device's connection, None where this server has no way to (passwords)."""

    def __init__(
        self,
        *,
        engine: Engine,
        bus: MessageBus,
        fleet: str,
        now_ns: Callable[[], int],
        cut: Callable[[str], None] | None,
        revocation_list: RevocationListFile | None,
    ) -> None:
        self._engine, self._bus, self._fleet, self._now_ns = engine, bus, fleet, now_ns
        self._cut, self._list = cut, revocation_list
        self._warned: set[str] = set()

    def step(self) -> None:
        """Do one round; what fails is logged, and due again."""
        now_ns = self._now_ns()
        with self._engine.connect() as connection:
            serials = revoked_serials(connection, self._fleet, now_ns=now_ns)
            due = due_for_cutting(connection, self._fleet, limit=MAX_CUTS_A_ROUND)
        try:
            if self._list is not None:
                self._list.bring_up_to_date(serials, now_ns=now_ns)
        except OSError as error:
            _LOG.error("the list of revoked certificates did not reach the broker: %s", error)
            return
        for revocation in due:
            if revocation.cut_ns is not None and now_ns - revocation.cut_ns < AGAIN_AFTER_S * 1e9:
                continue
            try:
                self._expel(revocation)
            except BusUnavailableError as error:
                _LOG.warning("%s is revoked and still to be cut: %s", revocation.device, error)

    def _expel(self, revocation: Revocation) -> None:
        device = revocation.device
        if revocation.cut_ns is not None and device not in self._warned:
            self._warned.add(device)
            _LOG.error("the broker let %s back in, which is revoked: does it read the revocation list?", device)
        if self._cut is not None:
            self._cut(device)
        elif revocation.cut_ns is None:
            _LOG.warning("%s is revoked: take its password from the broker, this server cannot", device)
        if revocation.decommissioned:
            topics = [topic_of(self._fleet, device, kind) for kind in RETAINED]
            cleared = [Outgoing(topic=topic, payload=b"", retain=True) for topic in topics]
            self._bus.publish(cleared, timeout_s=_CLEAR_TIMEOUT_S)
        with self._engine.begin() as connection:
            note_cut(connection, self._fleet, device, now_ns=self._now_ns())
        _LOG.info("%s was cut off: %s", device, revocation.reason or "revoked")
