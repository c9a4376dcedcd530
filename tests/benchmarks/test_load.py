"""The load generators' reading of answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import RecordingClient, Request, lone_client, read_answer, split_answer
from fleet_server.errors import UnavailableError

_OK = b'HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{"outputs":[{"data":[0.1,0.9]}]}'
_REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def _server(answers: list[bytes | None]) -> Iterator[int]:
    """A server that gives these answers in turn, over and over; None closes the connection instead."""
    listening = socket.create_server(("127.0.0.1", 0))
    given_out = 0
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        nonlocal given_out
        with connection:
            while connection.recv(65_536):
                with lock:
                    answer = answers[given_out % len(answers)]
                    given_out += 1
                if answer is None:
                    return
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@given(body=st.binary(max_size=300), cuts=st.lists(st.integers(1, 50), max_size=8))
def test_a_chunked_answer_is_whole_only_with_its_last_byte(body: bytes, cuts: list[int]) -> None:
    chunks, rest = b"", body
    for cut in cuts:
        if rest[:cut]:
            chunks += b"%x\r\n%s\r\n" % (len(rest[:cut]), rest[:cut])
        rest = rest[cut:]
    if rest:
        chunks += b"%x\r\n%s\r\n" % (len(rest), rest)
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert split_answer(bytearray(raw)) == (200, body)
    assert all(split_answer(bytearray(raw[:end])) is None for end in range(len(raw)))


@given(body=st.binary(max_size=100))
def test_an_answer_with_a_length_is_whole_only_with_its_last_byte(body: bytes) -> None:
    raw = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\nServer: x\r\n\r\n%s" % (len(body), body)
    assert split_answer(bytearray(raw)) == (404, body)
    assert all(split_answer(bytearray(raw[:end])) is None for end in range(len(raw)))


def test_a_connection_that_ends_inside_an_answer_is_an_error() -> None:
    with _server([_OK[:-5], None]) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="closed the connection"):
            read_answer(connection)


def test_the_lone_client_does_not_measure_refusals() -> None:
    with _server([_OK, _REFUSED]) as port, pytest.raises(UnavailableError, match="answered 503"):
        lone_client(port, Request(path="/x", body=b"{}"), duration_s=5)


def test_the_recording_client_keeps_every_refusal_and_every_broken_connection(tmp_path: Path) -> None:
    with _server([_OK, _OK, _REFUSED, None]) as port:
        client = RecordingClient(
            port=port, request=Request(path="/x", body=b"{}"), connections=3, duration_s=0.3, folder=tmp_path
        )
        recording = client.wait()
    counts = {code: int((recording.status == code).sum()) for code in (200, 503, 0)}
    assert sum(counts.values()) == len(recording.status)
    assert counts[200] > 10
    assert abs(counts[503] - counts[0]) <= 3
    assert abs(counts[200] - 2 * counts[0]) <= 6
    assert set(recording.winner[recording.status == 200]) == {1}
    assert (recording.answered_ns >= recording.sent_ns).all()
    assert np.all(np.diff(recording.answered_ns) >= 0)
