"""Whether the agent is alive for real, and if not, what is stuck: looked at, never assumed.

Stuck is
- a model every lane of which is taken, where for `run_limit_s` no run began or ended;
- a thread whose heartbeat is overdue;
- a local API that gave no answer at all, not even a refusal, for API_LIMIT_S.
Not stuck is what waits: a network that is away, a broker that refuses, a model on trial that hangs (probation takes it
back). What is stuck here only another process can mend.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge_agent.runtime.lanes import Lanes
from edge_agent.service.heartbeat import Heartbeat

API_LIMIT_S = 30.0
_ANSWER_TIMEOUT_S = 5.0
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Liveness:
    """What one agent consists of, as far as it can get stuck. `look` is called again and again, from one thread.

    `lanes` tells those of every model that serves. `api` is (host, port) or a socket's path, None without a local API.
    """

    def __init__(
        self,
        *,
        lanes: Callable[[], Sequence[Lanes]],
        heartbeats: Mapping[str, Heartbeat],
        api: tuple[str, int] | Path | None,
        run_limit_s: float,
        api_limit_s: float = API_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes, self._heartbeats, self._api = lanes, heartbeats, api
        self._run_limit_s, self._api_limit_s, self._clock = run_limit_s, api_limit_s, clock
        self._standstills: dict[Lanes, tuple[float, tuple[float, int]]] = {}
        self._api_answered_s = clock()

    def look(self) -> list[str]:
        """What is stuck, in words; empty when the agent is alive."""
        stuck = [*self._stuck_lanes()]
        for name, heartbeat in self._heartbeats.items():
            if heartbeat.overdue_s > 0:
                stuck.append(f"the {name} thread is stuck: its sign of life is {heartbeat.overdue_s:.0f} s late")
        now_s = self._clock()
        if self._api is None or answers(self._api, timeout_s=min(_ANSWER_TIMEOUT_S, self._api_limit_s / 4)):
            self._api_answered_s = now_s
        elif now_s - self._api_answered_s >= self._api_limit_s:
            stuck.append(f"the local API has not answered for {now_s - self._api_answered_s:.0f} s")
        return stuck

    def _stuck_lanes(self) -> list[str]:
        now_s, stuck, before = self._clock(), [], self._standstills
        self._standstills = {}  # only of what serves now
        for lanes in self._lanes():
            progress = lanes.progress
            since_s, progress_before = before.get(lanes, (now_s, None))
            if progress != progress_before or progress[1] > 0:
                since_s = now_s
            self._standstills[lanes] = (since_s, progress)
            if now_s - since_s >= self._run_limit_s:
                stuck.append(f"every lane of {lanes.name} has been at the same run for {now_s - since_s:.0f} s")
        return stuck


def answers(api: tuple[str, int] | Path, *, timeout_s: float) -> bool:
    """Whether an HTTP server answers there, whatever it says."""
    try:
        with _connected(api, timeout_s) as connection:
            connection.sendall(_REQUEST)
            return connection.recv(16).startswith(b"HTTP/")
    except OSError:
        return False


def _connected(api: tuple[str, int] | Path, timeout_s: float) -> socket.socket:
    if not isinstance(api, Path):
        return socket.create_connection(api, timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(api))
    except OSError:
        connection.close()
        raise
    return connection
