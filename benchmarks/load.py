"""Load on a local HTTP server: `wrk`, a lone raw-socket client, and the client that records every single answer.

All are closed loops: a connection sends its next request when it has the answer to the last, so a slow server is
asked less often, by all of them alike. `wrk` (a C program, one thread) costs the machine the least and gives the
figures that are compared; the lone client is a second opinion on its median; the recording client (a process of
its own, so that it shares no interpreter lock with whoever provokes the server) is for failures and for tails
around a moment in time.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_server.errors import UnavailableError

SOCKET_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 65_536
_WRK_GRACE_S = 30.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_WRK_SCRIPT = Path(__file__).parent / "wrk_post.lua"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The one POST that is sent again and again."""

    path: str
    body: bytes
    content_type: str = "application/json"

    def raw(self, port: int) -> bytes:
        """The request's bytes, for a connection that stays open."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True, kw_only=True)
class LoadFigures:
    """What a load saw. `failures` are answers of status 400 and above and connections that broke."""

    requests: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    failures: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Every request of a recording client, in the order of the answers, in CLOCK_MONOTONIC nanoseconds.

    `status` is 0 where the connection broke or the answer did not come in time; `winner` is the index of the
    highest score of the answer's first output, -1 where there is none.
    """

    sent_ns: NDArray[np.int64]
    answered_ns: NDArray[np.int64]
    status: NDArray[np.int16]
    winner: NDArray[np.int16]


def require_wrk() -> None:
    """Raise UnavailableError when `wrk` is not installed."""
    if shutil.which("wrk") is None:
        raise UnavailableError("the load generator wrk is not installed: apt-get install wrk")


def wrk(port: int, request: Request, *, connections: int, duration_s: int, folder: Path) -> LoadFigures:
    """Load from one thread of `wrk`. `folder` takes the body's file."""
    body = folder / "wrk-body"
    body.write_bytes(request.body)
    answer = subprocess.run(
        [
            "wrk", "-t1", f"-c{connections}", f"-d{duration_s}s", "--timeout", f"{SOCKET_TIMEOUT_S:.0f}s", "--latency",
            "-s", _WRK_SCRIPT, f"http://127.0.0.1:{port}{request.path}", "--", body, request.content_type,
        ],
        check=True, capture_output=True, text=True, timeout=duration_s + _WRK_GRACE_S,
    )  # fmt: skip
    return LoadFigures(**json.loads(answer.stdout.strip().splitlines()[-1]))


