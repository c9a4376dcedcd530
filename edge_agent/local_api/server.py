"""The local HTTP server: one thread for all connections, a few for the work.

Invariants:
- the connections' thread never runs a model and never waits, so a slow model or client delays no other;
- work waits in two lanes, inference and reads (health, metrics, models), each with its own threads and
  limit: a full lane answers 503 at once, and a device busy with inference still tells its health;
- `stop` takes no new request, answers those under way within DRAIN_S, and then lets go of everything.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from edge_agent.errors import ConfigError
from edge_agent.local_api.connection import Connection
from edge_agent.local_api.limits import Budget, Timeouts
from edge_agent.local_api.listening import BACKLOG, listen_tcp, listen_unix, remove_socket
from edge_agent.local_api.routes import (
    DEFAULT_MAX_BODY_BYTES,
    Request,
    Response,
    overloaded_response,
    refuse_foreign_page,
    respond,
)
from edge_agent.local_api.service import InferenceService
from edge_agent.runtime.cpu import cpu_quota

DEFAULT_MAX_WAITING = 256
MAX_CONNECTIONS = 512
MAX_LARGE_BODIES = 4
"""Full-sized request bodies that may be held at once; see `limits.Budget`."""
MAX_WORKERS = 16
MAX_WAITING_READS = 64
DRAIN_S = 5.0
_JOIN_S = 5.0
_SWEEP_S = 1.0
_COMPLAIN_S = 60.0

_LOG = logging.getLogger(__name__)


class _Lane:
    """Threads for one kind of work, and a count of what they have and what waits. Counted on the loop's thread."""

    def __init__(self, *, name: str, workers: int, max_waiting: int) -> None:
        self.name = name
        self.pending = 0
        self.limit = workers + max_waiting
        self.executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=f"edgefleet-{name}")


