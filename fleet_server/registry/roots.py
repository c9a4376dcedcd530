"""The fleet's trust roots as the server keeps them: the one it pins in a file, and those pushed after it.

Invariants:
- what is pushed follows the newest root (`fleet_protocol.root`), or is refused; a root never changes;
- what the database holds is believed only along the chain from the pinned file, so whoever can write the database can
  take roots away but not make one: the release keys stay those that their holders agreed on;
- the chain only grows here. Several server processes share the table; each takes up what another one pushed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from sqlalchemy import Connection, Engine, delete, insert, select

from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PublicKey
from fleet_protocol.root import Root, read_unverified_root, verify_first_root, verify_next_root
from fleet_server.database.engine import lock_for_write
from fleet_server.database.identity_tables import trust_roots
from fleet_server.errors import ConfigError, ConflictError, UntrustedBundleError

_LOG = logging.getLogger(__name__)


class TrustRoots:
    """The chain from the pinned root to the newest. May be used from any thread."""

    def __init__(self, *, engine: Engine, fleet: str, pinned: bytes, where: str) -> None:
        """`where` the pinned root came from, for messages. Raises ConfigError when it cannot be believed."""
        try:
            first = verify_first_root(pinned, fleet=fleet)
        except ProtocolError as error:
            raise ConfigError(f"{where}: {error}") from None
        self._engine, self._fleet = engine, fleet
        self._chain: list[tuple[Root, bytes]] = [(first, pinned)]
        self._lock = threading.Lock()

    def newest(self) -> Root:
        """The root in force."""
        with self._engine.connect() as connection:
            return self._take_up(connection)

    def release_rule(self) -> tuple[Sequence[PublicKey], int]:
        """The keys that may release a bundle now, and how many of them must have signed."""
        return self.newest().rule("release")

    def changed_ns(self) -> int:
        """When the root in force was pushed here, 0 for the pinned one."""
        newest = self.newest().version
        with self._engine.connect() as connection:
            this = (trust_roots.c.fleet == self._fleet) & (trust_roots.c.version == newest)
            return int(connection.execute(select(trust_roots.c.pushed_ns).where(this)).scalar() or 0)

    def envelope(self, version: int) -> bytes | None:
        """The signed root of that version, None where the chain has none."""
        newest = self.newest().version
        first = self._chain[0][0].version
        return self._chain[version - first][1] if first <= version <= newest else None

    def versions(self) -> list[Root]:
        """Every root of the chain, the oldest first."""
        self.newest()
        return [root for root, _ in self._chain]

    def push(self, connection: Connection, envelope: bytes, *, pushed_by: str, now_ns: int) -> tuple[Root, bool]:
        """Add the next root, in the caller's transaction: the root, and whether it is new here.

        Raises UntrustedBundleError when it does not follow the newest root, ConflictError for a version that is taken.
        """
        lock_for_write(connection, trust_roots.name)
        newest = self._take_up(connection)
        try:
            told = read_unverified_root(envelope)
            known = next((root for root, _ in self._chain if root.version == told.version), None)
            if known is not None:
                if known == told:
                    return known, False
                raise ConflictError(f"trust root {told.version} is there already, and is another one: make the next")
            root = verify_next_root(newest, envelope)
        except ProtocolError as error:
            raise UntrustedBundleError(f"the trust root is refused: {error}") from None
        unbelieved = (trust_roots.c.fleet == self._fleet) & (trust_roots.c.version >= root.version)
        connection.execute(delete(trust_roots).where(unbelieved))
        connection.execute(
            insert(trust_roots).values(
                fleet=self._fleet, version=root.version, envelope=envelope, pushed_by=pushed_by, pushed_ns=now_ns
            )
        )
        return root, True

    def _take_up(self, connection: Connection) -> Root:
        """Follow the chain through what the database holds beyond what is known here."""
        with self._lock:
            newest = self._chain[-1][0]
            rows = connection.execute(
                select(trust_roots.c.envelope)
                .where(trust_roots.c.fleet == self._fleet, trust_roots.c.version > newest.version)
                .order_by(trust_roots.c.version)
            ).scalars()
            for envelope in rows:
                try:
                    newest = verify_next_root(newest, bytes(envelope))
                except ProtocolError as error:
                    _LOG.error("a trust root in the database is not believed, nor any after it: %s", error)
                    break
                self._chain.append((newest, bytes(envelope)))
            return newest
