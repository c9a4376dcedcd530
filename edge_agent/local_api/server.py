"""The local HTTP server: one thread for all connections, a few for the work.

Invariants:
- the connections' thread answers by itself what is known to be quick and need not wait (`inline`); everything
  else goes to threads that may wait, so a slow model or client delays no other;
- that work is of three kinds, inference, reads (health, metrics, models) and changes (a model loads), each with its
  own threads and limit: beyond it the answer is 503 at once; a device busy with inference still tells its health,
  and a load takes no thread from inference;
- `stop` takes no new request, answers those under way within DRAIN_S, and then lets go of everything.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from edge_agent.errors import ConfigError, WouldWaitError
from edge_agent.local_api.connection import Connection
from edge_agent.local_api.inline import AtOnce, Kind, Kinds
from edge_agent.local_api.limits import Budget, Timeouts
from edge_agent.local_api.listening import listen_tcp, listen_unix, remove_socket
from edge_agent.local_api.reactor import Reactor
from edge_agent.local_api.routes import (
    DEFAULT_MAX_BODY_BYTES,
    Request,
    Response,
    overloaded_response,
    refuse_foreign_page,
    refuse_shared_memory,
    respond,
)
from edge_agent.local_api.service import InferenceService
from edge_agent.local_api.workers import Workers

DEFAULT_MAX_WAITING = 256
MAX_CONNECTIONS = 512
MAX_LARGE_BODIES = 4
"""Full-sized request bodies that may be held at once; see `limits.Budget`."""
WORKERS = 16
"""Threads for inference: each holds one call, and a runtime can only batch the calls it has."""
MAX_WORKERS = 256
MAX_WAITING_READS = 64
MAX_WAITING_CHANGES = 16
_CHANGES = "/v2/repository/models/"
MAX_INLINE_STREAK = 16
"""Requests of one connection that are answered inline in one turn, before the other connections get theirs."""
DRAIN_S = 5.0
_JOIN_S = 5.0
_SWEEP_S = 1.0
_COMPLAIN_S = 60.0
_FIRST_BAD_STATUS = 300

_LOG = logging.getLogger(__name__)


class LocalApi:
    """Serves an `InferenceService` over HTTP on `host`:`port`, on a Unix socket, or on both.

    `max_waiting` is how many inference requests may wait beside those being answered. Without `shared_memory` callers
    cannot name regions of it. `port` 0 takes a free
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
        shared_memory: bool = True,
        workers: int = WORKERS,
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
        self._service = service
        self._at_once = AtOnce(service)
        self._kinds = Kinds()
        self._streak = 0
        self._streak_of: tuple[Connection | None, int] = (None, 0)
        self._draining = False
        self._host, self._port, self._socket_path, self._socket_mode = host, port, socket_path, socket_mode
        self._max_waiting, self._shared_memory = max_waiting, shared_memory
        self._max_connections = max_connections
        self._workers = max(1, min(MAX_WORKERS, workers))
        self._thread: threading.Thread | None = None
        self._connections: set[Connection] = set()
        self._socket_inode = 0
        self._complained_at = -math.inf
        self.refused = 0
        self.timeouts = timeouts or Timeouts()
        self.max_body_bytes = max_body_bytes
        self.budget = Budget(left_bytes=MAX_LARGE_BODIES * max_body_bytes)

    @property
    def port(self) -> int | None:
        """The TCP port that is served, None without one."""
        return self._port

    @property
    def nearest_address(self) -> tuple[str, int] | Path | None:
        """Where this very process reaches it: a socket's path, or (host, port)."""
        if self._socket_path is not None:
            return self._socket_path
        if self._host is None or self._port is None:
            return None
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - it may listen so, we only call
        return anywhere.get(self._host, self._host), self._port

    def start(self) -> None:
        """Listen and serve in the background. Raises ConfigError when an address is invalid or in use."""
        if self._thread is not None:
            raise ConfigError("the local API is already started")
        listeners = self._listen()
        self._inference = Workers(name="inference", threads=self._workers, max_waiting=self._max_waiting)
        self._reads = Workers(name="reads", threads=1, max_waiting=MAX_WAITING_READS)
        self._changes = Workers(name="changes", threads=1, max_waiting=MAX_WAITING_CHANGES)
        self._reactor = Reactor()
        self._draining = False
        self._thread = threading.Thread(target=self._run, args=(listeners,), name="edgefleet-local-api", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what is under way, for at most DRAIN_S, and close. Stopping twice is a normal return."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._reactor.call_soon_threadsafe(self._drain)
        thread.join(DRAIN_S + _JOIN_S)
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
        return self._reactor.time()

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
        if self._draining and not self._connections:
            self._reactor.stop()

    def dispatch(self, connection: Connection, request: Request, wrap: Callable[[Response], bytes]) -> Response | None:
        """Answer `request` at once when it is quick or cannot be taken, else have a worker answer it."""
        if (kind := self._inline_kind(connection, request)) and (response := self._answer_inline(request, kind)):
            return response
        workers = self._workers_for(request)
        if workers.is_full:
            return self._overloaded(workers.name)
        workers.submit(lambda: self._work(workers, connection, request, wrap))
        return None

    def _workers_for(self, request: Request) -> Workers:
        if request.method != "POST":
            return self._reads
        return self._changes if request.path.startswith(_CHANGES) else self._inference

    def _inline_kind(self, connection: Connection, request: Request) -> Kind | None:
        kind = self._kinds.find(request)
        is_alone = self._reactor.crowd <= 1 and not self._inference.pending
        if kind is None or not kind.is_quick(self.now(), is_alone=is_alone):
            return None
        turn = (connection, self._reactor.turn)
        self._streak = self._streak + 1 if turn == self._streak_of else 1
        self._streak_of = turn
        return kind if self._streak <= MAX_INLINE_STREAK else None

    def _answer_inline(self, request: Request, kind: Kind) -> Response | None:
        clock, cost = time.perf_counter(), time.thread_time()
        try:
            response = self._respond(request, self._at_once)
        except WouldWaitError:
            return None
        if response.status < _FIRST_BAD_STATUS:
            kind.learn(time.thread_time() - cost)
        kind.clocked(time.perf_counter() - clock, self.now())
        return response

    def _respond(self, request: Request, service: InferenceService) -> Response:
        refusal = refuse_foreign_page(request) or (None if self._shared_memory else refuse_shared_memory(request))
        return refusal or respond(request, service, max_body_bytes=self.max_body_bytes)

    # What a worker does, on its thread.

    def _work(
        self, workers: Workers, connection: Connection, request: Request, wrap: Callable[[Response], bytes]
    ) -> None:
        cost = time.thread_time()
        response = self._respond(request, self._service)
        payload = wrap(response)
        cost_s = time.thread_time() - cost

        def done() -> None:
            workers.done()
            if response.status < _FIRST_BAD_STATUS:
                self._kinds.learn(request, cost_s)
            connection.reply(payload)

        self._reactor.call_soon_threadsafe(done)

    def _overloaded(self, what: str) -> Response:
        self.refused += 1
        if self.now() - self._complained_at > _COMPLAIN_S:
            self._complained_at = self.now()
            _LOG.warning("the local API has as many %s as it accepts: %d refused since the start", what, self.refused)
        return overloaded_response()

    # The thread of the loop.

    def _run(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            self._reactor.listen(listener, lambda: Connection(self))
        self._sweep()
        try:
            self._reactor.run()
        finally:
            for workers in (self._inference, self._reads, self._changes):
                workers.close()

    def _sweep(self) -> None:
        now = self.now()
        for connection in [c for c in self._connections if c.deadline < now]:
            connection.expire()
        for workers in (self._inference, self._reads, self._changes):
            workers.rest(now)
        shortest_s = min(self.timeouts.idle_s, self.timeouts.header_s, self.timeouts.body_s, self.timeouts.linger_s)
        self._reactor.call_later(min(_SWEEP_S, shortest_s / 4), self._sweep)

    def _drain(self) -> None:
        self._draining = True
        self._reactor.stop_listening()
        if not self._connections:
            self._reactor.stop()
        for connection in list(self._connections):
            connection.finish()
        self._reactor.call_later(DRAIN_S, self._give_up)

    def _give_up(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        self._reactor.stop()

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
