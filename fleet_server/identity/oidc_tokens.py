"""Judges a token of the identity provider: whose it is, whether it is meant for this server, which role it gives.

A pure function of the token, the provider's keys, the rules and the time. Checks, in this order:
1. the form: a JWS in three parts, at most MAX_TOKEN_CHARS long, of a type that stands for a person's sign-in;
2. the algorithm is one of ALGORITHMS and fits the type of the key that `kid` names: a token cannot choose `none`, nor
   have a public key taken for a shared secret (RFC 8725, sections 2.1 and 3.1); keys in its header are never used;
3. the signature;
4. `iss`, `aud`, `exp`, `nbf`, `iat` (RFC 7519, section 4.1; RFC 8725, sections 3.8 and 3.9) and `azp`
   (OpenID Connect Core 1.0, section 3.1.3.7);
5. the role: a signature that holds without a role is ForbiddenError, everything before is UnauthorizedError.

What was wrong goes to the log and not into the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from fleet_server.errors import ForbiddenError, UnauthorizedError
from fleet_server.identity.operators import MAX_EMAIL_CHARS, MAX_NAME_CHARS, MAX_SUBJECT_CHARS, Role, SignIn

ALGORITHMS = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""The signature algorithms taken, each with the type of key it needs (RFC 7518, section 6.1; RFC 8037)."""
MAX_TOKEN_CHARS = 8_192
MAX_ROLE_VALUES = 1_000
MAX_CLAIM_DEPTH = 8
_TYPES = ("jwt", "at+jwt", "application/at+jwt")
"""An absent `typ` counts as a JWT. A logout token says `logout+jwt`: it is no sign-in."""

_LOG = logging.getLogger(__name__)


_REFUSED = "the token is not valid here, or no longer: sign in again with `fleet login`"


class UnknownKeyError(UnauthorizedError):
    """No key of the provider has the token's `kid`: it may be new."""

    def __init__(self) -> None:
        super().__init__(_REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say. `roles` maps the values of the claim `roles_claim` (a dotted path) to roles."""

    issuer: str
    client_id: str
    audiences: tuple[str, ...]
    roles_claim: str
    roles: Mapping[str, Role]
    leeway_s: float


def judge_token(token: str, keys: Mapping[str, jwt.PyJWK], rules: TokenRules) -> SignIn:
    """Who signed in. Raises UnauthorizedError, ForbiddenError (nobody without a role), or UnknownKeyError.

    `keys` are the provider's, by `kid`; times are compared with the system's clock.
    """
    kid = key_id_of(token)
    key = keys.get(kid) if kid else (next(iter(keys.values())) if len(keys) == 1 else None)
    if key is None:
        raise UnknownKeyError
    algorithm = str(jwt.get_unverified_header(token)["alg"])
    if ALGORITHMS[algorithm] != key.key_type:
        raise _refused(f"{algorithm} does not fit a key of type {key.key_type}")
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=rules.audiences,
            issuer=rules.issuer,
            leeway=rules.leeway_s,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise _refused(f"{type(error).__name__}: {error}") from None
    _check_authorized_party(claims, rules)
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise _refused("sub is no subject")
    name = _name(claims) or subject[:MAX_NAME_CHARS]
    role = role_of(claims, rules)
    if role is None:
        raise ForbiddenError(
            f"{name} is signed in and has no role here: an admin gives one at the identity provider, "
            f"by a value of the claim {rules.roles_claim!r} that [oidc.roles] maps"
        )
    return SignIn(
        issuer=rules.issuer,
        subject=subject,
        name=name,
        role=role,
        email=_vouched_email(claims),
        expires_ns=int(float(claims["exp"]) * 10**9),
    )


def key_id_of(token: str) -> str:
    """The `kid` a token names, "" for none. Raises UnauthorizedError for what is no token of an allowed algorithm."""
    if len(token) > MAX_TOKEN_CHARS or token.count(".") != 2:
        raise _refused("not a JWS")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _refused(f"header: {type(error).__name__}") from None
    kid, algorithm, kind = header.get("kid", ""), header.get("alg"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused("its algorithm is not one of " + ", ".join(ALGORITHMS))
    if not isinstance(kid, str) or not isinstance(kind, str) or kind.lower() not in _TYPES or "crit" in header:
        raise _refused("its header has a type, kid or critical extension that is not known")
    return kid


def role_of(claims: Mapping[str, Any], rules: TokenRules) -> Role | None:
    """The highest role that the claim's values give; None for none."""
    values = _at(claims, rules.roles_claim)
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, list):
        return None
    found = [rules.roles[v] for v in values[:MAX_ROLE_VALUES] if isinstance(v, str) and v in rules.roles]
    return max(found, default=None)


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; a claim whose whole name is the path comes first (https://example.com/roles)."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split(".")[:MAX_CLAIM_DEPTH]:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_authorized_party(claims: Mapping[str, Any], rules: TokenRules) -> None:
    party, audience = claims.get("azp"), claims["aud"]
    if party is None and isinstance(audience, list) and len(audience) > 1:
        raise _refused("several audiences and no azp")
    if party is not None and party != rules.client_id:
        raise _refused("azp is another client")


def _name(claims: Mapping[str, Any]) -> str:
    for claim in ("name", "preferred_username", "email"):
        value = claims.get(claim)
        if isinstance(value, str) and value.strip():
            return "".join(char for char in value if char.isprintable())[:MAX_NAME_CHARS].strip()
    return ""


def _vouched_email(claims: Mapping[str, Any]) -> str | None:
    email = claims.get("email")
    vouched = claims.get("email_verified") is True and isinstance(email, str)
    return email if vouched and len(str(email)) <= MAX_EMAIL_CHARS else None


def _refused(reason: str) -> UnauthorizedError:
    _LOG.info("a token was refused: %s", reason[:200])
    return UnauthorizedError(_REFUSED)
