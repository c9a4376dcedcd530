"""The HTTP server over real sockets: what a well-behaved client gets."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import ConfigError
from edge_agent.local_api import server as server_module
from edge_agent.local_api.server import LocalApi
from tests.agent.local_api.small_service import Client, SmallService, request, wait_until
from tests.agent.runtime import onnx_files

YES = {"inputs": {"x": [[1, 2, 3]]}}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def test_an_ordinary_http_client_predicts_and_reports_the_outcome(port: int, service: SmallService) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/predict", json.dumps(YES), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.request("POST", "/outcomes", json.dumps({"id": answer["id"], "label": "yes"}))
    reported = connection.getresponse()
    connection.close()

    assert answer["label"] == "yes"
    assert reported.status == 200
    assert service.outcomes == [(answer["id"], "yes")]


def test_the_real_keyword_model_answers_over_http() -> None:
    real = SmallService({"kws": onnx_files.mlperf_tiny("kws.onnx")})
    heard = np.load(onnx_files.mlperf_tiny("kws_inputs.npy")).reshape(1, 49, 10, 1)

    with LocalApi(service=real, host="127.0.0.1", port=0) as api, Client(api.port or 0) as client:
        answer = client.ask("POST", "/predict", {"model": "kws", "inputs": {"input_1": heard.tolist()}})

    assert answer.json["class"] == 5


def test_one_connection_serves_many_requests(port: int) -> None:
    with Client(port) as client:
        answers = [client.ask("POST", "/predict", YES) for _ in range(50)]

    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["id"] for answer in answers}) == 50
    assert {answer.headers["connection"] for answer in answers} == {"keep-alive"}


def test_pipelined_requests_are_answered_in_their_order(port: int) -> None:
    bodies = [{"inputs": {"x": [[number, 0, 0]]}} for number in range(200)]
    with Client(port) as client:
        sent = b"".join(request("POST", "/predict", body) + request("GET", "/health") for body in bodies)
        sender = threading.Thread(target=client.send, args=(sent,))
        sender.start()
        answers = [client.answer() for _ in range(2 * len(bodies))]
        sender.join(10)

    assert [answer.json["outputs"]["scores"][0][1] for answer in answers[::2]] == [2.0 * n for n in range(200)]
    assert all(answer.json["ready"] for answer in answers[1::2])


def test_thousands_of_pipelined_requests_do_not_pile_up_in_the_stack(port: int) -> None:
    with Client(port) as client:
        sender = threading.Thread(target=client.send, args=(request("GET", "/nowhere") * 5_000,))
        sender.start()
        statuses = {client.answer().status for _ in range(5_000)}
        sender.join(10)

    assert statuses == {404}


def test_a_request_may_arrive_byte_by_byte(port: int) -> None:
    with Client(port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request("POST", "/predict", YES):
            client.send(bytes([byte]))

        assert client.answer().json["label"] == "yes"


def test_a_chunked_body_is_put_together_and_its_trailers_mean_nothing(port: int) -> None:
    body = json.dumps(YES).encode()
    chunks = b"".join(b"1;note=x\r\n%c\r\n" % byte for byte in body) + b"0\r\nContent-Type: image/png\r\n\r\n"
    with Client(port) as client:
        client.send(b"POST /predict HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

        assert client.answer().json["label"] == "yes"
        assert client.ask("GET", "/health").status == 200


def test_a_large_body_within_the_limit_is_answered(port: int) -> None:
    rows = [[0.5, 1.5, 2.5]] * 10_000
    with Client(port) as client:
        answer = client.ask("POST", "/predict", {"inputs": {"x": rows}})

    assert len(answer.json["outputs"]["scores"]) == 10_000
    assert answer.json["label"] is None


def test_a_client_that_expects_100_continue_is_told_to_go_on(port: int) -> None:
    head, _, body = request("POST", "/predict", YES, Expect="100-continue").partition(b"\r\n\r\n")
    with Client(port) as client:
        client.send(head + b"\r\n\r\n")
        assert client.answer().status == 100
        client.send(body)

        assert client.answer().json["label"] == "yes"


def test_100_continue_comes_after_the_answers_to_the_requests_before_it(port: int) -> None:
    head, _, body = request("POST", "/predict", YES, Expect="100-continue").partition(b"\r\n\r\n")
    with Client(port) as client:
        client.send(request("POST", "/predict", YES) + head + b"\r\n\r\n")
        assert [client.answer().status, client.answer().status] == [200, 100]
        client.send(body)

        assert client.answer().status == 200


def test_head_answers_as_get_without_the_body(port: int) -> None:
    with Client(port) as client:
        whole = client.ask("GET", "/metrics")
        head = client.ask("HEAD", "/metrics")

        assert head.headers["content-length"] == str(len(whole.body))
        assert client.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    "first", [b"GET /health HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"]
)
def test_a_client_that_wants_the_connection_closed_gets_its_answer_first(port: int, first: bytes) -> None:
    with Client(port) as client:
        answer = client.send(first).answer()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.is_closed()


def test_a_client_that_closed_its_half_still_gets_its_answer(port: int, service: SmallService) -> None:
    service.gate = threading.Event()
    with Client(port) as client:
        client.send(request("POST", "/predict", YES))
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: service.running == 1)
        service.gate.set()

        assert client.answer().json["label"] == "yes"
        assert client.is_closed()


@pytest.mark.parametrize("target", ["/health?verbose=1", "http://device/health", "http://device/health?x"])
def test_the_query_and_the_absolute_form_lead_to_the_path(port: int, target: str) -> None:
    with Client(port) as client:
        assert client.ask("GET", target).status == 200


def test_an_upgrade_to_http_2_is_declined_by_answering_in_http_1(port: int) -> None:
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABk"}
    with Client(port) as client:
        client.send(request("POST", "/predict", YES, **upgrade) + request("GET", "/health", **upgrade))
        client.send(request("GET", "/models"))

        assert client.answer().json["label"] == "yes"
        assert client.answer().json["ready"]
        assert client.answer().json["models"]


def test_many_clients_at_once_each_get_their_own_answer(service: SmallService) -> None:
    def ask(number: int) -> bool:
        with Client(api.port or 0) as client:
            answers = [client.ask("POST", "/predict", {"inputs": [[number, 0, 0]]}) for _ in range(20)]
        return all(answer.json["outputs"]["scores"] == [[0.0, 2.0 * number]] for answer in answers)

    with LocalApi(service=service, host="127.0.0.1", port=0) as api, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))


def test_health_answers_while_every_worker_is_busy(service: SmallService) -> None:
    service.gate = threading.Event()
    with (
        LocalApi(service=service, host="127.0.0.1", port=0, workers=1) as api,
        Client(api.port or 0) as busy,
        Client(api.port or 0) as other,
    ):
        busy.send(request("POST", "/predict", YES))
        wait_until(lambda: service.running == 1)

        assert other.ask("GET", "/health").status == 200
        service.gate.set()
        assert busy.answer().status == 200


def test_more_than_the_allowed_number_waiting_is_refused_at_once_and_told_when_to_retry(service: SmallService) -> None:
    service.gate = threading.Event()
    with LocalApi(service=service, host="127.0.0.1", port=0, workers=1, max_waiting=2) as api:
        clients = [Client(api.port or 0).send(request("POST", "/predict", YES)) for _ in range(8)]
        wait_until(lambda: api.refused == 5)
        with Client(api.port or 0) as late:
            refused = late.ask("POST", "/predict", YES)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            service.gate.set()
            statuses = sorted(client.answer().status for client in clients)
            service.gate = None
            assert late.ask("POST", "/predict", YES).status == 200
        for client in clients:
            client.socket.close()

    assert statuses == [200] * 3 + [503] * 5


def test_stop_answers_what_is_under_way_and_takes_nothing_new(service: SmallService) -> None:
    service.gate = threading.Event()
    api = LocalApi(service=service, host="127.0.0.1", port=0)
    api.start()
    port = api.port or 0
    with Client(port) as idle, Client(port) as busy:
        assert idle.ask("GET", "/health").status == 200
        busy.send(request("POST", "/predict", YES))
        wait_until(lambda: service.running == 1)
        stopping = threading.Thread(target=api.stop)
        stopping.start()
        assert idle.is_closed()
        service.gate.set()
        answer = busy.answer()
        stopping.join(15)

    assert answer.json["label"] == "yes"
    assert not stopping.is_alive()
    with pytest.raises(ConnectionRefusedError):
        Client(port)
    api.stop()


def test_stop_does_not_wait_for_ever_for_a_hung_model(service: SmallService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN_S", 0.2)
    service.gate = threading.Event()
    api = LocalApi(service=service, host="127.0.0.1", port=0)
    api.start()
    with Client(api.port or 0) as client:
        client.send(request("POST", "/predict", YES))
        wait_until(lambda: service.running == 1)
        api.stop()

        assert client.is_closed()
    service.gate.set()


def test_the_api_can_be_started_again_after_a_stop(service: SmallService) -> None:
    api = LocalApi(service=service, host="127.0.0.1", port=0)
    for _ in range(2):
        with api, Client(api.port or 0) as client:
            assert client.ask("GET", "/health").status == 200


def test_a_port_in_use_is_told_in_one_line(service: SmallService, port: int) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is in use") as refused:
        LocalApi(service=service, host="127.0.0.1", port=port).start()

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "x" * 300, "a..b"])
def test_an_address_that_is_not_ours_is_told(service: SmallService, host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        LocalApi(service=service, host=host, port=0).start()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "127.0.0.1"},
        {"port": 0},
        {"host": "127.0.0.1", "port": 0, "max_body_bytes": 0},
        {"host": "127.0.0.1", "port": 0, "max_waiting": -1},
    ],
)
def test_senseless_settings_are_refused(service: SmallService, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LocalApi(service=service, **settings)  # type: ignore[arg-type]  # wrong on purpose


def test_a_port_that_does_not_exist_is_refused(service: SmallService) -> None:
    with pytest.raises(ConfigError, match="70000"):
        LocalApi(service=service, host="127.0.0.1", port=70_000).start()


def test_a_socket_is_served_beside_tcp_for_its_owner_only(service: SmallService, socket_path: Path) -> None:
    with LocalApi(service=service, host="127.0.0.1", port=0, socket_path=socket_path) as api:
        mode = stat.S_IMODE(socket_path.stat().st_mode)
        with Client(socket_path) as local, Client(api.port or 0) as remote:
            assert local.ask("POST", "/predict", YES).json["label"] == "yes"
            assert remote.ask("GET", "/health").status == 200

    assert mode == 0o600
    assert not socket_path.exists()


def test_a_socket_can_be_opened_to_a_group(service: SmallService, socket_path: Path) -> None:
    with LocalApi(service=service, socket_path=socket_path, socket_mode=0o660) as api:
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
        assert api.port is None


def test_a_socket_file_that_a_crash_left_behind_is_replaced(service: SmallService, socket_path: Path) -> None:
    crashed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    crashed.bind(str(socket_path))
    crashed.close()

    with LocalApi(service=service, socket_path=socket_path), Client(socket_path) as client:
        assert client.ask("GET", "/health").status == 200


@pytest.fixture
def occupied(service: SmallService, socket_path: Path) -> Iterator[Path]:
    with LocalApi(service=service, socket_path=socket_path):
        yield socket_path


def test_a_socket_that_somebody_answers_on_is_left_alone(service: SmallService, occupied: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another process"):
        LocalApi(service=service, socket_path=occupied).start()

    with Client(occupied) as client:
        assert client.ask("GET", "/health").status == 200


def test_a_file_of_another_kind_is_never_replaced_by_the_socket(service: SmallService, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")

    with pytest.raises(ConfigError, match="another kind"):
        LocalApi(service=service, socket_path=precious).start()
    assert precious.read_text() == "data"


@pytest.mark.parametrize("path", ["missing/api.sock", "x" * 200])
def test_a_socket_path_that_cannot_be_is_told_and_the_port_is_given_back(
    service: SmallService, tmp_path: Path, path: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = int(probe.getsockname()[1])

    with pytest.raises(ConfigError, match="cannot listen on socket"):
        LocalApi(service=service, host="127.0.0.1", port=free, socket_path=tmp_path / path).start()
    with LocalApi(service=service, host="127.0.0.1", port=free) as api:
        assert api.port == free


def test_a_socket_file_that_another_process_put_in_our_place_is_not_removed(
    service: SmallService, socket_path: Path
) -> None:
    with LocalApi(service=service, socket_path=socket_path):
        taken_over = socket_path.with_name("theirs.sock")
        with LocalApi(service=service, socket_path=taken_over):
            os.replace(taken_over, socket_path)  # noqa: PTH105 - the call that another process would make
            their_inode = socket_path.stat().st_ino

    assert socket_path.stat().st_ino == their_inode


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_a_web_page_from_elsewhere_may_not_use_the_models(port: int, service: SmallService, origin: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/predict", json.dumps(YES), {"Content-Type": "text/plain", "Origin": origin})
    refused = connection.getresponse()
    refused.read()
    connection.request("POST", "/predict", json.dumps(YES), {"Origin": "http://localhost:3000"})
    own = connection.getresponse()
    connection.close()

    assert (refused.status, own.status) == (403, 200)


def test_a_request_without_a_length_has_no_body(port: int) -> None:
    with Client(port) as client:  # RFC 9112, section 6.3
        answer = client.send(b"POST /predict HTTP/1.1\r\nHost: d\r\n\r\n").answer()
        assert answer.status == 400
        assert "JSON" in answer.json["error"]
        assert client.ask("GET", "/health").status == 200


def test_shared_memory_can_be_switched_off(service: SmallService) -> None:
    with ExitStack() as opened:
        api = opened.enter_context(LocalApi(service=service, host="127.0.0.1", port=0, shared_memory=False))
        client = opened.enter_context(Client(api.port or 0))
        assert client.ask("GET", "/v2/systemsharedmemory/status").status == 501
        assert client.ask("GET", "/v2/models/linear").status == 200


def test_loads_take_no_thread_from_inference(service: SmallService, monkeypatch: pytest.MonkeyPatch) -> None:
    may_load = threading.Event()
    loaded: list[str] = []

    def load(name: str) -> None:
        assert may_load.wait(30)
        loaded.append(name)

    monkeypatch.setattr(service, "load_model", load)
    with ExitStack() as opened:
        api = opened.enter_context(LocalApi(service=service, host="127.0.0.1", port=0, workers=1))
        opened.callback(may_load.set)
        loading = [opened.enter_context(Client(api.port or 0)) for _ in range(3)]
        for client in loading:
            client.send(b"POST /v2/repository/models/linear/load HTTP/1.1\r\nHost: d\r\n\r\n")
        caller = opened.enter_context(Client(api.port or 0))
        assert caller.ask("POST", "/predict", {"inputs": {"x": [[1, 2, 3]]}}).status == 200
        assert loaded == []
        may_load.set()
        assert [client.answer().status for client in loading] == [200] * 3
