"""The other end of sd_notify: a datagram socket that keeps what it was told, as systemd's does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.real_servers.processes import wait_until

WAIT_S = 10.0


class NotifySocket:
    """Use it in a `with`. `folder` None makes a socket in Linux's abstract namespace."""

    def __init__(self, folder: Path | None) -> None:
        name = f"edgefleet-notify-{os.getpid()}-{id(self)}"
        self.address = f"@{name}" if folder is None else str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(f"\0{name}" if folder is None else self.address)
        self._told: list[str] = []

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def told(self) -> list[str]:
        """Every line so far."""
        while True:
            try:
                self._told += self._socket.recv(65_536).decode().splitlines()
            except BlockingIOError:
                return self._told

    def count(self, line: str) -> int:
        """How often a line was told."""
        return self.told().count(line)

    def wait_for(self, start: str, *, timeout_s: float = WAIT_S) -> str:
        """The first line that starts so."""
        found = wait_until(
            lambda: next((line for line in self.told() if line.startswith(start)), None), timeout_s, f"{start} was told"
        )
        assert found is not None
        return found
