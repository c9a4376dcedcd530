"""What the fleet found out about a version's variants, pooled by CPU and ONNX Runtime, and which one to fetch first.

A kind of device is a CPU signature with an ONNX Runtime version. There is one row per device, bundle and variant, the
newest report of each: bounded by fleet and catalogue, because only variants of published bundles are taken. Invariants:
- a variant that a device of a kind found wrong is not preferred for that kind, as long as that device says so;
- nothing is preferred before one device of the kind has tried every candidate;
- a device without memory, or with a damaged file, speaks neither for nor against a variant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.messages import (
    FAULT_DAMAGED,
    FAULT_NO_MEMORY,
    FAULT_NOT_LOADED,
    FAULT_WRONG,
    Assignment,
    Reported,
    VariantFigures,
)
from fleet_server.database.tables import devices, variant_figures, versions

MAX_POOLED_DEVICES = 200
"""A median is over so many devices, those that measured last."""
MAX_POOLS = 100
"""Kinds of devices that are told about one version: those with the most devices."""
_OWN_TROUBLE = (FAULT_NO_MEMORY, FAULT_DAMAGED)
_FAULTS = frozenset({"", FAULT_WRONG, FAULT_NOT_LOADED, *_OWN_TROUBLE})
_UNKNOWN_FAULT = "unknown"
_KIND_NAME = re.compile(r"[A-Za-z0-9_.:+-]{1,64}")  # of a signature and of a version: no device needs more

_Table = variant_figures.c
_RIGHT = _Table.right.is_(True) & (_Table.p50_us > 0)
_WRONG = _Table.right.is_(False) & _Table.fault.not_in(_OWN_TROUBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledFigures:
    """One variant on one kind of device: how many found it right and wrong, the medians of what they measured.

    `p50_us` and `memory_bytes` are None where nobody measured.
    """

    variant: str
    right: int
    wrong: int
    p50_us: float | None
    memory_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPool:
    """The candidates of one bundle on one kind of device, in the manifest's order.

    `is_complete` says that at least one device tried every candidate.
    """

    cpu_signature: str
    onnxruntime_version: str
    is_complete: bool
    variants: tuple[PooledFigures, ...]


def preferred_variant(pool: VariantPool) -> str:
    """The variant with the least median p50 among those that nobody found wrong; "" while that is not known."""
    if not pool.is_complete:
        return ""
    sound = [
        (one.p50_us, one.variant) for one in pool.variants if one.p50_us is not None and one.right and not one.wrong
    ]
    return min(sound, default=(0.0, ""))[1]


def record_figures(connection: Connection, fleet: str, report: Reported, *, now_ns: int) -> None:
    """Keep what a device's accepted report says of variants, where it is news. Part of the caller's transaction.

    Passed over is what names no published bundle or none of its variants, and a report of no nameable kind.
    """
    kind = (report.cpu_signature, report.onnxruntime_version)
    if not all(map(_KIND_NAME.fullmatch, kind)):
        return
    told: dict[tuple[str, str], VariantFigures] = {}
    for model in report.models:
        if model.active is not None:
            for figures in model.variants:
                told.setdefault((model.active, figures.variant), figures)
    if not told:
        return
    bundles = {bundle for bundle, _ in told}
    of_device = (_Table.fleet == fleet) & (_Table.device == report.device) & _Table.bundle.in_(bundles)
    known = {(row.bundle, row.variant): row for row in connection.execute(select(variant_figures).where(of_device))}
    news = {key: _values(kind, figures) for key, figures in told.items()}
    news = {key: values for key, values in news.items() if key not in known or _differs(known[key], values)}
    if not news:
        return
    published = _published_variants(connection, bundles)
    rows = [
        {"fleet": fleet, "device": report.device, "bundle": bundle, "variant": variant, "measured_ns": now_ns, **values}
        for (bundle, variant), values in news.items()
        if variant in published.get(bundle, ())
    ]
    if rows:
        _upsert(connection, rows)


def variant_pools(connection: Connection, *, fleet: str, bundle: str) -> list[VariantPool]:
    """What is known of a published bundle, by kind of device: the kind with the most devices first, up to MAX_POOLS."""
    manifest = _manifest(connection, bundle)
    kind = (_Table.cpu_signature, _Table.onnxruntime_version)
    count = func.count(_Table.device.distinct())
    rows = connection.execute(
        select(*kind)
        .where(_Table.fleet == fleet, _Table.bundle == bundle)
        .group_by(*kind)
        .order_by(count.desc(), *kind)
        .limit(MAX_POOLS)
    ).all()
    return [
        _pool(connection, manifest, fleet=fleet, bundle=bundle, signature=signature, version=version)
        for signature, version in rows
    ]


class VariantHints:
    """Fills in which variant a device should fetch first. Lives as long as one transaction; each kind is asked once."""

    def __init__(self, connection: Connection, *, fleet: str) -> None:
        self._connection, self._fleet = connection, fleet
        self._preferred: dict[tuple[str, str, str], str] = {}

    def applied(self, device: str, assignments: Sequence[Assignment]) -> list[Assignment]:
        """The assignments with the variant that devices of this one's kind found fastest, "" where none is known."""
        reported = devices.c.reported
        row = self._connection.execute(
            select(reported["cpu_signature"].as_string(), reported["onnxruntime_version"].as_string()).where(
                devices.c.fleet == self._fleet, devices.c.device == device
            )
        ).one_or_none()
        signature, version = row if row is not None else (None, None)
        return [
            replace(assignment, variant=self._preference(assignment.bundle, signature or "", version or ""))
            for assignment in assignments
        ]

    def _preference(self, bundle: str, signature: str, version: str) -> str:
        if not (_KIND_NAME.fullmatch(signature) and _KIND_NAME.fullmatch(version)):
            return ""
        key = (bundle, signature, version)
        if key not in self._preferred:
            manifest = _manifest(self._connection, bundle)
            pool = _pool(
                self._connection, manifest, fleet=self._fleet, bundle=bundle, signature=signature, version=version
            )
            self._preferred[key] = preferred_variant(pool)
        return self._preferred[key]


