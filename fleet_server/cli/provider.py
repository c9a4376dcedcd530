"""The identity provider as the `fleet` command uses it: a public client, which has no secret.

Authorization code with PKCE (RFC 7636, S256 only) on a loopback redirect (RFC 8252, section 7.3), the device
authorization grant (RFC 8628), and refresh (RFC 6749, section 6).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec

from fleet_server.errors import ConfigError, UnauthorizedError, UnavailableError

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 256 * 1024
MAX_SAID_CHARS = 300
MAX_DEVICE_WAIT_S = 900.0
DEFAULT_LIFE_S = 300.0
_DISCOVERY = "/.well-known/openid-configuration"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the provider gave; shown nowhere."""

    id_token: str | None
    access_token: str | None
    refresh_token: str | None
    expires_in_s: float

    def __repr__(self) -> str:
        return "Tokens(...)"


@dataclass(frozen=True, kw_only=True)
class Request:
    """An authorization request: the address to open, and the secrets that tie the answer to it."""

    url: str
    state: str
    nonce: str
    verifier: str
    redirect_uri: str

    def is_answered_by(self, answer: dict[str, str]) -> bool:
        """Whether what came to the redirect answers this request, and not one that somebody else began."""
        return hmac.compare_digest(answer.get("state", "").encode(), self.state.encode())

    def code_of(self, answer: dict[str, str]) -> str:
        """The code in an answer to this request. Raises UnauthorizedError for a refusal."""
        if "error" in answer:
            said = answer.get("error_description") or answer["error"]
            raise UnauthorizedError(f"the identity provider did not sign you in: {said[:MAX_SAID_CHARS]}")
        if not answer.get("code"):
            raise UnauthorizedError("the identity provider sent no code: try again")
        return answer["code"]


@dataclass(frozen=True, kw_only=True)
class DeviceRequest:
    """What to show for a sign-in on another machine, and how often to ask whether it happened."""

    device_code: str
    user_code: str
    url: str
    interval_s: float
    expires_in_s: float


