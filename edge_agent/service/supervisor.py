"""What the agent tells the supervisor that started it: the datagrams of sd_notify(3), without its library.

systemd names a socket in NOTIFY_SOCKET, and in WATCHDOG_USEC how often it wants a sign of life; other supervisors that
speak the protocol do the same. Telling is best effort: a supervisor that does not listen stops nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Self

_LOG = logging.getLogger(__name__)
_MAX_STATUS_CHARS = 500
_US = 1_000_000


class Supervisor:
    """One supervisor's socket. `watchdog_s` is how long it waits for a sign of life, None where it wants none."""

    def __init__(self, *, address: str, watchdog_s: float | None = None) -> None:
        """`address` is a path, or @NAME for a socket in Linux's abstract namespace."""
        self.watchdog_s = watchdog_s
        self._address: str | bytes = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The supervisor that the environment names, None without one."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")) or len(address) < 2:
            return None
        return cls(address=address, watchdog_s=_watchdog_s(environment))

    def ready(self) -> None:
        """The agent serves."""
        self._tell("READY=1")

    def alive(self) -> None:
        """The agent deserves to be kept running."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The agent ends by itself."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for people, who see it in `systemctl status`."""
        self._tell(f"STATUS={' '.join(text.split())[:_MAX_STATUS_CHARS]}")

    def extend_timeout(self, seconds: float) -> None:
        """Starting, or stopping, may take so much longer from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * _US)}")

    def close(self) -> None:
        """Tell nothing more."""
        self._socket.close()

    def _tell(self, line: str) -> None:
        try:
            self._socket.sendto(line.encode(), self._address)
        except OSError as error:
            _LOG.debug("the supervisor was not told %s: %s", line, error)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The watchdog's patience, None where it is off or meant for another process."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / _US
