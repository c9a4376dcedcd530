"""A request sent again does nothing twice, and every change stands in the audit log once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from sqlalchemy import update

from fleet_server.api.idempotency import TAKE_OVER_AFTER_S, Answer, Claim, claim, finish, give_back
from fleet_server.database.tables import idempotency_keys
from fleet_server.errors import ConflictError
from tests.server.api.running import Server, make_bundle, publish

_S = 10**9


def _audited(client: httpx.Client) -> list[str]:
    return [entry["action"] for entry in reversed(client.get("/api/v1/audit").json()["items"])]


def _enrol(client: httpx.Client, device: str, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/api/v1/devices/{device}/enrol", json={}, headers=headers)


def test_the_same_request_again_gets_the_same_answer_and_does_nothing(server: Server) -> None:
    with server.client() as client:
        _enrol(client, "pi-1")
        headers = {"Idempotency-Key": "k1"}
        first = client.patch("/api/v1/devices/pi-1", json={"labels": {"site": "lab"}}, headers=headers)
        client.patch("/api/v1/devices/pi-1", json={"labels": {"site": "field"}})
        again = client.patch("/api/v1/devices/pi-1", json={"labels": {"site": "lab"}}, headers=headers)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert client.get("/api/v1/devices/pi-1").json()["labels"] == {"site": "field"}
        assert _audited(client) == ["device.enrol", "device.labels", "device.labels"]
        checked = client.get("/api/v1/audit/verify").json()
        assert (checked["holds"], checked["first_broken_id"], checked["entries"]) == (True, None, 3)


def test_another_request_under_the_same_key_is_refused(server: Server) -> None:
    with server.client() as client:
        _enrol(client, "pi-1")
        headers = {"Idempotency-Key": "k1"}
        assert client.patch("/api/v1/devices/pi-1", json={"labels": {}}, headers=headers).status_code == 200
        other = client.patch("/api/v1/devices/pi-1", json={"labels": {"a": "b"}}, headers=headers)
        assert other.status_code == 409
        assert _enrol(client, "pi-2", "k1").status_code == 409


def test_two_operators_may_use_the_same_key(server: Server) -> None:
    with server.client("admin") as one, server.client("operator") as two:
        assert _enrol(one, "pi-1", "k").status_code == 201
        assert _enrol(two, "pi-2", "k").status_code == 201


def test_a_request_that_failed_may_be_sent_again_under_its_key(server: Server) -> None:
    with server.client() as client:
        headers = {"Idempotency-Key": "k1"}
        change = {"labels": {"site": "lab"}}
        assert client.patch("/api/v1/devices/pi-1", json=change, headers=headers).status_code == 404
        _enrol(client, "pi-1")
        assert client.patch("/api/v1/devices/pi-1", json=change, headers=headers).status_code == 200


def test_a_secret_is_answered_once_and_kept_nowhere(server: Server) -> None:
    with server.client() as client:
        first = _enrol(client, "pi-1", "k1")
        secret = first.json()["secret"]
        again = _enrol(client, "pi-1", "k1")
        assert again.status_code == 409
        assert secret not in again.text
        assert client.get("/api/v1/artifacts/" + "0" * 64, auth=("pi-1", secret)).status_code == 404, "still valid"
        key = client.post("/api/v1/operators/keys", json={"name": "x", "role": "viewer"}).json()["key"]
    for file in Path(server.folder).glob("fleet.db*"):
        content = file.read_bytes()
        assert secret.encode() not in content
        assert key.encode() not in content


def test_requests_at_once_under_one_key_are_carried_out_once(server: Server) -> None:
    def send(_: int) -> int:
        with server.client() as client:
            body = {"name": "once", "role": "viewer"}
            return client.post("/api/v1/operators/keys", json=body, headers={"Idempotency-Key": "k"}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(send, range(8)))
    assert statuses == [201] + [409] * 7
    with server.client() as client:
        assert _audited(client) == ["key.create"]


def test_a_rollout_is_created_once_and_commanded_by_the_right_people(server: Server, tmp_path: Path) -> None:
    assert publish(server, make_bundle(tmp_path / "b", server.release_keys)).status_code == 201
    body = {"model": "digits", "version": "1.0.0", "policy": {"require_approval": True}}
    with server.client("operator") as operator, server.client("approver") as approver:
        headers = {"Idempotency-Key": "r"}
        created = operator.post("/api/v1/rollouts", json=body, headers=headers)
        assert created.status_code == 201, created.text
        path = f"/api/v1/rollouts/{created.json()['id']}"
        assert operator.post("/api/v1/rollouts", json=body, headers=headers).json() == created.json()
        assert operator.post("/api/v1/rollouts", json=body).status_code == 409, "one is open"
        assert [r["id"] for r in operator.get("/api/v1/rollouts").json()["items"]] == [created.json()["id"]]
        assert operator.post(f"{path}/approve").status_code == 403
        assert approver.post(f"{path}/approve").status_code == 200
        assert approver.post(f"{path}/approve").status_code == 409, "approved already"
        assert operator.post(f"{path}/explode").status_code == 400
        assert operator.get(path).json()["state"] in ("SCHEDULED", "ACTIVE")
        assert operator.post(f"{path}/abort").status_code == 200
        bad = operator.post("/api/v1/rollouts", json={**body, "policy": {"stagse": []}})
        assert bad.status_code == 400
        assert "stagse" in bad.json()["detail"]
        actions = _audited(operator)
    assert actions[-3:] == ["rollout.create", "rollout.approve", "rollout.abort"]


def test_a_second_key_of_the_author_is_no_second_pair_of_eyes(server: Server, tmp_path: Path) -> None:
    assert publish(server, make_bundle(tmp_path / "b", server.release_keys)).status_code == 201
    with server.client() as admin:
        ann = admin.post("/api/v1/operators", json={"name": "Ann", "email": "ann@example.org"}).json()["id"]
        keys = {
            name: admin.post("/api/v1/operators/keys", json={"name": name, "role": "approver", "owner": owner}).json()
            for name, owner in (("laptop", ann), ("phone", ann), ("bob", None))
        }
    as_key = {name: {"Authorization": f"Bearer {key['key']}"} for name, key in keys.items()}
    body = {"model": "digits", "version": "1.0.0", "policy": {"require_approval": True}}
    with server.client(None) as anybody:
        created = anybody.post("/api/v1/rollouts", json=body, headers=as_key["laptop"])
        path = f"/api/v1/rollouts/{created.json()['id']}/approve"
        refused = anybody.post(path, headers=as_key["phone"])
        assert (refused.status_code, "cannot approve it" in refused.json()["detail"]) == (403, True)
        assert anybody.post(path, headers=as_key["bob"]).status_code == 200


def test_a_malformed_key_is_refused(server: Server) -> None:
    with server.client() as client:
        for key in ("x" * 256, "", "a\tb"):
            answer = client.post("/api/v1/devices/pi-1/enrol", json={}, headers={"Idempotency-Key": key})
            assert answer.status_code == 400
        assert client.get("/api/v1/devices").json()["items"] == []


def _claim(at_s: int) -> Claim:
    return Claim(actor="a", key="k", request_sha256="0" * 64, claimed_ns=(1_000_000 + at_s) * _S)


def _refused(server: Server, wanted: Claim) -> bool:
    try:
        claim(server.engine, wanted)
    except ConflictError:
        return True
    return False


def test_a_key_left_by_a_crash_is_taken_over_by_one_later_request(server: Server) -> None:
    assert claim(server.engine, _claim(0)) is None
    assert _refused(server, _claim(1))
    assert claim(server.engine, _claim(TAKE_OVER_AFTER_S + 1)) is None
    assert _refused(server, _claim(TAKE_OVER_AFTER_S + 2))
    give_back(server.engine, _claim(0))
    assert _refused(server, _claim(TAKE_OVER_AFTER_S + 3)), "the crashed request no longer owns the key"
    finish(server.engine, _claim(TAKE_OVER_AFTER_S + 1), Answer(status=200, body=b"{}"))
    assert claim(server.engine, _claim(TAKE_OVER_AFTER_S + 4)) == Answer(status=200, body=b"{}")


def test_keys_are_forgotten_after_a_day(server: Server) -> None:
    assert claim(server.engine, _claim(0)) is None
    finish(server.engine, _claim(0), Answer(status=200, body=b"{}"))
    with server.engine.begin() as connection:
        connection.execute(update(idempotency_keys).values(created_ns=1))
    assert claim(server.engine, _claim(1)) is None