def _pool(
    connection: Connection, manifest: Mapping[str, Any], *, fleet: str, bundle: str, signature: str, version: str
) -> VariantPool:
    of_kind = and_(
        _Table.fleet == fleet,
        _Table.bundle == bundle,
        _Table.cpu_signature == signature,
        _Table.onnxruntime_version == version,
    )
    names = _candidates(manifest, signature)
    return VariantPool(
        cpu_signature=signature,
        onnxruntime_version=version,
        is_complete=bool(names) and _has_tried_all(connection, of_kind, names),
        variants=tuple(_pooled(connection, of_kind, name) for name in names),
    )


def _pooled(connection: Connection, of_kind: ColumnElement[bool], variant: str) -> PooledFigures:
    of_variant = of_kind & (_Table.variant == variant)
    right, wrong = (
        connection.execute(select(func.count()).select_from(variant_figures).where(of_variant, what)).scalar_one()
        for what in (_RIGHT, _WRONG)
    )
    newest = connection.execute(
        select(_Table.p50_us, _Table.memory_bytes)
        .where(of_variant, _RIGHT)
        .order_by(_Table.measured_ns.desc(), _Table.device)
        .limit(MAX_POOLED_DEVICES)
    ).all()
    return PooledFigures(
        variant=variant,
        right=right,
        wrong=wrong,
        p50_us=median(row.p50_us for row in newest) if newest else None,
        memory_bytes=median(row.memory_bytes for row in newest) if newest else None,
    )


def _has_tried_all(connection: Connection, of_kind: ColumnElement[bool], names: Collection[str]) -> bool:
    tried_all = (
        select(_Table.device)
        .where(of_kind, _Table.variant.in_(names), or_(_RIGHT, _WRONG))
        .group_by(_Table.device)
        .having(func.count() == len(names))
        .limit(1)
    )
    return connection.execute(tried_all).first() is not None


def _candidates(manifest: Mapping[str, Any], signature: str) -> list[str]:
    """The variants that a device with this signature looks at: those for its architecture, or for every one."""
    architecture = signature.partition(":")[0].lower()
    found = []
    for variant in manifest.get("variants", []):
        architectures = [name.lower() for name in variant.get("architectures", [])]
        if not architectures or architecture in architectures:
            found.append(variant["name"])
    return found


def _manifest(connection: Connection, bundle: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = connection.scalar(select(versions.c.manifest).where(versions.c.bundle == bundle))
    return found or {}


def _published_variants(connection: Connection, bundles: Collection[str]) -> dict[str, set[str]]:
    rows = connection.execute(select(versions.c.bundle, versions.c.manifest).where(versions.c.bundle.in_(bundles)))
    return {row.bundle: {variant["name"] for variant in row.manifest.get("variants", [])} for row in rows}


def _values(kind: tuple[str, str], figures: VariantFigures) -> dict[str, Any]:
    return {
        "cpu_signature": kind[0],
        "onnxruntime_version": kind[1],
        "right": figures.right,
        "p50_us": figures.p50_us,
        "memory_bytes": figures.memory_bytes,
        "fault": figures.fault if figures.fault in _FAULTS else _UNKNOWN_FAULT,
    }


def _differs(row: Any, values: Mapping[str, Any]) -> bool:
    return any(getattr(row, name) != value for name, value in values.items())


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(variant_figures)
    keys = [column.name for column in variant_figures.primary_key]
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)
