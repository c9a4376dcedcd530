"""What this device believes, and until when. Nothing here waits for the network.

Invariants:
1. the roots are a chain from the pinned one (see `fleet_protocol.root`), each on disk before it is believed, and the
   newest one never goes back: a chain that the disk broke is believed as far as it holds, and begins nothing new until
   it is whole again;
2. a bundle is installed on the word of the newest root's release keys; what is installed already may also have those of
   an earlier root of this chain, so that a revoked key stops no device;
3. a desired state counts as long as those who signed it could sign it today: once they are no directors any more, what
   the new ones say is the newest, whatever its generation;
4. no message is refused for its time. An expired desired state or root begins nothing new, and what runs stays.

Time is the later of the system's clock (one that was never set is early) and the `issued_at_ns` of the desired state in
force, run on by the time the machine was up since. Of the clock nothing is remembered, so a wrong one harms only while
it is wrong; of signed messages only the one in force, so the next puts right what its issuer's wrong clock did.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edge_agent.control.desired import verify_desired
from edge_agent.durable_files import replace_file
from edge_agent.errors import ConfigError, DesiredRefusedError
from fleet_protocol.envelope import signers_of
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import Desired
from fleet_protocol.root import MAX_ROOT_BYTES, MAX_ROOTS, KeyRule, Root, verify_first_root, verify_next_root

_LOG = logging.getLogger(__name__)
_MAX_NS = 253_402_300_799 * 10**9  # the last second that a date can show


class UpdateTrust(Protocol):
    """What the updater asks before it believes a desired state, and before it begins something new."""

    def signers(self, envelope: bytes) -> tuple[str, ...]:
        """The directors of today that signed, by key id, sorted."""

    def still_counts(self, signed_by: tuple[str, ...]) -> bool:
        """Whether a message signed by these could be accepted today."""

    def held_back(self, desired: Desired) -> str:
        """Why nothing new may begin on this word now; "" when it may."""


class BelievesForever:
    """The trust of an updater that knows neither roots nor time."""

    def signers(self, envelope: bytes) -> tuple[str, ...]:
        """Nobody is told apart."""
        return ()

    def still_counts(self, signed_by: tuple[str, ...]) -> bool:
        """Always."""
        return True

    def held_back(self, desired: Desired) -> str:
        """Never."""
        return ""


class RootChain:
    """The roots from the pinned one to the newest accepted, kept as FOLDER/<version>.json. One thread adds."""

    def __init__(self, folder: Path, *, pinned: Path, fleet: str) -> None:
        """Raises ConfigError when the pinned root cannot be believed."""
        try:
            first = verify_first_root(_read(pinned), fleet=fleet)
        except (OSError, ProtocolError) as error:
            raise ConfigError(f"trust.root {pinned}: {error}: copy the root from the operator again") from None
        self._folder = folder
        self._roots: tuple[Root, ...] = (first,)
        self._seen = max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()), default=0)
        while self.newest.version < self._seen:
            try:
                self._roots += (verify_next_root(self.newest, _read(self._path(self.newest.version + 1))),)
            except (OSError, ProtocolError) as error:
                lost, used = self._path(self.newest.version + 1), self.newest.version
                _LOG.error("trust root %s is damaged or gone (%s): root %s is used until it is back", lost, error, used)
                break

    @property
    def newest(self) -> Root:
        """The newest root that the chain reaches."""
        return self._roots[-1]

    @property
    def is_broken(self) -> bool:
        """Whether a newer root was accepted once than the chain reaches now."""
        return self._seen > self.newest.version

    @property
    def seen_version(self) -> int:
        """The newest version that was ever accepted here."""
        return max(self._seen, self.newest.version)

    def add(self, envelope: bytes) -> Root:
        """Accept the next root; it is on disk when this returns.

        Raises SignatureError, MalformedMessage or UnsupportedSchema, and OSError when the disk fails.
        """
        if len(self._roots) >= MAX_ROOTS:
            raise DesiredRefusedError(f"{MAX_ROOTS} trust roots follow the pinned one: pin a newer root in trust.root")
        root = verify_next_root(self.newest, envelope)
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._path(root.version), envelope)
        self._roots += (root,)
        return root

    def release_rules(self) -> tuple[KeyRule, ...]:
        """Who may release a bundle, the newest root's rule first; the others only count for what is installed."""
        return tuple(root.rule("release") for root in reversed(self._roots))

    def _path(self, version: int) -> Path:
        return self._folder / f"{version}.json"


