"""Child processes of tests: own process group, output in files, and gone when the test run is gone.

Invariant: a child never outlives the test process, however that ends. Beside each child stands a guard
(`sh`, blocked on a pipe that the test process holds); when the pipe closes it kills the child's group.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fleet_server.demo.processes import free_port

__all__ = ["Process", "accepts", "free_port", "wait_until"]

STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_GUARD = 'read -r _; kill -9 "-$0"'
_SHOWN_OUTPUT_CHARS = 4_000
T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`. Raises TimeoutError, saying `what` did not happen."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {timeout_s:g} s it did not happen that {what}")
        time.sleep(_POLL_S)


def accepts(port: int) -> bool:
    """Whether something listens on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


class Process:
    """A running child: its output is in `folder`/NAME.out and NAME.err, appended to over restarts."""

    def __init__(
        self, args: Sequence[str | Path], *, folder: Path, name: str, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.stdout_path = folder / f"{name}.out"
        self.stderr_path = folder / f"{name}.err"
        with self.stdout_path.open("ab") as stdout, self.stderr_path.open("ab") as stderr:
            self._child = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._child.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """How the child ended (negative: the signal), None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """What the child wrote so far, standard output first."""
        return self.stdout_path.read_text(errors="replace") + self.stderr_path.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Wait for the child to end by itself; its return code. Raises TimeoutError."""
        wait_until(lambda: self.returncode is not None, timeout_s, f"{self.name} ended")
        return self._child.wait()

    def wait_ready(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """`wait_until`, but fails at once with the child's last output when the child ends before."""

        def ready_or_ended() -> tuple[T] | None:
            value = condition()
            if value:
                return (value,)
            if self.returncode is not None:
                raise RuntimeError(
                    f"{self.name} ended with {self.returncode} before {what}: {self.output()[-_SHOWN_OUTPUT_CHARS:]}"
                )
            return None

        try:
            return wait_until(ready_or_ended, timeout_s, what)[0]  # type: ignore[index]  # a true value is the tuple
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.name} wrote: {self.output()[-_SHOWN_OUTPUT_CHARS:]}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child's whole group; nothing happens when it has ended."""
        if self.returncode is None:
            os.killpg(self.pid, number)

    def pause(self) -> None:
        """Stop the child without ending it (SIGSTOP): it keeps its connections and answers nothing."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused child go on."""
        self.signal(signal.SIGCONT)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask the child to end (SIGTERM), kill it when it does not in time; its return code. Idempotent."""
        self.resume()
        self.signal(signal.SIGTERM)
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        return self._reap()

    def kill(self) -> int:
        """Kill the child's group (SIGKILL); its return code. Idempotent."""
        self.signal(signal.SIGKILL)
        return self._reap()

    def _reap(self) -> int:
        # the guard goes first: once the child is reaped its number may belong to somebody else
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        returncode = self._child.wait()
        return returncode
