"""Keeps the chain of trust roots up to date: the thin driver around `trust`.

The next root is asked for when a signed desired state names a newer one, when a desired state cannot be verified (its
director may be a new one), while the chain is broken, and once a day; at most once in MIN_PAUSE_S. What comes is worth
nothing until it follows the newest root, so it may come from anybody. Bounded: one root has at most MAX_ROOT_BYTES, one
request FETCH_TIMEOUT_S as a whole, one walk MAX_STEPS roots.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from edge_agent.control.connecting import Connector
from edge_agent.control.trust import Trust
from edge_agent.errors import AgentError, DesiredRefusedError, DownloadError
from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import Desired
from fleet_protocol.root import MAX_ROOT_BYTES

_LOG = logging.getLogger(__name__)
MIN_PAUSE_S = 30.0
MAX_STEPS = 32
FETCH_TIMEOUT_S = 10.0
_DAY_S = 86_400.0
_LOOK_S = 60.0  # how often it looks whether something expired
_SILENCE_S = 5.0


class TrustKeeper:
    """Takes every desired state first, and hands it to `deliver` when the roots that it may need were asked for."""

    def __init__(
        self,
        trust: Trust,
        *,
        fetch: Callable[[int], bytes | None],
        deliver: Callable[[bytes], None],
        in_force: Callable[[], Desired | None],
        on_change: Callable[[], None],
        min_pause_s: float = MIN_PAUSE_S,
        look_s: float = _LOOK_S,
    ) -> None:
        self._trust, self._fetch, self._deliver = trust, fetch, deliver
        self._in_force, self._on_change, self._min_pause_s, self._look_s = in_force, on_change, min_pause_s, look_s
        self._lock = threading.Lock()
        self._waiting: bytes | None = None
        self._wanted = False
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="trust", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, within FETCH_TIMEOUT_S."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def offer(self, envelope: bytes) -> None:
        """A desired state arrived. Does not wait: what nobody here can verify yet is delivered later."""
        if self._trust.chain is None:
            self._deliver(envelope)
            return
        try:
            desired = self._trust.verify(envelope)
        except DesiredRefusedError:
            with self._lock:
                self._waiting, self._wanted = envelope, True
        else:
            with self._lock:
                self._wanted = self._wanted or desired.root_version > self._trust.root_version
            self._deliver(envelope)
        self._wake.set()

    def held_back(self) -> str:
        """Why nothing new begins on this device now; "" when it may, or before the first desired state."""
        desired = self._in_force()
        return self._trust.held_back(desired) if desired is not None else ""

    def _run(self) -> None:
        asked_at, said = -self._min_pause_s, ""
        daily_at = time.monotonic() + random.uniform(0, _DAY_S)
        while not self._stop.is_set():
            now = time.monotonic()
            wanted = self._is_wanted() or now >= daily_at
            if wanted and now >= asked_at + self._min_pause_s:
                asked_at, daily_at = now, now + _DAY_S
                self._ask()
            why = self.held_back()
            if why != said:
                said = why
                if why:
                    _LOG.warning("nothing new begins: %s", why)
                self._on_change()
            pause_s = self._min_pause_s if self._is_wanted() else self._look_s
            self._wake.wait(min(pause_s, self._look_s))
            self._wake.clear()

    def _is_wanted(self) -> bool:
        chain, desired = self._trust.chain, self._in_force()
        if chain is None:
            return False
        named = desired.root_version if desired is not None else 0
        return self._wanted or chain.seen_version > chain.newest.version or named > chain.newest.version

    def _ask(self) -> None:
        with self._lock:
            waiting, self._waiting, self._wanted = self._waiting, None, False
        try:
            self._walk()
        except DownloadError as error:
            _LOG.warning("the next trust root did not come, it is asked for again: %s", error)
            with self._lock:  # what waits may be a new director's
                self._waiting, self._wanted, waiting = self._waiting or waiting, True, None
        except (AgentError, ProtocolError, OSError) as error:
            _LOG.warning("the next trust root is not taken: %s", error)
        if waiting is not None:
            self._deliver(waiting)

    def _walk(self) -> None:
        chain = self._trust.chain
        for _ in range(MAX_STEPS):
            if chain is None or self._stop.is_set():
                return
            envelope = self._fetch(chain.newest.version + 1)
            if envelope is None:
                return
            root = chain.add(envelope)
            _LOG.info("trust root %s is accepted", root.version)
            self._on_change()
        with self._lock:
            self._wanted = True


def fetch_root(
    base_url: str, version: int, *, ca_file: Path | None = None, timeout_s: float = FETCH_TIMEOUT_S
) -> bytes | None:
    """The envelope of a root as the server gives it, None where it has none. Raises DownloadError.

    No more than MAX_ROOT_BYTES are read, and no longer than `timeout_s` in all, however slowly they drip.
    """
    connector = Connector(base_url, ca_file=ca_file)
    connection, before_path, headers = connector.connection(timeout_s=min(_SILENCE_S, timeout_s))
    expired = threading.Event()

    def cut() -> None:
        expired.set()
        with suppress(OSError, AttributeError):  # it may have ended, or not begun
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    limit = threading.Timer(timeout_s, cut)  # a socket's own timeout bounds only each silence
    limit.daemon = True
    limit.start()
    try:
        path = f"{before_path}{connector.parts.path.rstrip('/')}/api/v1/trust/roots/{version}"
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status == 404:
            return None
        if response.status != 200:
            raise DownloadError(f"trust root {version}: the server answered {response.status}")
        content = response.read(MAX_ROOT_BYTES + 1)
    except (OSError, HTTPException, UnicodeError) as error:
        why = f"it did not come within {timeout_s:.0f} s" if expired.is_set() else error or type(error).__name__
        raise DownloadError(f"trust root {version}: {why}") from None
    finally:
        limit.cancel()
        connection.close()
    if expired.is_set():
        raise DownloadError(f"trust root {version}: it did not come within {timeout_s:.0f} s")
    if len(content) > MAX_ROOT_BYTES:
        raise DownloadError(f"trust root {version} is larger than any root: more than {MAX_ROOT_BYTES} bytes")
    if response.length:
        raise DownloadError(f"trust root {version}: the connection ended early")
    return content
