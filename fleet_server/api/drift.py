"""`/api/v1/drift`: one population against another with plain words, and the findings that the monitor keeps open."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Response

from fleet_server.api.access import Viewer
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import IdInPath
from fleet_server.api.services import ServicesOf
from fleet_server.api.telemetry import TimeInQuery, span
from fleet_server.drift import read_drift
from fleet_server.drift.open_findings import acknowledge, list_findings
from fleet_server.drift.populations import AGAINST, Question, Side
from fleet_server.identity.api_keys import Role

router = APIRouter(prefix="/api/v1", tags=["drift"])

ModelInQuery = Annotated[str, Query(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="a model's name")]
VersionInQuery = Annotated[str, Query(max_length=80, description="a version; of the seen side, as `version`")]
VariantInQuery = Annotated[str, Query(max_length=64, description="a variant; every one by default")]
ArmInQuery = Annotated[str, Query(max_length=64, description="an arm; every one by default")]
DeviceInQuery = Annotated[str, Query(max_length=64, description="one device")]
SelectorInQuery = Annotated[str, Query(max_length=256, description="devices with labels, KEY=VALUE[,KEY=VALUE]")]


def seen_side(
    seen_variant: VariantInQuery = "",
    seen_arm: ArmInQuery = "",
    seen_selector: SelectorInQuery = "",
    seen_device: DeviceInQuery = "",
) -> Side:
    """The side that is looked at."""
    return Side(variant=seen_variant, arm=seen_arm, selector=seen_selector, device=seen_device)


def expected_side(
    *,
    expected_version: VersionInQuery = "",
    expected_variant: VariantInQuery = "",
    expected_arm: ArmInQuery = "",
    expected_selector: SelectorInQuery = "",
    expected_device: DeviceInQuery = "",
    expected_start_ns: TimeInQuery = None,
    expected_end_ns: TimeInQuery = None,
) -> Side:
    """The side that it is held against; what is left out is as on the seen side."""
    return Side(
        version=expected_version,
        variant=expected_variant,
        arm=expected_arm,
        selector=expected_selector,
        device=expected_device,
        start_ns=expected_start_ns,
        end_ns=expected_end_ns,
    )


@router.get("/drift")
def drift(
    *,
    services: ServicesOf,
    _: Viewer,
    model: ModelInQuery,
    version: Annotated[str | None, Query(max_length=80, description="a version; every one that ran by default")] = None,
    start_ns: TimeInQuery = None,
    end_ns: TimeInQuery = None,
    seen_start_ns: TimeInQuery = None,
    seen_end_ns: TimeInQuery = None,
    seen_version: VersionInQuery = "",
    seen: Annotated[Side, Depends(seen_side)],
    against: Annotated[str, Query(max_length=128, description=f"one of: {', '.join(AGAINST)}")] = "",
    expected: Annotated[Side, Depends(expected_side)],
    detail: Annotated[bool, Query(description="distributions and timelines too")] = False,
) -> dict[str, Any]:
    """A report per model version against its reference, or against `against`; by default over the last hour."""
    start, end = span(
        services.now_ns(),
        seen_start_ns if start_ns is None else start_ns,
        seen_end_ns if end_ns is None else end_ns,
    )
    reports = read_drift(
        services.engine,
        services.store,
        fleet=services.fleet,
        model=model,
        version=version or seen_version or None,
        start_ns=start,
        end_ns=end,
        question=Question(seen=seen, against=against, expected=expected, detail=detail),
    )
    return {"model": model, "start_ns": start, "end_ns": end, "reports": msgspec.to_builtins(reports)}


@router.get("/drift/findings")
def findings(
    *,
    services: ServicesOf,
    _: Viewer,
    model: Annotated[str, Query(max_length=64, description="a model's name; every one by default")] = "",
    closed: Annotated[bool, Query(description="those that ended too, the latest first")] = False,
) -> dict[str, Any]:
    """What the monitor found and still sees: since when, how much, and who has taken note of it."""
    found = list_findings(services.engine, fleet=services.fleet, model=model, closed=closed)
    return {"findings": msgspec.to_builtins(found)}


@router.post("/drift/findings/{finding_id}/acknowledge")
def acknowledge_finding(
    services: ServicesOf, change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))], finding_id: IdInPath
) -> Response:
    """Say that somebody has taken note of a finding; it stays open for as long as it is seen."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            found = acknowledge(
                connection,
                finding_id,
                fleet=services.fleet,
                actor=change.operator.actor,
                now_ns=services.now_ns(),
            )
            change.audit(connection, "drift.acknowledge", finding_id, {"model": found.model, "signal": found.signal})
        view: dict[str, Any] = msgspec.to_builtins(found)
        return 200, view

    return change.run(perform)
