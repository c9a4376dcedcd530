"""`/api/v1/artifacts/{sha256}`: upload and resumable download of content-addressed files, and deltas between them.

A file's ETag is its digest, so a download resumed months later, from another server, still fits. That holds for deltas
too: a device asks which delta there is, and fetches it by its digest as it fetches any file.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from fleet_server.api.access import operator_or_device
from fleet_server.api.byte_range import ByteRange, UnsatisfiableRangeError, matches_etag, wanted_range
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import DigestInPath
from fleet_server.api.problems import problem
from fleet_server.api.services import ServicesOf
from fleet_server.errors import InvalidRequestError, NotFoundError
from fleet_server.identity.api_keys import Role
from fleet_server.registry.artifact_store import ArtifactStore
from fleet_server.registry.deltas import RETRY_AFTER_S, DeltaStore, Pending
from fleet_server.registry.publishing import record_artifact

CHUNK_BYTES = 256 * 1024
_OFFER_MAX_AGE_S = 60

router = APIRouter(prefix="/api/v1/artifacts", tags=["artifacts"])


@router.put("/{sha256}")
async def upload(
    request: Request,
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR, body_in_path=True))],
    sha256: DigestInPath,
) -> Response:
    """Store a file whose bytes have this digest. Uploading it again is the same as uploading it once."""
    with await run_in_threadpool(services.artifacts.receive, sha256) as writer:
        waiting = bytearray()
        try:
            async for chunk in request.stream():
                waiting += chunk
                if len(waiting) >= CHUNK_BYTES:
                    await run_in_threadpool(writer.write, bytes(waiting))
                    waiting.clear()
        except ClientDisconnect:
            raise InvalidRequestError("the upload was cut off: nothing was stored") from None
        await run_in_threadpool(writer.write, bytes(waiting))

        def perform() -> Outcome:
            new = services.artifacts.size_bytes(sha256) is None
            size_bytes = writer.commit()
            with services.engine.begin() as connection:
                record_artifact(connection, sha256=sha256, size_bytes=size_bytes, now_ns=services.now_ns())
                if new:
                    change.audit(connection, "artifact.upload", sha256, {"size_bytes": size_bytes})
            return 200, {"sha256": sha256, "size_bytes": size_bytes}

        return await run_in_threadpool(change.run, perform)


@router.head("/{sha256}", response_class=Response, include_in_schema=False)
@router.get("/{sha256}", response_class=StreamingResponse)
def download(
    request: Request,
    services: ServicesOf,
    _: Annotated[str, Depends(operator_or_device)],
    sha256: DigestInPath,
) -> Response:
    """A file, or the range of it that is asked for; for operators, and for devices with their own secret."""
    store: ArtifactStore | DeltaStore = services.artifacts
    size_bytes = store.size_bytes(sha256)
    if size_bytes is None and services.deltas is not None:
        store = services.deltas
        size_bytes = store.size_bytes(sha256)
    if size_bytes is None:
        raise NotFoundError(f"there is no artifact {sha256}")
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    if matches_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.method == "GET" else None  # RFC 9110, 14.2: only GET has ranges
    try:
        part = wanted_range(asked, request.headers.get("if-range"), etag=etag, size_bytes=size_bytes)
    except UnsatisfiableRangeError:
        return problem(
            416,
            "range-not-satisfiable",
            "The file has no such bytes",
            f"the file has {size_bytes} bytes",
            instance=request.url.path,
            headers={"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"},
        )
    sent = part or ByteRange(first=0, last=size_bytes - 1)
    headers["Content-Length"] = str(sent.size_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.first}-{part.last}/{size_bytes}"
    status = 206 if part is not None else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    file = store.open(sha256)
    return StreamingResponse(_read(file, sent), status, headers, media_type="application/octet-stream")


@router.get("/{sha256}/deltas/{base}", response_model=None)
def delta(
    services: ServicesOf,
    _: Annotated[str, Depends(operator_or_device)],
    sha256: DigestInPath,
    base: DigestInPath,
) -> Response:
    """The delta that makes the file of `base`: its digest and size, to be fetched as an artifact.

    202 with Retry-After while it is being computed, 404 when the whole file is as good or either is not here.
    """
    offer = services.deltas.offer(sha256, base) if services.deltas is not None else None
    if offer is None:
        raise NotFoundError(f"there is no delta from {base} to {sha256}: fetch the whole file")
    if isinstance(offer, Pending):
        return Response(status_code=202, headers={"Retry-After": str(RETRY_AFTER_S), "Cache-Control": "no-store"})
    headers = {"Cache-Control": f"private, max-age={_OFFER_MAX_AGE_S}"}
    return Response(msgspec.json.encode(offer), headers=headers, media_type="application/json")


def _read(file: BufferedReader, part: ByteRange) -> Iterator[bytes]:
    with file:
        file.seek(part.first)
        left_bytes = part.size_bytes
        while left_bytes > 0 and (chunk := file.read(min(CHUNK_BYTES, left_bytes))):
            left_bytes -= len(chunk)
            yield chunk
