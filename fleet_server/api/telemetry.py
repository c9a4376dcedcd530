"""What the telemetry store knows: a model's series, a device's windows or series; as JSON, CSV or Parquet.

Percentiles are those of merged histograms, never averages. Where nothing was counted the answer is null.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, select

from fleet_server.api.access import Viewer
from fleet_server.api.devices import parse_filters
from fleet_server.api.names import DeviceInPath, ModelInPath
from fleet_server.api.services import Services, ServicesOf
from fleet_server.api.telemetry_columns import series_columns, window_columns, window_view
from fleet_server.api.telemetry_export import Format, file_answer, format_for
from fleet_server.api.telemetry_query import KEYS, MAX_NS, MAX_STEP_S, parse_question, parse_span
from fleet_server.api.telemetry_series import Series, read_series
from fleet_server.database.tables import devices
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store.port import Slice

MAX_WINDOWS = 1_000
MAX_EXPORTED_WINDOWS = 20_000
MAX_SELECTED_DEVICES = 50_000
_NS = 10**9
_OF_A_MODEL = ("version", "variant", "arm", "cohort", "device", "label")
_OF_A_DEVICE = tuple(key for key in KEYS if key not in ("device", "cohort"))

TimeInQuery = Annotated[int | None, Query(ge=0, le=MAX_NS, description="UTC nanoseconds")]
MomentInQuery = Annotated[
    str | None, Query(max_length=64, description="UTC nanoseconds, or RFC 3339: 2026-03-01T09:40:00Z")
]
StepInQuery = Annotated[str | None, Query(max_length=40, description="such as 30s, 5m, 1h, 1d; 1m by default")]
SecondsInQuery = Annotated[int | None, Query(ge=1, le=MAX_STEP_S, description="the step in seconds")]
GroupByInQuery = Annotated[
    list[str] | None,
    Query(max_length=16, description="keys, with commas or repeated: version, device, label:site, ..."),
]
FormatInQuery = Annotated[Format | None, Query(description="json by default, or what Accept asks for")]
VersionInQuery = Annotated[str | None, Query(max_length=80)]
NameInQuery = Annotated[str | None, Query(max_length=64)]

router = APIRouter(prefix="/api/v1", tags=["telemetry"])


@router.get("/models/{model}/metrics", response_model=None)
def model_metrics(
    *,
    request: Request,
    services: ServicesOf,
    _: Viewer,
    model: ModelInPath,
    start: MomentInQuery = None,
    end: MomentInQuery = None,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
    step: StepInQuery = None,
    step_s: SecondsInQuery = None,
    group_by: GroupByInQuery = None,
    version: VersionInQuery = None,
    variant: NameInQuery = None,
    arm: NameInQuery = None,
    cohort: Annotated[str | None, Query(max_length=128)] = None,
    selector: Annotated[list[str] | None, Query(description="KEY=VALUE, may be repeated: all must hold")] = None,
    interval: Annotated[bool, Query(description="also the interval of the accuracy: reads device by device")] = False,
    format: FormatInQuery = None,  # noqa: A002 - the parameter's name in the URL
) -> dict[str, Any] | Response:
    """A model's series over the fleet, in steps; by default the last hour, in minutes.

    A span and a step of whole minutes, or hours, are read from merged series; others from single windows.
    """
    span_ns = parse_span(services.now_ns(), start=start, end=end, start_ns=start_ns, end_ns=end_ns)
    question = parse_question(span_ns, step=step, step_s=step_s, group_by=group_by or (), allowed=_OF_A_MODEL)
    where = Slice(
        fleet=services.fleet,
        start_ns=question.start_ns,
        end_ns=question.end_ns,
        model=model,
        version=version,
        variant=variant,
        arm=arm,
        cohort=cohort,
        devices=_selected(services, selector) if selector else None,
    )
    found = read_series(services.engine, services.store, where, question, of_devices=interval)
    about = {"model": model, "version": version, "variant": variant, "arm": arm, "cohort": cohort, "selector": selector}
    return _answer(format_for(request, format), f"{model}-metrics", about, found)


@router.get("/devices/{device}/telemetry", response_model=None)
def device_telemetry(
    *,
    request: Request,
    services: ServicesOf,
    _: Viewer,
    device: DeviceInPath,
    start: MomentInQuery = None,
    end: MomentInQuery = None,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
    step: StepInQuery = None,
    step_s: SecondsInQuery = None,
    group_by: GroupByInQuery = None,
    model: NameInQuery = None,
    version: VersionInQuery = None,
    arm: NameInQuery = None,
    limit: Annotated[int, Query(ge=1, le=MAX_EXPORTED_WINDOWS)] = 100,
    features: Annotated[bool, Query(description="also the counts of feature and score sketches (JSON)")] = False,
    format: FormatInQuery = None,  # noqa: A002 - the parameter's name in the URL
) -> dict[str, Any] | Response:
    """A device's latest windows, oldest first; with a step its series. By default of the last hour."""
    span_ns = parse_span(services.now_ns(), start=start, end=end, start_ns=start_ns, end_ns=end_ns)
    kind = format_for(request, format)
    where = Slice(
        fleet=services.fleet,
        start_ns=span_ns[0],
        end_ns=span_ns[1],
        model=model,
        version=version,
        arm=arm,
        devices=frozenset({device}),
    )
    if step is not None or step_s is not None or group_by:
        keys = group_by or ["model,version,variant,arm"]
        question = parse_question(span_ns, step=step, step_s=step_s, group_by=keys, allowed=_OF_A_DEVICE)
        found = read_series(services.engine, services.store, where, question, of_devices=True)
        return _answer(kind, f"{device}-series", {"device": device}, found)
    if kind is Format.JSON and limit > MAX_WINDOWS:
        raise InvalidRequestError(f"limit is {limit}: JSON holds at most {MAX_WINDOWS} windows, CSV and Parquet more")
    windows = services.store.windows(where, limit=limit)
    if kind is Format.JSON:
        views = [window_view(window, with_features=features) for window in windows]
        return {"device": device, "start_ns": span_ns[0], "end_ns": span_ns[1], "windows": views}
    rows = [{"device": device, **window_view(window, with_features=False)} for window in windows]
    return file_answer(kind, f"{device}-windows", window_columns(), rows)


