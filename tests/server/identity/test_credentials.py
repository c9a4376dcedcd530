"""API keys and device secrets: shown once, kept as hashes, refused when wrong."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from fleet_server.database.tables import api_keys, devices
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from fleet_server.identity.api_keys import (
    MAX_OVERLAP_S,
    USED_EVERY_S,
    Role,
    assign_api_key,
    authenticate,
    create_api_key,
    list_api_keys,
    note_use,
    revoke_api_key,
    rotate_api_key,
)
from fleet_server.identity.device_credentials import enrol_device, verify_device
from fleet_server.identity.operators import add_person, set_access


def _create(engine: Engine, name: str = "ci", role: Role = Role.OPERATOR) -> tuple[str, str]:
    with engine.begin() as connection:
        return create_api_key(connection, name=name, role=role, now_ns=5)


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept(engine: Engine) -> None:
    keys = {_create(engine, f"n{number}")[1] for number in range(20)}
    assert len(keys) == 20
    assert all(key.startswith("ef_") and len(key) == 46 for key in keys)
    with engine.connect() as connection:
        stored = str(connection.execute(select(api_keys)).all())
    assert not any(key in stored or key[3:] in stored for key in keys)


def test_a_key_is_its_operator_until_it_is_revoked(engine: Engine) -> None:
    key_id, key = _create(engine)
    with engine.begin() as connection:
        operator = authenticate(connection, key, now_ns=6)
        assert (operator.key_id, operator.actor, operator.role) == (key_id, "key:ci", Role.OPERATOR)
        assert revoke_api_key(connection, key_id, now_ns=9).revoked_ns == 9
        assert revoke_api_key(connection, key_id, now_ns=10).revoked_ns == 9
        with pytest.raises(UnauthorizedError):
            authenticate(connection, key, now_ns=6)
        with pytest.raises(NotFoundError):
            revoke_api_key(connection, "absent", now_ns=1)
        assert [entry.revoked_ns for entry in list_api_keys(connection)] == [9]


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "A", lambda k: k[3:], str.swapcase, lambda _: "é"])
def test_a_key_that_is_nearly_right_is_refused(engine: Engine, change: object) -> None:
    _, key = _create(engine)
    assert callable(change)
    with engine.connect() as connection, pytest.raises(UnauthorizedError):
        authenticate(connection, change(key), now_ns=6)


def test_a_name_is_taken_for_ever(engine: Engine) -> None:
    _create(engine)
    with pytest.raises(ConflictError):
        _create(engine)
    for name in ("", "  ", "x" * 121, "a\nb", "a\x1b[2J"):
        with pytest.raises(InvalidRequestError):
            _create(engine, name)


def test_roles_are_ordered_and_an_unknown_one_is_refused() -> None:
    assert Role.VIEWER < Role.OPERATOR < Role.APPROVER < Role.ADMIN
    for name in ("root", "", "ADMIN"):
        with pytest.raises(InvalidRequestError, match="viewer, operator, approver, admin"):
            Role.parse(name)


def test_enrolling_again_rotates_the_secret_and_keeps_what_is_known(engine: Engine) -> None:
    first = enrol_device(engine, "demo", "pi-1", {"site": "lab"}, now_ns=1)
    second = enrol_device(engine, "demo", "pi-1", now_ns=2)
    with engine.connect() as connection:
        assert not verify_device(connection, "demo", "pi-1", first)
        assert verify_device(connection, "demo", "pi-1", second)
        row = connection.execute(select(devices)).one()
        assert (row.labels, row.created_ns) == ({"site": "lab"}, 1)
        assert second not in str(row)


def test_a_secret_is_good_for_its_device_and_fleet_alone(engine: Engine) -> None:
    secret = enrol_device(engine, "demo", "pi-1", now_ns=1)
    enrol_device(engine, "demo", "pi-2", now_ns=1)
    with engine.begin() as connection:
        connection.execute(devices.insert().values(fleet="demo", device="seen", labels={}, created_ns=1))
        for fleet, device, given in (
            ("demo", "pi-2", secret),
            ("other", "pi-1", secret),
            ("demo", "pi-1", ""),
            ("demo", "pi-1", secret + "x"),
            ("demo", "pi-1", "x" * 10_000),
            ("demo", "seen", ""),
            ("demo", "seen", "0" * 64),
            ("demo", "", ""),
        ):
            assert not verify_device(connection, fleet, device, given), (fleet, device, given[:10])


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "a#", "+", "x" * 65, "$sys", "fleet.server"])
def test_a_name_that_could_leave_its_topic_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        enrol_device(engine, "demo", name, now_ns=1)


def test_an_expired_key_is_refused_like_one_that_never_was(engine: Engine) -> None:
    with engine.begin() as connection:
        _, key = create_api_key(connection, name="ci", role=Role.VIEWER, now_ns=1, expires_ns=100)
        assert authenticate(connection, key, now_ns=99).expires_ns == 100
        with pytest.raises(UnauthorizedError) as expired:
            authenticate(connection, key, now_ns=100)
        with pytest.raises(UnauthorizedError) as unknown:
            authenticate(connection, key[:-1] + "-", now_ns=1)
    assert str(expired.value) == str(unknown.value)


def test_a_rotated_key_is_the_same_operator_and_the_old_secret_ends_with_its_overlap(engine: Engine) -> None:
    key_id, old = _create(engine)
    with engine.begin() as connection:
        entry, new = rotate_api_key(connection, key_id, overlap_s=10, now_ns=1_000)
        assert (entry.key_id, entry.rotated_ns) == (key_id, 1_000)
        for secret in (old, new):
            assert authenticate(connection, secret, now_ns=1_001).key_id == key_id
        with pytest.raises(UnauthorizedError):
            authenticate(connection, old, now_ns=1_000 + 10 * 10**9)
        _, newest = rotate_api_key(connection, key_id, overlap_s=0, now_ns=2_000)
        for secret in (old, new):
            with pytest.raises(UnauthorizedError):
                authenticate(connection, secret, now_ns=2_001)
        assert authenticate(connection, newest, now_ns=2_001).name == "ci"
        with pytest.raises(InvalidRequestError):
            rotate_api_key(connection, key_id, overlap_s=MAX_OVERLAP_S + 1, now_ns=1)
        revoke_api_key(connection, key_id, now_ns=3_000)
        with pytest.raises(ConflictError):
            rotate_api_key(connection, key_id, overlap_s=0, now_ns=3_001)
        with pytest.raises(NotFoundError):
            rotate_api_key(connection, "absent", overlap_s=0, now_ns=1)


def test_use_is_written_coarsely_and_not_by_every_request(engine: Engine) -> None:
    _, key = _create(engine)
    hour_ns = USED_EVERY_S * 10**9

    def used(now_ns: int) -> int | None:
        note_use(engine, key, now_ns=now_ns)
        with engine.connect() as connection:
            return list_api_keys(connection)[0].last_used_ns

    first = 5 * hour_ns
    assert [used(first + step) for step in (0, 1, hour_ns, hour_ns + 1)] == [first, first, first, first + hour_ns + 1]


def test_keys_of_one_owner_are_one_person_and_end_with_their_access(engine: Engine) -> None:
    with engine.begin() as connection:
        ada = add_person(connection, name="Ada", email="Ada@Example.org", now_ns=1)
        assert ada.email == "ada@example.org"
        _, first = create_api_key(connection, name="laptop", role=Role.VIEWER, now_ns=1, owner=ada.id)
        second_id, second = create_api_key(connection, name="ci", role=Role.ADMIN, now_ns=1)
        assert authenticate(connection, second, now_ns=2).person == "key:ci"
        assert assign_api_key(connection, second_id, ada.id).owner_name == "Ada"
        persons = {authenticate(connection, key, now_ns=2).person for key in (first, second)}
        assert persons == {f"person:{ada.id}"}
        assert authenticate(connection, second, now_ns=2).actor == "key:ci"
        set_access(connection, ada.id, ended=True, now_ns=3)
        for key in (first, second):
            with pytest.raises(UnauthorizedError):
                authenticate(connection, key, now_ns=4)
        for bad in ({"name": " "}, {"name": "x", "email": "nobody"}, {"name": "x", "subject": "s"}):
            with pytest.raises(InvalidRequestError):
                add_person(connection, now_ns=1, **bad)
        with pytest.raises(NotFoundError):
            create_api_key(connection, name="third", role=Role.VIEWER, now_ns=1, owner="absent")
    with pytest.raises(ConflictError), engine.begin() as connection:
        add_person(connection, name="Ada again", email="ada@example.org", now_ns=1)
