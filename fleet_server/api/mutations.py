"""The one way a request changes anything: with a role, an Idempotency-Key honoured, and an audit entry.

A route takes `Annotated[Mutation, Depends(mutation(ROLE))]` and answers `mutation.run(perform)`. `perform` returns
(status, body) and calls `audit` in the transaction of its change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request, Response
from sqlalchemy import Connection

from fleet_server.api.access import current_operator, require
from fleet_server.api.idempotency import MAX_KEY_CHARS, Answer, Claim, claim, finish, give_back
from fleet_server.api.services import Services, ServicesOf
from fleet_server.errors import ConflictError, InvalidRequestError
from fleet_server.identity import audit
from fleet_server.identity.api_keys import Operator, Role

Outcome = tuple[int, Mapping[str, Any]]

_SHOWN_ONCE = 299
"""Stands in the table for a done request whose answer held a secret, which is not kept."""


class Mutation:
    """One request that changes something, by an operator whose role was checked."""

    def __init__(self, *, operator: Operator, services: Services, key: str | None, request_sha256: str) -> None:
        self.operator = operator
        self._services = services
        self._key = key
        self._request_sha256 = request_sha256

    def run(self, perform: Callable[[], Outcome], *, answers_secret: bool = False) -> Response:
        """Carry it out once per Idempotency-Key. An answer that holds a secret is not kept and cannot be had again."""
        engine = self._services.engine
        if self._key is None:
            return _response(self._carry_out(perform))
        held = Claim(
            actor=self.operator.actor,
            key=self._key,
            request_sha256=self._request_sha256,
            claimed_ns=self._services.now_ns(),
        )
        earlier = claim(engine, held)
        if earlier is not None:
            if earlier.status == _SHOWN_ONCE:
                raise ConflictError(
                    "this request was carried out, and its secret is shown only once: "
                    "send it with a new Idempotency-Key for a new secret"
                )
            return _response(earlier)
        try:
            answer = self._carry_out(perform)
        except BaseException:
            give_back(engine, held)
            raise
        finish(engine, held, Answer(status=_SHOWN_ONCE, body=b"") if answers_secret else answer)
        return _response(answer)

    def audit(self, connection: Connection, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Add to the audit log, in the transaction of the change; says who, where the actor alone does not."""
        who = self.operator
        if who.person != who.actor:
            detail = {**(detail or {}), "by": {"person": who.person, "name": who.name}}
        audit.append(
            connection,
            actor=self.operator.actor,
            action=action,
            subject=subject,
            detail=detail,
            at_ns=self._services.now_ns(),
        )

    @staticmethod
    def _carry_out(perform: Callable[[], Outcome]) -> Answer:
        status, body = perform()
        return Answer(status=status, body=msgspec.json.encode(body))


class OpenMutation:
    """The dependency that gives a route its Mutation."""

    def __init__(self, *, role: Role, body_in_path: bool) -> None:
        self._allow = require(role)
        self._body_in_path = body_in_path

    async def __call__(
        self, request: Request, services: ServicesOf, operator: Annotated[Operator, Depends(current_operator)]
    ) -> Mutation:
        self._allow(operator)
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
            raise InvalidRequestError(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} printable ASCII characters")
        body = b"" if self._body_in_path else await request.body()
        parts = (request.method.encode(), request.url.path.encode(), request.url.query.encode(), body)
        digest = hashlib.sha256(msgspec.json.encode([hashlib.sha256(part).hexdigest() for part in parts]))
        return Mutation(operator=operator, services=services, key=key, request_sha256=digest.hexdigest())


def mutation(role: Role, *, body_in_path: bool = False) -> OpenMutation:
    """A dependency that gives the request's Mutation to operators of at least `role`.

    `body_in_path`: the path names the body by its digest, so the body is not read for comparison.
    """
    return OpenMutation(role=role, body_in_path=body_in_path)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type="application/json")