def span(now_ns: int, start_ns: int | None, end_ns: int | None) -> tuple[int, int]:
    """The span asked for in nanoseconds, by default the last hour. Raises InvalidRequestError when it is empty."""
    return parse_span(now_ns, start=None, end=None, start_ns=start_ns, end_ns=end_ns)


def _answer(kind: Format, name: str, about: dict[str, Any], found: Series) -> dict[str, Any] | Response:
    if kind is not Format.JSON:
        return file_answer(kind, name, series_columns(found.question.group_by), found.rows)
    question = found.question
    return {
        **about,
        "group_by": list(question.group_by),
        "start_ns": question.start_ns,
        "end_ns": question.end_ns,
        "step_s": question.step_ns // _NS,
        "read_from": found.read_from,
        "points": found.rows,
    }


def _selected(services: Services, selector: list[str]) -> frozenset[str]:
    """The devices whose labels all hold."""
    with services.engine.connect() as connection:
        return _devices_with(connection, services.fleet, parse_filters(selector))


def _devices_with(connection: Connection, fleet: str, labels: list[tuple[str, str]]) -> frozenset[str]:
    query = select(devices.c.device).where(devices.c.fleet == fleet)
    for key, value in labels:
        query = query.where(devices.c.labels[key].as_string() == value)
    found = connection.execute(query.limit(MAX_SELECTED_DEVICES + 1)).scalars().all()
    if len(found) > MAX_SELECTED_DEVICES:
        raise InvalidRequestError(f"the selector fits more than {MAX_SELECTED_DEVICES} devices: narrow it")
    return frozenset(found)