def machine_uptime_ns() -> int:
    """How long this machine is up, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class KnownTime:
    """The time as this device knows it, in UTC nanoseconds."""

    def __init__(
        self, *, clock_ns: Callable[[], int] = time.time_ns, uptime_ns: Callable[[], int] = machine_uptime_ns
    ) -> None:
        self._clock_ns, self._uptime_ns = clock_ns, uptime_ns
        self._anchor = (0, self._uptime_ns())

    def now_ns(self, signed_ns: int) -> int:
        """The time, given the `issued_at_ns` of the desired state in force."""
        if self._anchor[0] != signed_ns:
            self._anchor = (signed_ns, self._uptime_ns())
        return max(self._clock_ns(), self._anchor[0] + self._uptime_ns() - self._anchor[1])


class Trust:
    """The trust of one device: in plain director keys, or in those of the newest root."""

    def __init__(
        self, *, fleet: str, device: str, director: KeyRule | None, chain: RootChain | None, known_time: KnownTime
    ) -> None:
        if (director is None) == (chain is None):
            raise ConfigError("[trust] believes in plain keys or in a root: give one of both")
        self._fleet, self._device, self._plain = fleet, device, director
        self.chain, self._time = chain, known_time

    @property
    def root_version(self) -> int:
        """The newest root's version, 0 for plain keys."""
        return self.chain.newest.version if self.chain else 0

    def verify(self, envelope: bytes) -> Desired:
        """The desired state in an envelope, if today's directors signed it. Raises DesiredRefusedError."""
        keys, threshold = self._director()
        return verify_desired(envelope, fleet=self._fleet, device=self._device, director_keys=keys, threshold=threshold)

    def signers(self, envelope: bytes) -> tuple[str, ...]:
        """The directors of today that signed, by key id, sorted."""
        return tuple(sorted(signers_of(envelope, self._director().keys)))

    def still_counts(self, signed_by: tuple[str, ...]) -> bool:
        """Whether a message signed by these could be accepted today; what has no signers on record counts."""
        rule = self._director()
        return not signed_by or len({key.key_id for key in rule.keys} & set(signed_by)) >= rule.threshold

    def held_back(self, desired: Desired) -> str:
        """Why nothing new may begin on this word now; "" when it may."""
        return why_held_back(
            desired,
            root=self.chain.newest if self.chain else None,
            seen_version=self.chain.seen_version if self.chain else 0,
            now_ns=self._time.now_ns(desired.issued_at_ns),
        )

    def _director(self) -> KeyRule:
        if self.chain is not None:
            return self.chain.newest.rule("director")
        assert self._plain is not None  # noqa: S101 - one of both, by __init__
        return self._plain


def why_held_back(desired: Desired, *, root: Root | None, seen_version: int, now_ns: int) -> str:
    """Why nothing new may begin; "" when it may. `seen_version` is of the newest root ever accepted. Pure."""
    if root is not None:
        wanted = max(seen_version, desired.root_version)
        if wanted > root.version:
            return f"trust root {wanted} is not here yet, this device has {root.version}: it asks the server for it"
        if now_ns >= root.expires_ns:
            return (
                f"trust root {root.version} expired on {_date(root.expires_ns)}: the operator must issue the next one"
            )
    if desired.expires_ns and now_ns >= desired.expires_ns:
        return (
            f"the desired state of generation {desired.generation} expired on {_date(desired.expires_ns)} and nothing "
            "newer came: look whether the server is down, the broker withholds messages, or this clock is wrong"
        )
    return ""


def _date(at_ns: int) -> str:
    return datetime.fromtimestamp(min(at_ns, _MAX_NS) // 10**9, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_ROOT_BYTES + 1)