class LocalApi:
    """Serves an `InferenceService` over HTTP on `host`:`port`, on a Unix socket, or on both.

    `max_waiting` is how many inference requests may wait beside those being answered. `port` 0 takes a free
    one, then `.port` tells it. `socket_mode` is 0o600 or, for a group, 0o660.
    """

    def __init__(
        self,
        *,
        service: InferenceService,
        host: str | None = None,
        port: int | None = None,
        socket_path: Path | None = None,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_waiting: int = DEFAULT_MAX_WAITING,
        workers: int | None = None,
        socket_mode: int = 0o600,
        timeouts: Timeouts | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        if (host is None) != (port is None):
            raise ConfigError("the local API's http address needs both a host and a port")
        if host is None and socket_path is None:
            raise ConfigError("the local API has nowhere to listen: give it an http address or a socket")
        if max_body_bytes < 1 or max_waiting < 0 or max_connections < 1:
            raise ConfigError("max_body_bytes and max_connections must be at least 1, max_waiting at least 0")
        if workers is None:
            workers = math.ceil(cpu_quota())
        self._service = service
        self._host, self._port, self._socket_path, self._socket_mode = host, port, socket_path, socket_mode
        self._max_waiting = max_waiting
        self._max_connections = max_connections
        self._workers = max(1, min(MAX_WORKERS, workers))
        self._thread: threading.Thread | None = None
        self._connections: set[Connection] = set()
        self._socket_inode = 0
        self._start_error: OSError | None = None
        self._complained_at = -math.inf
        self.refused = 0
        self.timeouts = timeouts or Timeouts()
        self.max_body_bytes = max_body_bytes
        self.budget = Budget(left_bytes=MAX_LARGE_BODIES * max_body_bytes)

    @property
    def port(self) -> int | None:
        """The TCP port that is served, None without one."""
        return self._port

    def start(self) -> None:
        """Listen and serve in the background. Raises ConfigError when an address is invalid or in use."""
        if self._thread is not None:
            raise ConfigError("the local API is already started")
        listeners = self._listen()
        self._inference = _Lane(name="inference", workers=self._workers, max_waiting=self._max_waiting)
        self._reads = _Lane(name="reads", workers=1, max_waiting=MAX_WAITING_READS)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        serving = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listeners, serving), name="edgefleet-local-api", daemon=True
        )
        self._thread.start()
        serving.wait()
        if self._start_error is not None:
            self.stop()
            raise ConfigError(f"the local API cannot serve: {self._start_error}") from self._start_error

    def stop(self) -> None:
        """Answer what is under way, for at most DRAIN_S, and close. Stopping twice is a normal return."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with suppress(RuntimeError):  # a loop that could not serve is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join(DRAIN_S + _JOIN_S)
        for lane in (self._inference, self._reads):
            lane.executor.shutdown(wait=False, cancel_futures=True)
        if self._socket_path is not None:
            remove_socket(self._socket_path, inode=self._socket_inode)

    def __enter__(self) -> LocalApi:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # What a connection calls, on the loop's thread.

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def opened(self, connection: Connection) -> Response | None:
        """Register a connection. At the limit the longest idle one gives way; without one, it is refused."""
        refusal = None
        if len(self._connections) >= self._max_connections:
            longest = max(self._connections, key=lambda other: other.idle_for_s)
            if longest.idle_for_s < self.timeouts.spare_s:
                refusal = self._overloaded("connections")
            else:
                longest.finish()
        self._connections.add(connection)
        return refusal

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def dispatch(self, connection: Connection, request: Request, wrap: Callable[[Response], bytes]) -> Response | None:
        """Have `request` answered in its lane, or refuse it when the lane is full."""
        lane = self._inference if request.method == "POST" else self._reads
        if lane.pending >= lane.limit:
            return self._overloaded(lane.name)
        lane.pending += 1
        lane.executor.submit(self._work, lane, connection, request, wrap)
        return None

    def _work(self, lane: _Lane, connection: Connection, request: Request, wrap: Callable[[Response], bytes]) -> None:
        payload = wrap(refuse_foreign_page(request) or respond(request, self._service))
        try:
            self._loop.call_soon_threadsafe(self._done, lane, connection, payload)
        except RuntimeError:
            return  # the loop closed at the end of the drain: nobody is left to answer

    def _done(self, lane: _Lane, connection: Connection, payload: bytes) -> None:
        lane.pending -= 1
        connection.reply(payload)

    def _overloaded(self, what: str) -> Response:
        self.refused += 1
        if self.now() - self._complained_at > _COMPLAIN_S:
            self._complained_at = self.now()
            _LOG.warning("the local API has as many %s as it accepts: %d refused since the start", what, self.refused)
        return overloaded_response()

    # The thread of the loop.

    def _run(self, listeners: list[socket.socket], serving: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(listeners, serving))
        except OSError as error:
            self._start_error = error
        finally:
            self._loop.close()
            serving.set()

    async def _serve(self, listeners: list[socket.socket], serving: threading.Event) -> None:
        servers = [
            await self._loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
            if listener.family == socket.AF_UNIX
            else await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
            for listener in listeners
        ]
        serving.set()
        await self._sweep_until_stopped()
        for server in servers:
            server.close()
        await self._drain()

    async def _sweep_until_stopped(self) -> None:
        shortest_s = min(self.timeouts.idle_s, self.timeouts.header_s, self.timeouts.body_s, self.timeouts.linger_s)
        interval_s = min(_SWEEP_S, shortest_s / 4)
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), interval_s)
            except TimeoutError:
                self._sweep()

    def _sweep(self) -> None:
        now = self.now()
        for connection in [c for c in self._connections if c.deadline < now]:
            connection.expire()

    async def _drain(self) -> None:
        deadline = self.now() + DRAIN_S
        for connection in list(self._connections):
            connection.finish()
        while self._connections and self.now() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the aborted transports run their connection_lost

    def _listen(self) -> list[socket.socket]:
        listeners: list[socket.socket] = []
        try:
            if self._host is not None and self._port is not None:
                listeners.append(listen_tcp(self._host, self._port))
                self._port = int(listeners[0].getsockname()[1])
            if self._socket_path is not None:
                listeners.append(listen_unix(self._socket_path, mode=self._socket_mode))
                self._socket_inode = self._socket_path.stat().st_ino
        except ConfigError:
            for listener in listeners:
                listener.close()
            raise
        return listeners
