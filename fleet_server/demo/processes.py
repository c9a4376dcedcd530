"""The demo's child processes: started with a log file each, ended with the demo whatever happens."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fleet_server.errors import UnavailableError

_STOP_TIMEOUT_S = 15.0
_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """One running child."""

    def __init__(
        self, name: str, command: Sequence[str | Path], *, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment) if environment else None,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its children in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it only makes one system call
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def require_running(self) -> None:
        """Raise UnavailableError, with the end of its log, when it has ended."""
        if not self.is_running():
            tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise UnavailableError(f"{self.name} ended with status {self._process.returncode}: {' | '.join(tail)}")

    def wait_done(self, timeout_s: float) -> None:
        """Wait for it to end by itself. Raises UnavailableError, with the end of its log, unless it ended well."""
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(timeout_s) == 0:
                return
        self.require_running()
        raise UnavailableError(f"{self.name} did not end within {timeout_s:.0f} s")

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.is_running():
            self._process.terminate()

    def stop(self) -> None:
        """End it, by force when it does not end in time."""
        self.ask_to_stop()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Return when `condition` holds. Raises UnavailableError, naming `what`, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(every_s)


_PORT_RANGE = range(20_000, 32_000)
# another process begins far from here, also the one that started next
_PORTS = itertools.islice(itertools.cycle(_PORT_RANGE), os.getpid() * 5_003 % len(_PORT_RANGE), None)


def free_port() -> int:
    """A loopback port that nobody listens on, given once by this process.

    It lies below those that systems lend to outgoing connections, one of which could take it between two starts of
    the same server.
    """
    for port in itertools.islice(_PORTS, len(_PORT_RANGE)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise UnavailableError("no loopback port from 20000 to 31999 is free: end some servers")


def accepts(port: int) -> bool:
    """Whether something listens on this loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _die_with_parent() -> None:
    """Let the kernel end this child when the demo itself is killed (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