class Provider:
    """One provider and our client there. Use it in a `with`."""

    def __init__(self, http: httpx.Client, *, client_id: str, document: dict[str, Any]) -> None:
        self._http = http
        self._document = document
        self.client_id = client_id
        self.issuer = str(document["issuer"])

    @classmethod
    def find(cls, issuer: str, *, client_id: str) -> Provider:
        """Read the provider's document. Raises UnavailableError or ConfigError."""
        if not private_url(issuer):
            raise ConfigError(f"the identity provider {issuer!r} is neither https nor this machine: refused")
        http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)
        try:
            status, document = _answer(http, "GET", issuer.rstrip("/") + _DISCOVERY)
        except BaseException:
            http.close()
            raise
        if status != 200 or document.get("issuer") != issuer:
            http.close()
            raise ConfigError(f"{issuer} is not an OpenID Connect provider of that name")
        return cls(http, client_id=client_id, document=document)

    def __enter__(self) -> Provider:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def knows_devices(self) -> bool:
        """Whether it has the device authorization grant."""
        return "device_authorization_endpoint" in self._document

    def request(self, *, redirect_uri: str, scopes: list[str]) -> Request:
        """A fresh authorization request."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        if "offline_access" in scopes:
            asked["prompt"] = "consent"  # OpenID Connect Core 1.0, section 11: else no refresh token
        endpoint = self._endpoint("authorization_endpoint")
        url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked)}"
        return Request(url=url, state=state, nonce=nonce, verifier=verifier, redirect_uri=redirect_uri)

    def redeem(self, request: Request, code: str) -> Tokens:
        """The tokens for a code. Raises UnauthorizedError or UnavailableError."""
        tokens = self._tokens(
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": request.redirect_uri,
                "code_verifier": request.verifier,
            }
        )
        if tokens.id_token and _claims(tokens.id_token).get("nonce") != request.nonce:
            raise UnauthorizedError("the identity provider answered another sign-in: try again")
        return tokens

    def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token; it stays the same where the provider sends no new one."""
        tokens = self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})
        return replace(tokens, refresh_token=tokens.refresh_token or refresh_token)

    def revoke(self, refresh_token: str) -> bool:
        """Ask the provider to forget a refresh token (RFC 7009); whether it said so."""
        if "revocation_endpoint" not in self._document:
            return False
        form = {"token": refresh_token, "token_type_hint": "refresh_token", "client_id": self.client_id}
        status, _ = _answer(self._http, "POST", self._endpoint("revocation_endpoint"), form)
        return status == 200

    def request_for_device(self, scopes: list[str]) -> DeviceRequest:
        """Begin a sign-in on another machine. Raises ConfigError where the provider has no such grant."""
        if not self.knows_devices:
            raise ConfigError(f"{self.issuer} has no device sign-in: use `fleet login` where there is a browser")
        form = {"client_id": self.client_id, "scope": " ".join(scopes)}
        status, said = _answer(self._http, "POST", self._endpoint("device_authorization_endpoint"), form)
        if status != 200:
            raise _not_signed_in(said)
        try:
            return DeviceRequest(
                device_code=str(said["device_code"]),
                user_code=str(said["user_code"]),
                url=str(said.get("verification_uri_complete") or said["verification_uri"]),
                interval_s=min(max(float(said.get("interval", 5)), 1.0), 60.0),
                expires_in_s=min(float(said["expires_in"]), MAX_DEVICE_WAIT_S),
            )
        except (KeyError, ValueError, TypeError):
            raise UnavailableError("the identity provider's answer to a device sign-in is not understood") from None

    def await_device(self, request: DeviceRequest) -> Tokens:
        """Wait until somebody signed in with the code (RFC 8628, section 3.5). Raises UnauthorizedError."""
        deadline, interval_s = time.monotonic() + request.expires_in_s, request.interval_s
        form = {"grant_type": _DEVICE_GRANT, "device_code": request.device_code, "client_id": self.client_id}
        while time.monotonic() < deadline:
            time.sleep(interval_s)
            status, said = _answer(self._http, "POST", self._endpoint("token_endpoint"), form)
            if status == 200:
                return _tokens_of(said)
            if said.get("error") == "slow_down":
                interval_s += 5.0
            elif said.get("error") != "authorization_pending":
                raise _not_signed_in(said)
        raise UnauthorizedError("nobody signed in with the code in time: try again")

    def _tokens(self, form: dict[str, str]) -> Tokens:
        endpoint = self._endpoint("token_endpoint")
        status, said = _answer(self._http, "POST", endpoint, {"client_id": self.client_id, **form})
        if status >= 500:
            raise UnavailableError(f"the identity provider answered {status}: try again")
        if status != 200:
            raise _not_signed_in(said)
        return _tokens_of(said)

    def _endpoint(self, name: str) -> str:
        url = self._document.get(name)
        if not isinstance(url, str) or not private_url(url):
            raise ConfigError(f"the {name} of {self.issuer} is missing, or neither https nor this machine")
        return url


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a PKCE verifier (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def private_url(url: str) -> bool:
    """Whether what is sent to `url` stays secret on the way: TLS, or this very machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
    )


def _answer(
    http: httpx.Client, method: str, url: str, form: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    body = bytearray()
    try:
        with http.stream(method, url, data=form, headers={"Accept": "application/json"}) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UnavailableError(f"{url} answered more than {MAX_ANSWER_BYTES} bytes")
    except httpx.HTTPError as error:
        raise UnavailableError(f"cannot reach the identity provider at {url}: {error}") from None
    try:
        return response.status_code, msgspec.json.decode(bytes(body), type=dict[str, Any])
    except msgspec.DecodeError:
        return response.status_code, {}


def _tokens_of(said: dict[str, Any]) -> Tokens:
    def text(name: str) -> str | None:
        value = said.get(name)
        return value if isinstance(value, str) and value else None

    id_token, life = text("id_token"), said.get("expires_in")
    if id_token and isinstance(expiry := _claims(id_token).get("exp"), int | float):
        life = expiry - time.time()
    return Tokens(
        id_token=id_token,
        access_token=text("access_token"),
        refresh_token=text("refresh_token"),
        expires_in_s=float(life) if isinstance(life, int | float) else DEFAULT_LIFE_S,
    )


def _claims(token: str) -> dict[str, Any]:
    """What a token says, unchecked: it came straight from the provider, and the server checks it (Core, 3.1.3.7)."""
    try:
        part = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, msgspec.DecodeError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _not_signed_in(said: dict[str, Any]) -> UnauthorizedError:
    reason = str(said.get("error_description") or said.get("error") or "it gave no reason")
    return UnauthorizedError(f"the identity provider did not sign you in: {reason[:MAX_SAID_CHARS]}")
