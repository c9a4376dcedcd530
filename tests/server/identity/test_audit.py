"""The audit log notices what was done to it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select, text, update

from fleet_protocol.keys import PrivateKey
from fleet_server.database.tables import audit_log, models
from fleet_server.errors import InvalidRequestError
from fleet_server.identity import audit
from fleet_server.identity.audit_chain import (
    FIRST_HASH,
    ChainEntry,
    Head,
    check_chain,
    hash_of,
    make_seal,
    read_export,
    read_seal,
)


def _append(engine: Engine, number: int) -> int:
    with engine.begin() as connection:
        detail = {"n": number, "labels": {"b": "1", "a": None}, "share": 0.1}
        return audit.append(connection, actor="key:x", action="a", subject=f"s{number}", detail=detail, at_ns=number)


def test_a_whole_chain_holds(engine: Engine) -> None:
    assert audit.verify(engine) is None
    assert [_append(engine, number) for number in range(5)] == [1, 2, 3, 4, 5]
    assert audit.verify(engine) is None
    with engine.connect() as connection:
        assert [entry.id for entry in audit.list_entries(connection, limit=2, before=5)] == [4, 3]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("actor", "key:innocent"),
        ("action", "b"),
        ("subject", "other"),
        ("detail", {"n": 99}),
        ("at_ns", 7),
        ("hash", "f" * 64),
        ("previous_hash", "e" * 64),
    ],
)
def test_a_changed_entry_is_found(engine: Engine, column: str, value: object) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        connection.execute(update(audit_log).where(audit_log.c.id == 3).values({column: value}))
    assert audit.verify(engine) == 3


def test_a_removed_entry_is_found(engine: Engine) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        connection.execute(delete(audit_log).where(audit_log.c.id == 2))
    assert audit.verify(engine) == 3


def test_entries_that_changed_places_are_found(engine: Engine) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        for old, new in ((2, 99), (3, 2), (99, 3)):
            connection.execute(update(audit_log).where(audit_log.c.id == old).values(id=new))
    assert audit.verify(engine) == 2


def test_writers_at_once_never_fork_the_chain(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: _append(engine, number), range(40)))
    assert sorted(ids) == list(range(1, 41))
    assert audit.verify(engine) is None


def test_an_entry_is_there_only_with_its_change(engine: Engine) -> None:
    with pytest.raises(RuntimeError), engine.begin() as connection:
        connection.execute(models.insert().values(model="m", created_ns=1))
        audit.append(connection, actor="x", action="a", subject="m", at_ns=1)
        raise RuntimeError
    with engine.connect() as connection:
        assert connection.execute(select(audit_log)).all() == []
        assert connection.execute(text("SELECT count(*) FROM models")).scalar() == 0


def test_long_subjects_are_cut_and_still_hold(engine: Engine) -> None:
    with engine.begin() as connection:
        audit.append(connection, actor="x", action="a", subject="s" * 1000, at_ns=1)
    assert audit.verify(engine) is None


def test_an_inserted_entry_is_found_also_below_the_first(engine: Engine) -> None:
    for number in range(3):
        _append(engine, number)
    row = {"at_ns": 0, "actor": "x", "action": "a", "subject": "s", "detail": {}}
    with engine.begin() as connection:
        connection.execute(insert(audit_log).values(id=0, previous_hash="a" * 64, hash="b" * 64, **row))
    assert audit.verify(engine) == 0


def test_a_tail_that_was_cut_off_is_found_with_a_pinned_head(engine: Engine) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.connect() as connection:
        pinned = audit.head(connection)
    assert pinned is not None
    assert Head.parse(str(pinned)) == pinned
    assert audit.check(engine, pinned=[pinned]).holds
    with engine.begin() as connection:
        connection.execute(delete(audit_log).where(audit_log.c.id > 3))
    assert audit.check(engine).holds, "the chain alone cannot show it"
    found = audit.check(engine, pinned=[pinned])
    assert (found.first_broken_id, found.entries) == (4, 3)
    assert "ends at entry 3" in found.reason


def test_a_log_written_anew_is_found_with_a_seal_that_only_its_key_could_make(engine: Engine) -> None:
    for number in range(4):
        _append(engine, number)
    auditor, thief = PrivateKey.generate(), PrivateKey.generate()
    with engine.connect() as connection:
        head = audit.head(connection)
    assert head is not None
    envelope = make_seal(head, fleet="demo", keys=[auditor], at_ns=9)
    seal = read_seal(envelope, [auditor.public])
    assert (seal.fleet, seal.id, seal.at_ns) == ("demo", 4, 9)
    with pytest.raises(InvalidRequestError, match="cannot be trusted"):
        read_seal(make_seal(head, fleet="demo", keys=[thief], at_ns=9), [auditor.public])
    for bad in (b"", b"{}", envelope[:-2], envelope.replace(b"payloadType", b"payloadtype")):
        with pytest.raises(InvalidRequestError):
            read_seal(bad, [auditor.public])
    with engine.begin() as connection:
        connection.execute(delete(audit_log))
    for number in range(4):
        _append(engine, number + 10)
    assert audit.check(engine).holds
    found = audit.check(engine, pinned=[Head(id=seal.id, hash=seal.hash)])
    assert found.first_broken_id == 4
    assert "written anew" in found.reason


@pytest.mark.parametrize(
    "text", ["", "abc", "g" * 64 + ":1", "a" * 64, "a" * 64 + ":", "a" * 64 + ":-1", "A" * 64 + ":1"]
)
def test_a_head_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="HASH:ID"):
        Head.parse(text)


def test_entries_are_listed_by_actor_action_and_time(engine: Engine) -> None:
    for number, action in enumerate(["rollout.create", "rollout.approve", "roll_ut.x", "key.create"]):
        with engine.begin() as connection:
            audit.append(connection, actor=f"key:{number % 2}", action=action, subject="s", at_ns=number)

    def ids(**wanted: Any) -> list[int]:
        with engine.connect() as connection:
            return [e.id for e in audit.list_entries(connection, limit=10, wanted=audit.Wanted(**wanted))]

    assert ids(action="rollout.*") == [2, 1]
    assert ids(action="roll_ut*") == [3], "an underscore stands for itself"
    assert ids(action="key.create") == [4]
    assert ids(actor="key:1", since_ns=2) == [4]
    assert ids() == [4, 3, 2, 1]


def _chain(details: list[Any]) -> list[ChainEntry]:
    entries, previous = [], FIRST_HASH
    for number, detail in enumerate(details, start=1):
        content = {"id": number, "at_ns": number, "actor": "a", "action": "x", "subject": "s", "detail": detail}
        entries.append(ChainEntry(**content, previous_hash=previous, hash=hash_of(previous, content)))
        previous = entries[-1].hash
    return entries


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_DETAILS = st.lists(st.dictionaries(st.text(max_size=8), _JSON, max_size=3), min_size=1, max_size=6)


@settings(max_examples=40)
@given(details=_DETAILS, data=st.data())
def test_an_export_holds_and_any_one_change_to_it_is_found(details: list[Any], data: st.DataObject) -> None:
    entries = _chain(details)
    exported = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
    assert check_chain(read_export(io.BytesIO(exported))).holds
    head = Head(id=len(entries), hash=entries[-1].hash)
    at = data.draw(st.integers(0, len(entries) - 1))
    harmed = list(entries)
    match data.draw(st.sampled_from(["change", "remove", "repeat", "swap", "rehash"])):
        case "change":
            harmed[at] = msgspec.structs.replace(entries[at], actor="b")
        case "remove":
            del harmed[at]
        case "repeat":
            harmed.insert(at, entries[at])
        case "swap":
            other = (at + 1) % len(entries)
            harmed[at], harmed[other] = harmed[other], harmed[at]
        case _:
            changed = {**msgspec.to_builtins(entries[at]), "actor": "b"}
            previous = changed.pop("previous_hash")
            del changed["hash"]
            harmed[at] = ChainEntry(**changed, previous_hash=previous, hash=hash_of(previous, changed))
    assert check_chain(harmed, pinned=[head]).holds is (harmed == entries)


def test_a_line_that_is_no_entry_is_refused_with_its_number() -> None:
    good = msgspec.json.encode(_chain([{}])[0])
    with pytest.raises(InvalidRequestError, match="line 3"):
        list(read_export(io.BytesIO(good + b"\n\n{}\n")))
