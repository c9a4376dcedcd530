"""What the server knows of the versions and devices that windows speak of: read from the database once a batch, cached.

Invariants:
- what a window is set aside for is never a matter of an old cache: a version or an assignment that is not known here is
  asked for again with every batch that names it; only what is there is remembered, and that never changes;
- that a model is not published may be believed NOT_PUBLISHED_S longer than it is true;
- a batch costs at most three queries, and none when all of it is known; each cache is bounded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, select, tuple_

from fleet_protocol.bins import MAX_BINS
from fleet_protocol.messages import Window
from fleet_server.database.tables import assigned_versions, models, versions
from fleet_server.ingest.checks import FILE_VARIANT, Facts, Reference
from fleet_server.telemetry_store.sketches import BIN_PLACES

MAX_VERSIONS = 2_000
MAX_ASSIGNMENTS = 200_000
"""Devices x versions remembered, some 200 bytes each."""
MAX_MODELS = 10_000
NOT_PUBLISHED_S = 5.0

_UNPUBLISHED = Facts()
K = TypeVar("K")
V = TypeVar("V")


class _Bounded(Generic[K, V]):
    """The last `limit` entries used."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)


class FactReader:
    """The facts of one fleet, for one ingest thread."""

    def __init__(self, *, fleet: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._monotonic_s = fleet, monotonic_s
        self._published: _Bounded[str, bool] = _Bounded(MAX_MODELS)
        self._not_published: _Bounded[str, float] = _Bounded(MAX_MODELS)
        self._versions: _Bounded[tuple[str, str], Reference] = _Bounded(MAX_VERSIONS)
        self._assigned: _Bounded[tuple[str, str, str], bool] = _Bounded(MAX_ASSIGNMENTS)

    def facts_of(self, connection: Connection, windows: Sequence[Window]) -> Callable[[Window], Facts]:
        """The facts of a batch's windows. Raises SQLAlchemy's errors when the database is away."""
        published = self._find_published(connection, {window.model for window in windows})
        named = [w for w in windows if w.model in published and w.variant != FILE_VARIANT]
        references = self._find_references(connection, {(window.model, window.version) for window in named})
        assigned = self._find_assigned(connection, {(w.device, w.model, w.version) for w in named})

        def of(window: Window) -> Facts:
            if window.model not in published:
                return _UNPUBLISHED
            return Facts(
                is_published=True,
                reference=references.get((window.model, window.version)),
                was_assigned=(window.device, window.model, window.version) in assigned,
            )

        return of

    def _find_published(self, connection: Connection, names: set[str]) -> set[str]:
        now_s = self._monotonic_s()
        found = {name for name in names if self._published.get(name)}
        unsure = {name for name in names - found if (self._not_published.get(name) or -1.0) <= now_s}
        if unsure:
            query = select(models.c.model).where(models.c.model.in_(unsure))
            there = {str(row.model) for row in connection.execute(query)}
            for name in there:
                self._published.put(name, True)
            for name in unsure - there:
                self._not_published.put(name, now_s + NOT_PUBLISHED_S)
            found |= there
        return found

    def _find_references(self, connection: Connection, keys: set[tuple[str, str]]) -> dict[tuple[str, str], Reference]:
        found = {key: known for key in keys if (known := self._versions.get(key)) is not None}
        unknown = keys - found.keys()
        if unknown:
            query = select(versions.c.model, versions.c.version, versions.c.manifest)
            for row in connection.execute(query.where(tuple_(versions.c.model, versions.c.version).in_(unknown))):
                key = (row.model, row.version)
                found[key] = reference_of(row.manifest)
                self._versions.put(key, found[key])
        return found

    def _find_assigned(self, connection: Connection, keys: set[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        found = {key for key in keys if self._assigned.get(key)}
        unknown = keys - found
        if unknown:
            table = assigned_versions.c
            query = select(table.device, table.model, table.version).where(
                table.fleet == self._fleet,
                table.device.in_({device for device, _, _ in unknown}),
                table.model.in_({model for _, model, _ in unknown}),
            )
            for row in connection.execute(query):
                key = (row.device, row.model, row.version)
                self._assigned.put(key, True)
                if key in unknown:
                    found.add(key)
        return found


def reference_of(manifest: dict[str, Any]) -> Reference:
    """What windows must fit, from a manifest as plain JSON. What it leaves out is not known, and anything fits."""
    score, embedding = manifest.get("score") or {}, manifest.get("random_features") or {}
    known = [len(manifest.get("classes") or ()), len(manifest.get("labels") or ())]
    return Reference(
        variants=frozenset(str(variant["name"]) for variant in manifest.get("variants") or ()),
        features={each["name"]: _places(each["edges"]) for each in manifest.get("features") or ()},
        score_places=_places(score["edges"]) if score else 0,
        classes=max(known),
        embedding_features=len(embedding.get("sums") or ()),
    )


def _places(edges: Iterable[Any]) -> int:
    return len(list(edges)) - 1 + (BIN_PLACES - MAX_BINS)
