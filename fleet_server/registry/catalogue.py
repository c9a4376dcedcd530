"""What models and versions there are. Read only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from fleet_server.database.tables import models, versions
from fleet_server.errors import NotFoundError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model, its latest version by Semantic Versioning's precedence, and how many there are."""

    model: str
    created_ns: int
    versions: int
    latest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """A published version. `manifest` is plain JSON."""

    model: str
    version: str
    bundle: str
    published_by: str
    published_ns: int
    manifest: dict[str, Any]


def list_models(connection: Connection, *, limit: int, after: str = "") -> list[ModelEntry]:
    """Models by name, those behind `after`."""
    page = select(models).where(models.c.model > after).order_by(models.c.model).limit(limit)
    rows = connection.execute(page).all()
    found: dict[str, list[str]] = {row.model: [] for row in rows}
    for row in connection.execute(select(versions.c.model, versions.c.version).where(versions.c.model.in_(found))):
        found[row.model].append(row.version)
    return [
        ModelEntry(
            model=row.model,
            created_ns=row.created_ns,
            versions=len(found[row.model]),
            latest=max(found[row.model], key=version_precedence, default=""),
        )
        for row in rows
    ]


def list_versions(connection: Connection, model: str) -> list[VersionEntry]:
    """Every version of a model, the highest first. Raises NotFoundError for an unknown model."""
    rows = connection.execute(select(versions).where(versions.c.model == model)).all()
    if not rows:
        raise NotFoundError(f"there is no model {model!r}")
    return sorted(map(_entry, rows), key=lambda entry: version_precedence(entry.version), reverse=True)


def get_version(connection: Connection, model: str, version: str) -> VersionEntry:
    """One version. Raises NotFoundError."""
    key = (versions.c.model == model) & (versions.c.version == version)
    row = connection.execute(select(versions).where(key)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no version {version!r} of the model {model!r}")
    return _entry(row)


def count_models(connection: Connection) -> int:
    """How many models are published."""
    return connection.execute(select(func.count()).select_from(models)).scalar_one()


def version_precedence(version: str) -> tuple[Any, ...]:
    """A sort key by semver.org, clause 11: numbers before words, and a release above its pre-releases.

    >>> sorted(["1.0.0", "1.0.0-rc.1", "1.0.0-rc.11", "1.0.0-rc.2", "0.9.9"], key=version_precedence)
    ['0.9.9', '1.0.0-rc.1', '1.0.0-rc.2', '1.0.0-rc.11', '1.0.0']
    """
    core, _, pre = version.partition("-")
    numbers = tuple(int(part) for part in core.split("."))
    parts = tuple((0, int(p), "") if re.fullmatch(r"[0-9]+", p) else (1, 0, p) for p in pre.split(".")) if pre else ()
    return (numbers, not pre, parts)


def _entry(row: Row[Any]) -> VersionEntry:
    return VersionEntry(
        model=row.model,
        version=row.version,
        bundle=row.bundle,
        published_by=row.published_by,
        published_ns=row.published_ns,
        manifest=row.manifest,
    )
