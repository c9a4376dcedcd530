"""What the server knows of versions and assignments: asked once, and never believed out of date against a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Probation, Window
from fleet_server.database.engine import open_engine
from fleet_server.database.schema import upgrade
from fleet_server.database.tables import models, versions
from fleet_server.ingest.checks import FILE_VARIANT, Facts
from fleet_server.ingest.facts import NOT_PUBLISHED_S, FactReader
from fleet_server.rollouts.desired import assign
from tests.server.telemetry_store.windows import window

FLEET = "acme"
SIGNER = PrivateKey.generate()
MANIFEST: dict[str, Any] = {
    "variants": [{"name": "int8-qdq-u8s8"}, {"name": "fp32"}],
    "features": [{"name": "brightness", "edges": [0.0, 1.0, 2.0]}],
    "score": {"edges": [0.0, 0.5, 1.0]},
    "classes": [5] * 10,
    "random_features": {"sums": [0.0] * 256},
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(database_url)
    upgrade(opened)
    yield opened
    opened.dispose()


class Clock:
    """A clock that is set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def publish(engine: Engine, version: str, *, model: str = "digits") -> None:
    with engine.begin() as connection:
        if version == "1.0.0":
            connection.execute(insert(models).values(model=model, created_ns=1))
        connection.execute(
            insert(versions).values(
                model=model, version=version, bundle=version.rjust(64, "0"), manifest=MANIFEST, published_by="t",
                published_ns=1,
            )
        )  # fmt: skip


def assign_version(engine: Engine, device: str, version: str) -> None:
    wanted = Assignment(model="digits", version=version, bundle="0" * 64)
    with engine.begin() as connection:
        assign(
            connection, fleet=FLEET, device=device, assignments={"digits": [wanted]}, signer=SIGNER, now_ns=1,
            probation=Probation(),
        )  # fmt: skip


def facts_of(engine: Engine, reader: FactReader, one: Window) -> Facts:
    with engine.connect() as connection:
        return reader.facts_of(connection, [one])(one)


def test_a_version_says_what_its_windows_must_fit(engine: Engine) -> None:
    publish(engine, "1.0.0")
    facts = facts_of(engine, FactReader(fleet=FLEET), window())
    assert facts.is_published and not facts.was_assigned and facts.reference is not None
    reference = facts.reference
    assert reference.variants == {"int8-qdq-u8s8", "fp32"}
    assert (dict(reference.features), reference.score_places, reference.classes, reference.embedding_features) == (
        {"brightness": 7}, 7, 10, 256,
    )  # fmt: skip


def test_what_was_ever_assigned_stays_assigned(engine: Engine) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(engine, version)
    for version in ("1.0.0", "1.1.0"):
        assign_version(engine, "dev-1", version)
    reader = FactReader(fleet=FLEET)
    told = [facts_of(engine, reader, window(version=v)).was_assigned for v in ("1.0.0", "1.1.0", "1.2.0")]
    assert told == [True, True, False]
    assert not facts_of(engine, reader, window(device="dev-2")).was_assigned
    assert not facts_of(engine, FactReader(fleet="other"), window()).was_assigned


def test_a_version_assigned_since_the_last_batch_is_known_at_once(engine: Engine) -> None:
    publish(engine, "1.0.0")
    reader = FactReader(fleet=FLEET)
    assert facts_of(engine, reader, window(version="1.1.0")).reference is None
    publish(engine, "1.1.0")
    assign_version(engine, "dev-1", "1.1.0")
    facts = facts_of(engine, reader, window(version="1.1.0"))
    assert facts.reference is not None and facts.was_assigned


def test_a_model_published_later_is_known_soon(engine: Engine) -> None:
    clock = Clock()
    reader = FactReader(fleet=FLEET, monotonic_s=clock)
    assert facts_of(engine, reader, window()) == Facts()
    publish(engine, "1.0.0")
    clock.now_s += NOT_PUBLISHED_S
    assert facts_of(engine, reader, window()).is_published


def test_what_is_known_costs_no_query(engine: Engine) -> None:
    publish(engine, "1.0.0")
    assign_version(engine, "dev-1", "1.0.0")
    reader, asked = FactReader(fleet=FLEET), []
    batch = [window(), window(model="local", sequence=2), window(variant=FILE_VARIANT, sequence=3)]
    event.listen(engine, "before_cursor_execute", lambda *context: asked.append(context[2]))
    with engine.connect() as connection:
        reader.facts_of(connection, batch)
        assert len(asked) == 3, "one for the models, one for the versions, one for the assignments"
        of = reader.facts_of(connection, batch)
    assert len(asked) == 3
    assert [of(one).was_assigned for one in batch] == [True, False, True]
