"""The API of enrolment: tokens, enrolling, revoking, decommissioning, and what of it is audited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fleet_server.config import LimitsConfig
from tests.server.api.running import Server, running_server
from tests.server.identity.authority import make_issuing, new_request


@pytest.fixture
def issuing_server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server", issuing=make_issuing(tmp_path / "authority")) as running:
        yield running


def _make(server: Server, **terms: object) -> dict[str, object]:
    with server.client("operator") as client:
        answer = client.post("/api/v1/enrolment-tokens", json=terms)
    assert answer.status_code == 201, answer.text
    found: dict[str, object] = answer.json()
    return found


def _enrol(server: Server, token: object, device: str = "pi-1", **more: object) -> httpx.Response:
    body = {"device": device, "csr": new_request(), **more}
    with server.client(None) as client:
        return client.post("/api/v1/enrol", json=body, headers={"Authorization": f"Bearer {token}"})


def test_a_token_is_shown_once_and_lets_one_device_in(issuing_server: Server) -> None:
    server = issuing_server
    made = _make(server, note="for the lab", labels={"site": "lab"})
    answer = _enrol(server, made["token"])
    assert answer.status_code == 201
    enrolled = answer.json()
    assert enrolled["certificate"]["chain"][0].startswith("-----BEGIN CERTIFICATE")
    assert (enrolled["device"], enrolled["labels"], enrolled["fleet"]) == ("pi-1", {"site": "lab"}, "demo")
    assert _enrol(server, made["token"], "pi-2").status_code == 401
    with server.client("admin") as admin:
        listed = admin.get("/api/v1/enrolment-tokens")
        assert [(token["id"], token["uses"]) for token in listed.json()["items"]] == [(made["id"], 1)]
        log = admin.get("/api/v1/audit")
        told = [(entry["actor"], entry["action"]) for entry in log.json()["items"]]
        assert told == [("device:pi-1", "device.enrol"), ("key:operator", "enrolment_token.create")]
        for secret in (str(made["token"]), enrolled["secret"]):
            assert secret not in listed.text
            assert secret not in log.text
        assert admin.get("/api/v1/devices/pi-1").json()["enrolled"] is True
    with server.client(None) as client:  # the secret is good for downloads
        assert client.get(f"/api/v1/artifacts/{'0' * 64}", auth=("pi-1", enrolled["secret"])).status_code == 404


def test_a_revoked_token_lets_nobody_in_and_its_devices_stay(issuing_server: Server) -> None:
    made = _make(issuing_server, max_uses=5)
    assert _enrol(issuing_server, made["token"]).status_code == 201
    with issuing_server.client("operator") as client:
        assert client.delete(f"/api/v1/enrolment-tokens/{made['id']}").json()["uses"] == 1
        assert client.delete("/api/v1/enrolment-tokens/absent").status_code == 404
        assert _enrol(issuing_server, made["token"], "pi-2").status_code == 401
        assert [device["device"] for device in client.get("/api/v1/devices").json()["items"]] == ["pi-1"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"device": "Not An Id"}, "device"),
        ({"csr": "nonsense"}, "PKCS#10"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"more": 1}, "more"),
    ],
)
def test_a_malformed_request_uses_nothing_up(issuing_server: Server, body: dict[str, object], says: str) -> None:
    made = _make(issuing_server)
    answer = _enrol(issuing_server, made["token"], **body)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]
    assert _enrol(issuing_server, made["token"]).status_code == 201


def test_without_an_authority_a_device_gets_a_secret_alone(server: Server) -> None:
    made = _make(server)
    answer = _enrol(server, made["token"])
    assert answer.status_code == 201
    assert answer.json()["certificate"] is None
    auth = ("pi-1", answer.json()["secret"])
    body = {"csr": new_request(), "serial": "0" * 32, "proof": "AAAA"}
    with server.client(None) as client:
        refused = client.post("/api/v1/devices/pi-1/certificate", json=body, auth=auth)
    assert refused.status_code == 409
    assert "identity.ca_certificate" in refused.json()["detail"]


def test_revoking_and_decommissioning_are_listed_and_enrolling_again_ends_them(issuing_server: Server) -> None:
    server = issuing_server
    enrolled = _enrol(server, _make(server)["token"]).json()
    with server.client("operator") as client:
        revoked = client.post("/api/v1/devices/pi-1/revoke", json={"reason": "stolen"}).json()
        assert (revoked["revoked"]["reason"], revoked["revoked"]["by"]) == ("stolen", "key:operator")
        assert revoked["enrolled"] is False
        again = client.post("/api/v1/devices/pi-1/revoke", json={"reason": "another"}).json()
        assert again["revoked"] == revoked["revoked"], "the first time and reason stay"
        gone = client.post("/api/v1/devices/pi-1/decommission").json()
        assert gone["revoked"]["decommissioned"] is True
        assert gone["reported"] is None
        listed = client.get("/api/v1/devices").json()["items"]
        assert [device["revoked"]["decommissioned"] for device in listed] == [True]
        assert client.get(f"/api/v1/artifacts/{'0' * 64}", auth=("pi-1", enrolled["secret"])).status_code == 401
        assert client.post("/api/v1/devices/absent/revoke").status_code == 404
        assert _enrol(server, _make(server)["token"]).status_code == 409, "only a token for exactly this device"
        assert _enrol(server, _make(server, device="pi-1")["token"]).status_code == 201
        assert client.get("/api/v1/devices/pi-1").json()["revoked"] is None


def test_strangers_may_try_so_often_a_minute(tmp_path: Path) -> None:
    limits = LimitsConfig(enrol_per_minute=3)
    with running_server(tmp_path, limits=limits) as server:
        answers = [_enrol(server, "eft_" + "A" * 43).status_code for _ in range(5)]
        assert answers == [401, 401, 401, 429, 429]
