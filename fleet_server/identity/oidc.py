"""The identity provider: its discovery document, its keys, and who a token signs in.

Invariants of the keys:
1. they come from the `jwks_uri` of the document whose `issuer` is exactly the configured one, over TLS or loopback;
2. an unknown `kid` asks the provider once, and not again within ASK_PAUSE_S, however many tokens name one;
3. keys older than FRESH_FOR_S are renewed in the background; while the provider is away they go on, for KEPT_FOR_S;
4. a token whose key cannot be had is UnavailableError while the provider is away, and UnauthorizedError otherwise;
5. what the provider sends is bounded in bytes, keys and time, and redirects are not followed.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec

from fleet_server.errors import ConfigError, UnavailableError
from fleet_server.identity.oidc_tokens import ALGORITHMS, TokenRules, UnknownKeyError, judge_token, key_id_of
from fleet_server.identity.operators import SignIn

DISCOVERY_PATH = "/.well-known/openid-configuration"
ASK_PAUSE_S = 10.0
FRESH_FOR_S = 3_600.0
KEPT_FOR_S = 24 * 3_600.0
FETCH_TIMEOUT_S = 5.0
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 64
MAX_WAITING = 8
"""Requests that may wait for the provider at once; a further one is told to try again."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginOptions:
    """What `fleet login` needs to know; nothing of it is secret. `token` is "id" or "access"."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...]
    token: str


class ProviderKeys:
    """The provider's public keys, by `kid`. Safe to use from several threads."""

    def __init__(
        self, *, issuer: str, ca_file: Path | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._now_s = now_s
        verify = trust_of(ca_file)
        self._http = httpx.Client(timeout=FETCH_TIMEOUT_S, verify=verify, follow_redirects=False, trust_env=False)
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_s: float | None = None
        self._asked_s: float | None = None
        self._away = False

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def holding(self, kid: str) -> Mapping[str, jwt.PyJWK]:
        """Keys with that `kid` among them. Raises UnknownKeyError or UnavailableError."""
        if self._has(kid):
            if self._age_s() > FRESH_FOR_S and self._may_ask():
                threading.Thread(target=self._ask, name="oidc-keys", daemon=True).start()
            return self._keys
        if self._may_ask() or self._turn.locked():
            if not self._waiting.acquire(blocking=False):
                raise UnavailableError("the identity provider is being asked for its keys: try again")
            try:
                self._ask()
            finally:
                self._waiting.release()
        if self._has(kid):
            return self._keys
        if self._away:
            raise UnavailableError("the identity provider does not answer: try again, or use an API key")
        raise UnknownKeyError

    def _has(self, kid: str) -> bool:
        known = kid in self._keys or (not kid and len(self._keys) == 1)
        return known and self._age_s() <= KEPT_FOR_S

    def _age_s(self) -> float:
        return float("inf") if self._fetched_s is None else self._now_s() - self._fetched_s

    def _may_ask(self) -> bool:
        return self._asked_s is None or self._now_s() - self._asked_s >= ASK_PAUSE_S

    def _ask(self) -> None:
        """Fetch the keys, unless somebody else did while this one waited for the turn."""
        with self._turn:
            if not self._may_ask():
                return
            self._asked_s = self._now_s()
            try:
                found = self._fetch()
            except (httpx.HTTPError, ValueError) as error:
                self._away = True
                _LOG.warning("the identity provider %s gave no keys: %s", self._issuer, error)
                return
            self._keys, self._fetched_s, self._away = found, self._now_s(), False

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        document = discover(self._http, self._issuer)
        listed = _json(self._http, _endpoint(document, "jwks_uri")).get("keys")
        if not isinstance(listed, list):
            raise ValueError("its key document has no keys")  # noqa: TRY004 - a fault of what it sent, not of a type here
        keys: dict[str, jwt.PyJWK] = {}
        for item in listed[:MAX_KEYS]:
            usable = isinstance(item, dict) and item.get("kty") in ALGORITHMS.values() and item.get("use") != "enc"
            if not usable:
                continue
            try:
                keys[str(item.get("kid", ""))] = jwt.PyJWK(item)
            except jwt.PyJWTError as error:  # a curve or key of another use: the others still count
                _LOG.debug("a key of the provider is left out: %s", error)
        if not keys:
            raise ValueError("none of its keys is of a kind that is taken: " + ", ".join(ALGORITHMS))
        return keys


class IdentityProvider:
    """Who a token signs in, and how `fleet login` gets one."""

    def __init__(self, *, rules: TokenRules, keys: ProviderKeys, login: LoginOptions) -> None:
        self._rules = rules
        self._keys = keys
        self.login = login

    def sign_in(self, token: str) -> SignIn:
        """Who holds `token`. Raises UnauthorizedError, ForbiddenError, or UnavailableError."""
        return judge_token(token, self._keys.holding(key_id_of(token)), self._rules)

    def close(self) -> None:
        """Let go of the connections."""
        self._keys.close()


def discover(http: httpx.Client, issuer: str) -> Mapping[str, Any]:
    """The provider's document (OpenID Connect Discovery 1.0, section 4). Raises ValueError or httpx.HTTPError."""
    document = _json(http, issuer.rstrip("/") + DISCOVERY_PATH)
    if document.get("issuer") != issuer:  # section 4.3: exactly, else one provider could speak for another
        raise ValueError(f"its document is of another issuer than {issuer}")
    return document


def _endpoint(document: Mapping[str, Any], name: str) -> str:
    url = document.get(name)
    if not isinstance(url, str) or not is_private(url):
        raise ValueError(f"its {name} is missing, or neither https nor loopback")
    return url


def is_private(url: str) -> bool:
    """Whether nobody on the way can read or change what `url` answers: TLS, or this very machine."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    loopback = parts.scheme == "http" and parts.host in ("127.0.0.1", "::1", "localhost")
    return bool(parts.host) and (parts.scheme == "https" or loopback)


def trust_of(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Whose certificates count: the system's authorities, or those of a file. Raises ConfigError."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"oidc.ca_file: {ca_file} holds no certificate authority: {error}") from None


def _json(http: httpx.Client, url: str) -> dict[str, Any]:
    body = bytearray()
    with http.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != 200:
            raise ValueError(f"{url} answered {response.status_code}")
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} answered more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return msgspec.json.decode(bytes(body), type=dict[str, Any])
    except msgspec.DecodeError:
        raise ValueError(f"{url} did not answer a JSON object") from None
