"""How Q5 counts and judges downloads."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from benchmarks.q5_bundle_download import Download, judge
from benchmarks.quantization.artifact_counter import ArtifactCounter
from fleet_protocol.manifest import Artifact, Manifest, TensorSpec, Variant

_BODY = bytes(100_000)
_NAMES = {"int8": "a" * 64, "fp32": "b" * 64, "for-arm": "c" * 64}


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.startswith("/artifacts/")
        body = _BODY[int(self.headers.get("Range", "bytes=0-")[6:-1]) :] if found else b"no"
        self.send_response((206 if "Range" in self.headers else 200) if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def counter() -> Iterator[ArtifactCounter]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with ArtifactCounter(f"http://127.0.0.1:{server.server_address[1]}") as found:
            yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _get(counter: ArtifactCounter, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(counter.url).netloc, timeout=10)
    # "first:secret"
    connection.request("GET", path, headers={"Authorization": "Basic Zmlyc3Q6c2VjcmV0", **headers})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_bytes_are_counted_by_device_and_file_also_of_a_part_and_not_of_an_error(counter: ArtifactCounter) -> None:
    assert _get(counter, f"/artifacts/{'a' * 64}") == (200, _BODY)
    assert _get(counter, f"/artifacts/{'b' * 64}", Range="bytes=99000-") == (206, _BODY[99_000:])
    assert _get(counter, "/nowhere")[0] == 404
    assert counter.received("first") == {"a" * 64: 100_000, "b" * 64: 1000}
    assert counter.received("second") == {}


def _manifest() -> Manifest:
    return Manifest(
        model="digits",
        version="1.0.0",
        task="classification",
        created_at_ns=1,
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 4])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 4])],
        variants=[
            Variant(
                name=name,
                file=Artifact(sha256=digest, size_bytes=100),
                opset=18,
                quantization="",
                golden_tolerance=0.1,
                architectures=["aarch64"] if name == "for-arm" else [],
            )
            for name, digest in _NAMES.items()
        ],
        golden=Artifact(sha256="d" * 64, size_bytes=50),
    )


def _download(*variants: str, runs: str = "int8") -> Download:
    return Download(received={_NAMES[name]: 100 for name in variants} | {"d" * 64: 50}, variant=runs)


def test_a_second_device_that_fetches_the_one_it_runs_has_a_ratio_of_one() -> None:
    downloads = [_download("int8"), _download("int8", "fp32")]
    result = judge(_manifest(), downloads, machine="x86_64", broker="mosquitto")
    assert (result.ratio, result.holds) == (1.0, True)
    assert result.figures["devices"]["second"]["share_of_whole_bundle"] == round(150 / 350, 3)


def test_a_second_device_that_fetches_all_fails() -> None:
    downloads = [_download("int8", "fp32"), _download("int8", "fp32")]
    assert judge(_manifest(), downloads, machine="x86_64", broker="mosquitto").ratio == 2.0


def test_nothing_was_saved_where_the_first_device_did_not_fetch_every_candidate() -> None:
    downloads = [_download("int8"), _download("int8")]
    result = judge(_manifest(), downloads, machine="x86_64", broker="mosquitto")
    assert (result.ratio, result.holds) == (1.0, False)


def test_a_device_that_runs_nothing_fails() -> None:
    downloads = [_download("int8", "fp32"), _download("int8", runs="")]
    assert not judge(_manifest(), downloads, machine="x86_64", broker="mosquitto").holds
