"""Deltas over TCP: asked for by pair, fetched as any artifact, with Range, by who may fetch artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from fleet_server.registry.deltas import DeltaStore
from tests.real_servers.processes import wait_until
from tests.server.api.running import Server, running_server

OLD = np.random.default_rng(4).bytes(50_000)
NEW = OLD[:25_000] + bytes(50) + OLD[25_050:]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


QUESTION = f"/api/v1/artifacts/{_digest(NEW)}/deltas/{_digest(OLD)}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path, deltas=True) as running:
        client = running.client("operator")
        for content in (OLD, NEW):
            client.put(f"/api/v1/artifacts/{_digest(content)}", content=content)
        yield running


def test_a_delta_is_announced_and_then_fetched_in_ranges(server: Server) -> None:
    client = server.client("viewer")
    first = client.get(QUESTION)
    assert (first.status_code, first.headers["retry-after"]) == (202, "1")
    wait_until(lambda: client.get(QUESTION).status_code == 200, 20, "the delta is there")

    offer = client.get(QUESTION).json()
    whole = client.get(f"/api/v1/artifacts/{offer['delta']}")
    rest = client.get(f"/api/v1/artifacts/{offer['delta']}", headers={"Range": "bytes=100-"})

    assert _digest(whole.content) == offer["delta"]
    assert len(whole.content) == offer["size_bytes"] < 1000
    assert whole.headers["etag"] == f'"{offer["delta"]}"'
    assert (rest.status_code, rest.content) == (206, whole.content[100:])


def test_nobody_without_a_key_learns_of_deltas(server: Server) -> None:
    assert server.client(None).get(QUESTION).status_code == 401


def test_a_pair_with_an_unknown_file_is_404(server: Server) -> None:
    assert server.client("viewer").get(QUESTION[:-64] + "0" * 64).status_code == 404
    assert server.client("viewer").get(QUESTION[:-64] + "nonsense").status_code == 400


def test_a_server_without_deltas_says_that_there_are_none(tmp_path: Path) -> None:
    with running_server(tmp_path) as plain:
        answer: httpx.Response = plain.client("viewer").get(QUESTION)
        assert answer.status_code == 404
        assert "fetch the whole file" in answer.json()["detail"]


def test_a_delta_that_was_removed_is_404(server: Server) -> None:
    client = server.client("viewer")
    wait_until(lambda: client.get(QUESTION).status_code == 200, 20, "the delta is there")
    delta = client.get(QUESTION).json()["delta"]
    assert isinstance(server.services.deltas, DeltaStore)
    next(server.folder.rglob(delta)).unlink()

    assert client.get(f"/api/v1/artifacts/{delta}").status_code == 404
    assert client.get(QUESTION).status_code == 202
