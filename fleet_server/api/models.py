"""`/api/v1/models`: the catalogue, and publishing a signed bundle into it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from fleet_server.api.access import Viewer
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import ModelInPath, VersionInPath
from fleet_server.api.paging import PageOf
from fleet_server.api.services import ServicesOf
from fleet_server.errors import InvalidRequestError
from fleet_server.identity.api_keys import Role
from fleet_server.registry import catalogue
from fleet_server.registry.publishing import publish, verify_bundle
from fleet_server.registry.variants import preferred_variant, variant_pools

_ENVELOPE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bundle's signed envelope",
        "content": {"application/vnd.dsse+json": {"schema": {"type": "object"}}},
    }
}

router = APIRouter(prefix="/api/v1/models", tags=["models"])


@router.get("")
def list_models(services: ServicesOf, _: Viewer, page: PageOf) -> dict[str, Any]:
    """Models by name."""
    with services.engine.connect() as connection:
        found = catalogue.list_models(connection, limit=page.limit + 1, after=page.after)
    return page.answer(found, lambda entry: entry.model)


@router.get("/{model}")
def get_model(services: ServicesOf, _: Viewer, model: ModelInPath) -> dict[str, Any]:
    """A model and its versions, the highest first, without their manifests."""
    with services.engine.connect() as connection:
        found = catalogue.list_versions(connection, model)
    return {"model": model, "versions": [_summary(entry) for entry in found]}


@router.get("/{model}/versions")
def list_versions(services: ServicesOf, _: Viewer, model: ModelInPath) -> dict[str, Any]:
    """A model's versions, the highest first."""
    with services.engine.connect() as connection:
        found = catalogue.list_versions(connection, model)
    return {"items": [_summary(entry) for entry in found], "next_cursor": None}


@router.get("/{model}/versions/{version}")
def get_version(services: ServicesOf, _: Viewer, model: ModelInPath, version: VersionInPath) -> dict[str, Any]:
    """A version with its manifest."""
    with services.engine.connect() as connection:
        entry: dict[str, Any] = msgspec.to_builtins(catalogue.get_version(connection, model, version))
    return entry


@router.get("/{model}/versions/{version}/variants")
def list_variants(services: ServicesOf, _: Viewer, model: ModelInPath, version: VersionInPath) -> dict[str, Any]:
    """What the fleet measured of a version's variants, by CPU signature and ONNX Runtime version.

    `preferred` is fetched first by devices of the kind; "" where it is not known yet.
    """
    with services.engine.connect() as connection:
        entry = catalogue.get_version(connection, model, version)
        pools = variant_pools(connection, fleet=services.fleet, bundle=entry.bundle)
    items = [{**msgspec.to_builtins(pool), "preferred": preferred_variant(pool)} for pool in pools]
    return {"items": items, "next_cursor": None}


async def _whole_body(request: Request) -> bytes:
    return await request.body()  # as it was signed: a parser would not give the same bytes back


@router.post("/{model}/versions", status_code=201, openapi_extra=_ENVELOPE_BODY)
def publish_version(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    model: ModelInPath,
    envelope: Annotated[bytes, Depends(_whole_body)],
) -> Response:
    """Publish a bundle whose files were uploaded before: 201, or 200 when this bundle was there already."""

    def perform() -> Outcome:
        keys, threshold = services.release_rule()
        bundle = verify_bundle(services.artifacts, envelope, release_keys=keys, threshold=threshold)
        if bundle.manifest.model != model:
            raise InvalidRequestError(f"the bundle is of the model {bundle.manifest.model!r}, not {model!r}")
        with services.engine.begin() as connection:
            result = publish(
                connection,
                services.artifacts,
                bundle,
                published_by=change.operator.actor,
                now_ns=services.now_ns(),
            )
            if result.created:
                subject = f"{result.model} {result.version}"
                change.audit(connection, "version.publish", subject, {"bundle": result.bundle})
        return 201 if result.created else 200, msgspec.to_builtins(result)

    return change.run(perform)


def _summary(entry: catalogue.VersionEntry) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "version": entry.version,
        "bundle": entry.bundle,
        "published_by": entry.published_by,
        "published_ns": entry.published_ns,
        "task": manifest.get("task"),
        "description": manifest.get("description", ""),
        "variants": [
            {"name": v["name"], "size_bytes": v["file"]["size_bytes"], "expected": v.get("expected", {})}
            for v in manifest.get("variants", [])
        ],
    }
