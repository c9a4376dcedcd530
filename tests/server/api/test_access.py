"""Who may do what: every role against every change, and every read without a credential."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

from fleet_server.api import create_app
from fleet_server.api.mutations import OpenMutation
from tests.server.api.running import Server

_DIGEST = "0" * 64
# Each change with the least role it needs; what an allowed caller gets is an error of the content, never 401 or 403.
_CHANGES = (
    ("POST", "/api/v1/devices/{device}/enrol", {"labels": {"site": "lab"}}, "operator"),
    ("PATCH", "/api/v1/devices/{device}", {"labels": {}}, "operator"),
    ("POST", "/api/v1/devices/{device}/revoke", {"reason": "stolen"}, "operator"),
    ("POST", "/api/v1/devices/{device}/decommission", None, "operator"),
    ("POST", "/api/v1/enrolment-tokens", {"labels": {"site": "lab"}}, "operator"),
    ("DELETE", "/api/v1/enrolment-tokens/{token_id}", None, "operator"),
    ("POST", "/api/v1/models/{model}/versions", None, "operator"),
    ("POST", "/api/v1/trust/roots", None, "admin"),
    ("PUT", "/api/v1/artifacts/{sha256}", None, "operator"),
    ("POST", "/api/v1/rollouts", {"model": "digits", "version": "1.0.0"}, "operator"),
    ("POST", "/api/v1/rollouts/plan", {"model": "digits", "version": "1.0.0"}, "viewer"),
    ("POST", "/api/v1/rollouts/{rollout_id}/approve", None, "approver"),
    ("POST", "/api/v1/rollouts/{rollout_id}/{command}", None, "operator"),
    ("POST", "/api/v1/drift/findings/{finding_id}/acknowledge", None, "operator"),
    ("POST", "/api/v1/operators/keys", {"name": "second", "role": "viewer"}, "admin"),
    ("POST", "/api/v1/operators/keys/{key_id}/rotate", None, "admin"),
    ("PATCH", "/api/v1/operators/keys/{key_id}", {"owner": "p1"}, "admin"),
    ("DELETE", "/api/v1/operators/keys/{key_id}", None, "admin"),
    ("POST", "/api/v1/operators", {"name": "Ada"}, "admin"),
    ("PATCH", "/api/v1/operators/{person_id}", {"ended": True}, "admin"),
)
# What devices change for themselves, with a token or their secret: no operator's role lets anybody do it.
_BY_DEVICES = {("POST", "/api/v1/enrol"), ("POST", "/api/v1/devices/{device}/certificate")}
_ROLES = ("viewer", "operator", "approver", "admin")
_OPEN = {"/", "/docs", "/docs/oauth2-redirect", "/health", "/ready", "/metrics"}
_TO_SIGN_IN = {"/api/v1/login"}
_OPEN |= {"/api/v1/trust/roots", "/api/v1/trust/roots/{version}"}  # signed by their holders, and nobody's secret
_NAMES = {
    "device": "pi-1",
    "model": "digits",
    "version": "1.0.0",
    "sha256": _DIGEST,
    "base": _DIGEST,
    "rollout_id": "r1",
    "finding_id": "f1",
    "command": "pause",
    "key_id": "k1",
    "person_id": "p1",
    "token_id": "t1",
}


def _routes(server: Server) -> Iterator[tuple[str, APIRoute]]:
    def walk(routes: list[object]) -> Iterator[APIRoute]:
        for route in routes:
            if isinstance(route, APIRoute):
                yield route
            else:
                inner = getattr(route, "original_router", None)
                yield from walk(list(getattr(inner, "routes", [])))

    for route in walk(list(create_app(server.services).routes)):
        for method in sorted(route.methods):
            yield method, route


def test_the_matrix_below_covers_every_change_there_is(server: Server) -> None:
    changes = {(method, route.path) for method, route in _routes(server) if method not in ("GET", "HEAD")}
    assert changes == {(method, path) for method, path, _, _ in _CHANGES} | _BY_DEVICES


def test_every_change_goes_through_the_one_way_that_audits(server: Server) -> None:
    for method, route in _routes(server):
        if method not in ("GET", "HEAD") and (method, route.path) not in _BY_DEVICES:
            calls = [dependency.call for dependency in route.dependant.dependencies]
            assert any(isinstance(call, OpenMutation) for call in calls), f"{method} {route.path}"


@pytest.mark.parametrize("role", _ROLES)
def test_each_role_may_make_exactly_the_changes_it_should(server: Server, role: str) -> None:
    with server.client(role) as client:
        for method, path, body, least in _CHANGES:
            answer = client.request(method, path.format(**_NAMES), json=body)
            allowed = _ROLES.index(role) >= _ROLES.index(least)
            assert (answer.status_code == 403) is not allowed, f"{role} {method} {path}: {answer.status_code}"
            assert answer.status_code != 401
            assert answer.status_code < 500, answer.text


def test_a_forbidden_change_changes_nothing(server: Server) -> None:
    with server.client("viewer") as client:
        assert client.post("/api/v1/devices/pi-1/enrol", json={}).status_code == 403
        assert client.get("/api/v1/devices").json()["items"] == []
        assert client.get("/api/v1/audit").json()["items"] == []


def test_nothing_but_health_metrics_and_documentation_answers_without_a_credential(server: Server) -> None:
    paths = {(method, route.path) for method, route in _routes(server)}
    assert len(paths) > 20
    with server.client(None) as client:
        for method, path in sorted(paths):
            answer = client.request(method, path.format(**_NAMES), follow_redirects=True)
            if path in _OPEN and method in ("GET", "HEAD"):
                assert answer.status_code == 200 or ("{" in path and answer.status_code in (400, 404)), path
            elif path in _TO_SIGN_IN:
                assert answer.status_code == 404, "no identity provider here"
            else:
                assert answer.status_code in (400, 401), f"{method} {path}: {answer.status_code}"
                if answer.status_code == 401 and method != "HEAD":
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer not-a-key",
        "Bearer ef_",
        "Bearer ef_" + "A" * 43,
        "Bearer " + "x" * 2000,
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Digest username=x",
    ],
)
def test_a_malformed_or_unknown_credential_is_refused(server: Server, header: str) -> None:
    with server.client(None) as client:
        for path in ("/api/v1/devices", f"/api/v1/artifacts/{_DIGEST}"):
            answer = client.get(path, headers={"Authorization": header})
            assert answer.status_code == 401, header
            assert answer.json()["type"] == "urn:edgefleet:problem:unauthorized"


def test_a_revoked_key_is_refused_from_the_next_request_on(server: Server) -> None:
    with server.client("admin") as admin:
        made = admin.post("/api/v1/operators/keys", json={"name": "ci", "role": "operator"}).json()
        headers = {"Authorization": f"Bearer {made['key']}"}
        assert httpx.get(f"{server.url}/api/v1/devices", headers=headers).status_code == 200
        assert admin.delete(f"/api/v1/operators/keys/{made['id']}").json()["revoked_ns"] > 0
        assert httpx.get(f"{server.url}/api/v1/devices", headers=headers).status_code == 401
        listed = admin.get("/api/v1/operators/keys").text
        assert made["key"] not in listed
        assert admin.post("/api/v1/operators/keys", json={"name": "ci", "role": "admin"}).status_code == 409


def test_a_device_reads_artifacts_with_its_secret_and_nothing_else(server: Server) -> None:
    with server.client("operator") as operator:
        secret = operator.post("/api/v1/devices/pi-1/enrol", json={}).json()["secret"]
        again = operator.post("/api/v1/devices/pi-1/enrol", json={}).json()["secret"]
    with server.client(None) as client:
        path = f"/api/v1/artifacts/{_DIGEST}"
        assert client.get(path, auth=("pi-1", again)).status_code == 404
        assert client.get(path, auth=("pi-1", secret)).status_code == 401, "the rotated secret"
        assert client.get(path, auth=("pi-2", again)).status_code == 401
        assert client.put(path, auth=("pi-1", again), content=b"x").status_code == 401
        assert client.get("/api/v1/devices", auth=("pi-1", again)).status_code == 401
