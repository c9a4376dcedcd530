"""Reads windows and references, and reports drift: the thin part around the pure ones."""

from __future__ import annotations

from sqlalchemy import Engine

from fleet_server.drift.report import DriftReport, report_drift
from fleet_server.drift.signals import count_signals, read_manifest, signals_of, windows_by_version
from fleet_server.errors import NotFoundError
from fleet_server.registry import catalogue
from fleet_server.telemetry_store.port import Slice, TelemetryStore

MAX_WINDOWS = 10_000
"""Windows of one answer, the latest; an answer over fewer than there were says so."""


def read_drift(
    engine: Engine, store: TelemetryStore, *, fleet: str, model: str, version: str | None, start_ns: int, end_ns: int
) -> list[DriftReport]:
    """A report per version, the highest first: the one asked for, or every published one that ran in the span.

    Raises NotFoundError for an unknown model or version, InvalidRequestError for a reference that does not add up.
    """
    with engine.connect() as connection:
        if version is None:
            entries = catalogue.list_versions(connection, model)
        else:
            entries = [catalogue.get_version(connection, model, version)]
    where = Slice(fleet=fleet, start_ns=start_ns, end_ns=end_ns, model=model, version=version)
    windows = store.windows(where, limit=MAX_WINDOWS + 1)
    truncated = len(windows) > MAX_WINDOWS
    kept = windows[-MAX_WINDOWS:]
    by_version = windows_by_version(kept)
    reports = []
    for entry in entries:
        seen = by_version.get(entry.version, [])
        if not seen and version is None:
            continue
        signals = signals_of(read_manifest(entry.manifest))
        reports.append(
            report_drift(
                signals,
                count_signals(signals, seen),
                model=model,
                version=entry.version,
                start_ns=kept[0].start_ns if truncated else start_ns,
                end_ns=end_ns,
                windows=len(seen),
                windows_truncated=truncated,
            )
        )
    if not reports:
        raise NotFoundError(f"no published version of {model!r} sent telemetry in this span: take a longer one")
    return reports