def lone_client(port: int, request: Request, *, duration_s: float) -> NDArray[np.int64]:
    """The latencies in ns that one plain blocking socket sees, from the first byte sent to the last received.

    Raises UnavailableError at the first answer that is not a 200.
    """
    raw, latencies = request.raw(port), []
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter_ns() + int(duration_s * 1e9)
        started = time.perf_counter_ns()
        while started < end:
            connection.sendall(raw)
            status, _ = read_answer(connection)
            answered = time.perf_counter_ns()
            if status != 200:
                raise UnavailableError(f"{request.path} answered {status}")
            latencies.append(answered - started)
            started = time.perf_counter_ns()
    return np.array(latencies, dtype=np.int64)


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer on a blocking socket. Raises OSError where it ends too early."""
    received = bytearray()
    while (whole := split_answer(received)) is None:
        part = connection.recv(_RECEIVE_BYTES)
        if not part:
            raise ConnectionError(f"the server closed the connection after {len(received)} bytes of its answer")
        received += part
    return whole


def split_answer(received: bytearray) -> tuple[int, bytes] | None:
    """The status and the body when `received` holds a whole answer, by its length or in chunks, else None."""
    end = received.find(_HEAD_END)
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    status, start = int(head[9:12]), end + len(_HEAD_END)
    marker = head.find(_LENGTH)
    if marker < 0:
        body = _unchunk(received, start)
        return None if body is None else (status, body)
    length = int(head[marker + len(_LENGTH) :].split(b"\r\n", 1)[0])
    return (status, bytes(received[start : start + length])) if len(received) >= start + length else None


def _unchunk(received: bytearray, start: int) -> bytes | None:
    body = bytearray()
    while (end := received.find(b"\r\n", start)) >= 0:
        length, start = int(received[start:end].split(b";", 1)[0], 16), end + 2
        if len(received) < start + length + 2:
            return None
        if length == 0:
            return bytes(body)
        body += received[start : start + length]
        start += length + 2
    return None


class RecordingClient:
    """A process of `connections` clients that send `request` without a pause and record every answer."""

    def __init__(self, *, port: int, request: Request, connections: int, duration_s: float, folder: Path) -> None:
        self._file = folder / "recording.npz"
        plan = folder / "recording.json"
        plan.write_text(
            json.dumps(
                {
                    "port": port,
                    "raw": request.raw(port).decode("latin-1"),
                    "connections": connections,
                    "duration_s": duration_s,
                    "file": str(self._file),
                }
            )
        )
        self._duration_s = duration_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", plan], cwd=Path(__file__).parent.parent
        )

    def wait(self) -> Recording:
        """Its records, when it has ended. Raises UnavailableError when it failed."""
        try:
            status = self._process.wait(self._duration_s + _WRK_GRACE_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise UnavailableError("the recording client did not end in time") from None
        if status != 0:
            raise UnavailableError(f"the recording client ended with status {status}")
        with np.load(self._file) as arrays:
            return Recording(**{name: arrays[name] for name in arrays.files})

    def stop(self) -> None:
        """End it when it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class _Output(msgspec.Struct):
    data: list[float]


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _RecordedConnection:
    """One of the recording client's connections; `sent_ns` is when its request in flight began."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.received = bytearray()
        self.sent_ns = 0
        self.socket: socket.socket | None = None

    def send(self, raw: bytes) -> bool:
        """Send the next request, over a new connection where there is none; False when that fails."""
        self.received.clear()
        self.sent_ns = time.monotonic_ns()
        try:
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=SOCKET_TIMEOUT_S)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(raw)
        except OSError:
            self.close()
            return False
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """The answer when it is whole; status 0 when the connection broke."""
        assert self.socket is not None
        try:
            part = self.socket.recv(_RECEIVE_BYTES)
        except OSError:
            part = b""
        if not part:
            self.close()
            return 0, b""
        self.received += part
        return split_answer(self.received)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _record(plan: dict[str, Any]) -> None:
    import select

    raw = plan["raw"].encode("latin-1")
    decode = msgspec.json.Decoder(_Answer).decode
    end_ns = time.monotonic_ns() + int(plan["duration_s"] * 1e9)
    records: list[tuple[int, int, int, int]] = []
    watched: dict[int, _RecordedConnection] = {}
    poll = select.epoll()

    def send(connection: _RecordedConnection) -> None:
        is_new = connection.socket is None
        while not connection.send(raw):
            records.append((connection.sent_ns, time.monotonic_ns(), 0, -1))
            is_new = True
            if time.monotonic_ns() > end_ns:
                return
            time.sleep(0.01)
        assert connection.socket is not None
        if is_new:
            watched[connection.socket.fileno()] = connection
            poll.register(connection.socket, select.EPOLLIN)

    for _ in range(plan["connections"]):
        send(_RecordedConnection(plan["port"]))
    while watched:
        for number, _ in poll.poll(1.0):
            connection = watched[number]
            answer = connection.receive()
            if answer is None:
                continue
            now_ns, (status, body) = time.monotonic_ns(), answer
            records.append((connection.sent_ns, now_ns, status, _winner(decode, body) if status == 200 else -1))
            if connection.socket is None or now_ns > end_ns:
                connection.close()
                del watched[number]
            if now_ns <= end_ns:
                send(connection)
        late_ns = time.monotonic_ns() - int(SOCKET_TIMEOUT_S * 1e9)
        for number, connection in list(watched.items()):
            if connection.sent_ns < late_ns:
                records.append((connection.sent_ns, time.monotonic_ns(), 0, -1))
                connection.close()
                del watched[number]
                if time.monotonic_ns() <= end_ns:
                    send(connection)
    table = np.array(records, dtype=np.int64).reshape(-1, 4)
    recording = Recording(
        sent_ns=table[:, 0],
        answered_ns=table[:, 1],
        status=table[:, 2].astype(np.int16),
        winner=table[:, 3].astype(np.int16),
    )
    np.savez(plan["file"], **asdict(recording))


def _winner(decode: Any, body: bytes) -> int:
    try:
        return int(np.argmax(decode(body).outputs[0].data))
    except (msgspec.MsgspecError, IndexError, ValueError):
        return -1


if __name__ == "__main__":
    _record(json.loads(Path(sys.argv[1]).read_text()))
