"""The HTTP server over real sockets: what hostile, broken and slow clients get, and that nobody else notices."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import pytest

from edge_agent.local_api.limits import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES, SMALL_BODY_BYTES, Timeouts
from edge_agent.local_api.server import MAX_LARGE_BODIES, LocalApi
from tests.agent.local_api.conftest import MAX_BODY_BYTES
from tests.agent.local_api.small_service import Client, SmallService, request, wait_until

YES = {"inputs": {"x": [[1, 2, 3]]}}
HEAD = b"POST /predict HTTP/1.1\r\nHost: d\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"\x00" * 100, 400),
        (b"GET /health\r\n\r\n", 505),
        (b"GET /health HTTP/2.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\nX: b\x00\r\n\r\n", 400),
        (b"GET / health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1e3\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400),
        (HEAD + b"Content-Length: 999999999999999999999999\r\n\r\n", 400),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
        (HEAD + b"Content-Length: 2\r\nExpect: tea\r\n\r\n{}", 417),
        (b"GET /%s HTTP/1.1\r\nHost: d\r\n\r\n" % (b"a" * MAX_URL_BYTES), 414),
        (b"GET / HTTP/1.1\r\nHost: d\r\nX: %s\r\n\r\n" % (b"a" * MAX_HEADER_BYTES), 431),
        (b"GET / HTTP/1.1\r\nHost: d\r\n%s\r\n" % (b"A: b\r\n" * MAX_HEADERS), 431),
    ],
)
def test_a_malformed_request_is_refused_and_closes_only_its_own_connection(port: int, sent: bytes, status: int) -> None:
    with Client(port) as good, Client(port) as bad:
        assert good.ask("POST", "/predict", YES).status == 200
        answer = bad.send(sent).answer()

        assert answer.status == status
        assert answer.json["error"]
        assert answer.headers["connection"] == "close"
        assert bad.is_closed()
        assert good.ask("POST", "/predict", YES).status == 200


def test_a_smuggled_second_request_is_never_answered(port: int) -> None:
    smuggled = (
        HEAD
        + b"Content-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: d\r\n\r\n"
    )
    with Client(port) as client:
        assert client.send(smuggled).answer().status == 400
        with pytest.raises(EOFError):
            client.answer()


def test_good_requests_before_a_malformed_one_are_answered_first(port: int) -> None:
    with Client(port) as client:
        client.send(request("POST", "/predict", YES) + request("GET", "/health") + b"nonsense\r\n\r\n")

        assert [client.answer().status for _ in range(3)] == [200, 200, 400]
        assert client.is_closed()


def test_a_chunked_body_without_end_is_cut_at_the_limit(port: int) -> None:
    with Client(port) as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + b"a" * 0x4000 + b"\r\n"
        for _ in range(MAX_BODY_BYTES // 0x4000 + 1):
            client.send(chunk)

        assert client.answer().status == 413


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
def test_a_header_or_chunk_extension_without_end_is_cut(port: int, opening: bytes) -> None:
    with Client(port) as client:
        client.send(opening)
        for _ in range(64):
            try:
                client.send(b"a" * 4096)
            except (ConnectionResetError, BrokenPipeError):
                break

        assert client.answer().status in (414, 431)


def test_a_refused_upload_still_reads_its_refusal(port: int) -> None:
    with Client(port) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % (64 * MAX_BODY_BYTES))
        for _ in range(16):
            client.send(b"a" * MAX_BODY_BYTES)

        assert client.answer().status == 413


def test_a_client_that_expects_continue_for_too_much_is_refused_without_sending_it(port: int) -> None:
    with Client(port) as client:
        client.send(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (MAX_BODY_BYTES + 1))

        assert client.answer().status == 413


def test_large_bodies_share_a_budget_and_small_ones_are_always_admitted(service: SmallService) -> None:
    size = 4 * SMALL_BODY_BYTES
    nearly_whole = HEAD + b"Content-Length: %d\r\n\r\n" % size + b" " * (size - 1)
    with LocalApi(service=service, host="127.0.0.1", port=0, max_body_bytes=size) as api:
        port = api.port or 0
        uploading = [Client(port).send(nearly_whole) for _ in range(MAX_LARGE_BODIES)]
        wait_until(lambda: api.budget.left_bytes == MAX_LARGE_BODIES)
        with Client(port) as extra, Client(port) as small:
            refused = extra.send(nearly_whole).answer()
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert small.ask("POST", "/predict", YES).status == 200
        assert [client.send(b" ").answer().status for client in uploading] == [400] * MAX_LARGE_BODIES

        assert api.budget.left_bytes == MAX_LARGE_BODIES * size  # while the connections stay open
        for client in uploading:
            client.socket.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET /health HTTP/1.1\r\nHo", 408),
        (HEAD + b"Content-Length: 100\r\n\r\n{", 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
        (request("GET", "/health"), 200),
    ],
)
def test_a_client_that_falls_silent_is_let_go_in_every_state(hasty_port: int, sent: bytes, status: int | None) -> None:
    with Client(hasty_port) as client:
        client.send(sent)
        if status is not None:
            assert client.answer().status == status
        assert client.is_closed()


def test_a_client_that_drips_its_head_cannot_stretch_its_time(hasty_port: int) -> None:
    with Client(hasty_port) as client:
        client.send(b"GET /health HTTP/1.1\r\nX: ")
        client.socket.settimeout(0.05)
        begun = time.monotonic()
        answer = b""
        while not answer:
            assert time.monotonic() - begun < 10
            try:
                client.send(b"a")
                answer = client.socket.recv(4096)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_never_reads_its_answers_is_cut_off(service: SmallService) -> None:
    timeouts = Timeouts(write_s=0.3, idle_s=60)
    with LocalApi(service=service, host="127.0.0.1", port=0, timeouts=timeouts) as api:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", api.port or 0))
            wide = json.dumps({"inputs": {"x": [[1, 2, 3]] * 50_000}}).encode()
            sender = threading.Thread(target=_send_until_cut, args=(deaf, request("POST", "/predict", wide)))
            sender.start()
            sender.join(20)
            assert not sender.is_alive()
        with Client(api.port or 0) as other:
            assert other.ask("GET", "/health").status == 200


def _send_until_cut(client: socket.socket, content: bytes) -> None:
    try:
        while True:
            client.sendall(content)
    except OSError:
        return


def test_at_the_limit_the_longest_idle_connection_gives_way_to_a_new_one(service: SmallService) -> None:
    timeouts = Timeouts(spare_s=0.1)
    with LocalApi(service=service, host="127.0.0.1", port=0, max_connections=3, timeouts=timeouts) as api:
        port = api.port or 0
        first = [Client(port) for _ in range(3)]
        assert [client.ask("GET", "/health").status for client in first] == [200] * 3

        wait_until(lambda: _is_alive(port))

        assert first[0].is_closed()
        assert [client.ask("GET", "/health").status for client in first[1:]] == [200] * 2
        for client in first:
            client.socket.close()


def test_a_connection_whose_request_may_be_on_its_way_is_not_sacrificed(service: SmallService) -> None:
    timeouts = Timeouts(spare_s=60.0)
    with (
        LocalApi(service=service, host="127.0.0.1", port=0, max_connections=1, timeouts=timeouts) as api,
        Client(api.port or 0) as first,
        Client(api.port or 0) as new,
    ):
        assert new.answer().status == 503
        assert first.ask("POST", "/predict", YES).status == 200


def test_when_every_connection_is_busy_a_new_one_is_refused_and_the_others_finish(service: SmallService) -> None:
    service.gate = threading.Event()
    timeouts = Timeouts(spare_s=0.0)
    with LocalApi(service=service, host="127.0.0.1", port=0, max_connections=4, workers=4, timeouts=timeouts) as api:
        busy = [Client(api.port or 0) for _ in range(4)]
        for number, client in enumerate(busy, start=1):
            client.send(request("POST", "/predict", YES))
            wait_until(lambda number=number: service.running == number)  # type: ignore[misc]  # bound per turn
        with Client(api.port or 0) as new:
            answer = new.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        service.gate.set()
        assert [client.answer().status for client in busy] == [200] * 4
        for client in busy:
            client.socket.close()


def test_clients_that_vanish_mid_request_leave_nothing_behind(port: int, service: SmallService) -> None:
    service.gate = threading.Event()
    for _ in range(5):
        with Client(port) as client:
            client.send(request("POST", "/predict", YES))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: service.running >= 1)
    service.gate.set()
    with Client(port) as client:
        wait_until(lambda: client.ask("POST", "/predict", YES).status == 200)


def test_random_bytes_and_torn_requests_never_stop_the_server(hasty_port: int) -> None:
    chance = random.Random(11)
    whole = request("POST", "/predict", YES)
    for _ in range(200):
        with Client(hasty_port) as client:
            torn = bytearray(whole[: chance.randrange(len(whole))])
            for _ in range(chance.randrange(4)):
                if torn:
                    torn[chance.randrange(len(torn))] = chance.randrange(256)
            _send_some(client, bytes(torn) if chance.random() < 0.7 else chance.randbytes(200))
    wait_until(lambda: _is_alive(hasty_port))


def _send_some(client: Client, content: bytes) -> None:
    try:
        client.send(content)
    except OSError:
        return


def _is_alive(port: int) -> bool:
    with Client(port) as client:
        try:
            return client.ask("POST", "/predict", YES).status == 200
        except (EOFError, OSError):
            return False
