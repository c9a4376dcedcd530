"""Trust roots on the server: who may push one, which ones are refused, and what a revoked release key ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from sqlalchemy import insert, update

from fleet_protocol.keys import PrivateKey
from fleet_protocol.root import MAX_ROOT_BYTES, KeyRule, make_root, sign_root, verify_first_root, verify_next_root
from fleet_server.api import create_app
from fleet_server.database.identity_tables import trust_roots
from fleet_server.errors import ConfigError
from fleet_server.registry.roots import TrustRoots
from tests.real_servers.processes import wait_until
from tests.server.api.running import Server, make_bundle, running_server, upload

ROOT, RELEASE, SECOND, DIRECTOR, STRANGER = (PrivateKey(bytes([number]) * 32) for number in range(31, 36))


def signed(
    version: int, *, release: PrivateKey = RELEASE, by: PrivateKey = ROOT, expires_ns: int = 10**19 // 2
) -> bytes:
    made = make_root(
        version=version,
        fleet="demo",
        issued_at_ns=1,
        expires_ns=expires_ns,
        root=KeyRule((ROOT.public,), 1),
        release=KeyRule((release.public,), 1),
        director=KeyRule((DIRECTOR.public,), 1),
    )
    return sign_root(made, [by])


def open_roots(server: Server) -> TrustRoots:
    return TrustRoots(engine=server.engine, fleet="demo", pinned=signed(1), where="trust.root")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that pins root 1."""
    with running_server(tmp_path) as plain:
        services = replace(plain.services, roots=open_roots(plain))
        running = uvicorn.Server(uvicorn.Config(create_app(services), port=0, log_level="error"))
        thread = threading.Thread(target=running.run)
        thread.start()
        wait_until(lambda: running.started, 20.0, "the server started")
        port = running.servers[0].sockets[0].getsockname()[1]
        yield replace(plain, url=f"http://127.0.0.1:{port}", services=services)
        running.should_exit = True
        thread.join()


def push(server: Server, envelope: bytes, role: str = "admin") -> httpx.Response:
    with server.client(role) as client:
        return client.post("/api/v1/trust/roots", content=envelope)


def test_a_pushed_root_is_there_for_every_device_as_it_was_signed(server: Server) -> None:
    two, three = signed(2), signed(3)
    assert [push(server, envelope).status_code for envelope in (two, two, three)] == [201, 200, 201]
    with server.client(None) as anybody:
        one = verify_first_root(anybody.get("/api/v1/trust/roots/1").content, fleet="demo")
        assert verify_next_root(one, anybody.get("/api/v1/trust/roots/2").content).version == 2
        assert anybody.get("/api/v1/trust/roots/3").content == three
        assert anybody.get("/api/v1/trust/roots/4").status_code == 404
        assert anybody.get("/api/v1/trust/roots/0").status_code == 400
        assert [item["version"] for item in anybody.get("/api/v1/trust/roots").json()["items"]] == [3, 2, 1]
    with server.client("admin") as client:
        audit = client.get("/api/v1/audit").json()["items"]
    assert [entry["subject"] for entry in audit if entry["action"] == "trust.root"] in (["3", "2"], ["2", "3"])


@pytest.mark.parametrize(
    ("envelope", "status", "says"),
    [
        (signed(3), 422, "does not follow"),
        (signed(2, by=STRANGER), 422, "0 valid signatures"),
        (signed(1, release=SECOND), 409, "is another one"),
        (b"no root", 422, "not a signed envelope"),
        (b"x" * (MAX_ROOT_BYTES + 1), 413, "exceeds the limit"),
    ],
)
def test_a_root_that_breaks_continuity_is_refused(server: Server, envelope: bytes, status: int, says: str) -> None:
    answer = push(server, envelope)
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert server.services.roots is not None
    assert server.services.roots.newest().version == 1


def test_only_an_admin_pushes_roots(server: Server) -> None:
    assert push(server, signed(2), "approver").status_code == 403


def test_what_a_revoked_release_key_signed_is_neither_published_nor_rolled_out(server: Server, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a", [RELEASE])
    later = make_bundle(tmp_path / "b", [RELEASE], version="1.1.0")
    with server.client() as client:
        upload(client, bundle)
        upload(client, later)
        assert client.post("/api/v1/models/digits/versions", content=bundle.envelope).status_code == 201
        assert push(server, signed(2, release=SECOND)).status_code == 201

        published = client.post("/api/v1/models/digits/versions", content=later.envelope)
        assert (published.status_code, "0 valid signatures" in published.json()["detail"]) == (422, True)
        rolled_out = client.post("/api/v1/rollouts", json={"model": "digits", "version": "1.0.0"})
        assert (rolled_out.status_code, "not released by the keys of today" in rolled_out.json()["detail"]) == (
            422,
            True,
        )
        again = make_bundle(tmp_path / "c", [SECOND], version="1.0.1")
        upload(client, again)
        assert client.post("/api/v1/models/digits/versions", content=again.envelope).status_code == 201


def test_a_compromised_database_cannot_make_a_root(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    forged = signed(2, release=STRANGER, by=STRANGER)
    with server.engine.begin() as connection:
        row = {"fleet": "demo", "version": 2, "envelope": forged, "pushed_by": "thief", "pushed_ns": 1}
        connection.execute(insert(trust_roots).values(row))
    roots = open_roots(server)
    assert roots.newest().version == 1
    assert roots.envelope(2) is None
    assert "is not believed" in caplog.text
    assert roots.release_rule()[0][0].key_id == RELEASE.public.key_id
    assert push(server, signed(2, release=SECOND)).status_code == 201, "and it does not stand in the way of a right one"
    assert roots.newest().version == 2


def test_a_root_changed_in_the_database_is_not_believed_after_a_restart(server: Server) -> None:
    assert push(server, signed(2, release=SECOND)).status_code == 201
    with server.engine.begin() as connection:
        connection.execute(update(trust_roots).values(envelope=signed(2, release=STRANGER, by=STRANGER)))
    assert open_roots(server).newest().version == 1


def test_a_server_whose_config_lists_plain_keys_has_no_roots(tmp_path: Path) -> None:
    with running_server(tmp_path) as plain:
        assert push(plain, signed(2)).status_code == 409
        with plain.client(None) as anybody:
            assert anybody.get("/api/v1/trust/roots").json()["items"] == []
            assert anybody.get("/api/v1/trust/roots/1").status_code == 404


def test_a_pinned_root_that_nobody_can_believe_stops_the_server(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"trust\.root"):
        TrustRoots(engine=server.engine, fleet="demo", pinned=signed(1, by=STRANGER), where="trust.root")
