"""`/api/v1/trust/roots`: the chain of trust roots, and pushing the next one.

Reading needs no credential: a root is worth what its signatures are, and a device whose own credential ran out still
has to learn whom to believe.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from fleet_protocol.root import MAX_ROOT_BYTES, ROLES, Root
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.problems import TooLargeError
from fleet_server.api.services import Services, ServicesOf
from fleet_server.errors import ConflictError, NotFoundError
from fleet_server.identity.api_keys import Role
from fleet_server.registry import catalogue
from fleet_server.registry.publishing import require_released
from fleet_server.registry.roots import TrustRoots

VersionOfRoot = Annotated[int, Path(ge=1, le=2**53 - 1, description="a trust root's version")]
_ENVELOPE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The root's signed envelope",
        "content": {"application/vnd.dsse+json": {"schema": {"type": "object"}}},
    }
}

router = APIRouter(prefix="/api/v1/trust/roots", tags=["trust"])


@router.get("")
def list_roots(services: ServicesOf) -> dict[str, Any]:
    """Every root of the chain, the newest first; none where the server's config lists plain keys."""
    roots = services.roots.versions() if services.roots is not None else []
    return {"items": [_summary(root) for root in reversed(roots)], "next_cursor": None}


@router.get("/{version}")
def get_root(services: ServicesOf, version: VersionOfRoot) -> Response:
    """A signed root as its holders made it."""
    envelope = services.roots.envelope(version) if services.roots is not None else None
    if envelope is None:
        raise NotFoundError(f"there is no trust root {version}")
    return Response(envelope, media_type="application/vnd.dsse+json")


async def _bounded_body(request: Request) -> bytes:
    body = await request.body()  # as it was signed
    if len(body) > MAX_ROOT_BYTES:
        raise TooLargeError(MAX_ROOT_BYTES)
    return body


@router.post("", status_code=201, openapi_extra=_ENVELOPE_BODY)
def push_root(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.ADMIN))],
    envelope: Annotated[bytes, Depends(_bounded_body)],
) -> Response:
    """Make the next root known to the fleet: 201, or 200 when it was there already."""

    def perform() -> Outcome:
        roots = _roots(services)
        with services.engine.begin() as connection:
            root, new = roots.push(connection, envelope, pushed_by=change.operator.actor, now_ns=services.now_ns())
            if new:
                change.audit(connection, "trust.root", str(root.version), _summary(root))
        return 201 if new else 200, _summary(root)

    return change.run(perform)


def require_released_version(services: Services, model: str, version: str) -> None:
    """Raise UntrustedBundleError for a published version that the release keys of today did not sign."""
    with services.engine.connect() as connection:
        bundle = catalogue.get_version(connection, model, version).bundle
    keys, threshold = services.release_rule()
    require_released(services.artifacts, bundle, release_keys=keys, threshold=threshold)


def _roots(services: Services) -> TrustRoots:
    if services.roots is None:
        raise ConflictError("this server lists plain keys: set [trust] root in its config to work with trust roots")
    return services.roots


def _summary(root: Root) -> dict[str, Any]:
    roles = {name: getattr(root, name) for name in ROLES}
    return {
        "version": root.version,
        "issued_at_ns": root.issued_at_ns,
        "expires_ns": root.expires_ns,
        "roles": {name: {"key_ids": role.key_ids, "threshold": role.threshold} for name, role in roles.items()},
    }
