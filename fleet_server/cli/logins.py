"""Sign-ins kept on this machine: one file per server, and the token that goes with a request.

Invariants:
- a file has mode 0600 in a folder of mode 0700, is replaced whole, and is never written through a link;
- a token goes to the server it was made for and to nobody else; the refresh token goes only to the provider;
- of several commands at once, one renews a token that is about to expire and the others take what it wrote.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from fleet_server.cli.provider import Provider, Tokens, private_url
from fleet_server.errors import ConfigError, UnauthorizedError, UnavailableError

RENEW_BEFORE_S = 60.0
"""A token with less left is renewed before it is sent."""
MAX_LOGIN_BYTES = 64 * 1024


class Login(Struct, frozen=True, kw_only=True):
    """Somebody signed in at a server. `token` is what the API is sent."""

    server: str
    issuer: str
    client_id: str
    kind: str
    token: str
    refresh_token: str | None
    expires_s: float

    def __repr__(self) -> str:
        return f"Login(server={self.server!r}, issuer={self.issuer!r})"


def origin_of(server: str) -> str:
    """What names a server: its scheme, host and port. Raises ConfigError."""
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"--server {server!r} is not an address: use http://HOST:PORT or https://HOST")
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}:{port}"


def login_file(server: str) -> Path:
    """Where the sign-in at `server` is kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    digest = hashlib.sha256(origin_of(server).encode()).hexdigest()[:16]
    return Path(base).expanduser() / "edgefleet" / "logins" / f"{digest}.json"


def read_login(server: str) -> Login | None:
    """The sign-in at `server`, None when there is none. Raises ConfigError for a file that others can read."""
    path = login_file(server)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: `fleet logout`, sign in again, and keep it private")
        data = file.read(MAX_LOGIN_BYTES + 1)
    try:
        login = msgspec.json.decode(data, type=Login)
    except msgspec.DecodeError:
        raise ConfigError(f"{path} is damaged: sign in again with `fleet login`") from None
    return login if login.server == origin_of(server) else None


def write_login(login: Login) -> None:
    """Keep a sign-in. Raises ConfigError."""
    path = login_file(login.server)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(msgspec.json.encode(login))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def forget_login(server: str) -> Login | None:
    """Remove the sign-in at `server`; returns what was there."""
    try:
        login = read_login(server)
    except ConfigError:
        login = None  # what cannot be read is removed all the same
    login_file(server).unlink(missing_ok=True)
    return login


def login_from(tokens: Tokens, *, server: str, provider: Provider, kind: str) -> Login:
    """What to keep of the provider's answer. Raises UnauthorizedError without the token that the API is sent."""
    token = tokens.id_token if kind == "id" else tokens.access_token
    if not token:
        raise UnauthorizedError(f"the identity provider gave no {kind} token: its client is not set up for one")
    return Login(
        server=origin_of(server),
        issuer=provider.issuer,
        client_id=provider.client_id,
        kind=kind,
        token=token,
        refresh_token=tokens.refresh_token,
        expires_s=time.time() + tokens.expires_in_s,
    )


class LoginAuth(httpx.Auth):
    """Puts the kept token on each request, renewed where it is about to expire."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx. Raises UnauthorizedError when the sign-in is over."""
        if origin_of(str(request.url)) == self._login.server:
            if self._login.expires_s - time.time() < RENEW_BEFORE_S:
                self._login = _renewed(self._login)
            request.headers["Authorization"] = f"Bearer {self._login.token}"
        yield request


def _renewed(login: Login) -> Login:
    over = UnauthorizedError(f"the sign-in at {login.server} is over: `fleet login --server {login.server}`")
    with _only_one(login.server):
        latest = read_login(login.server)
        if latest is None:
            raise over
        left_s = latest.expires_s - time.time()
        if left_s >= RENEW_BEFORE_S:
            return latest
        if not latest.refresh_token:
            if left_s > 0:
                return latest
            raise over
        try:
            with Provider.find(latest.issuer, client_id=latest.client_id) as provider:
                tokens = provider.refresh(latest.refresh_token)
                renewed = login_from(tokens, server=latest.server, provider=provider, kind=latest.kind)
        except UnavailableError:
            if left_s > 0:
                return latest
            raise
        except UnauthorizedError:
            raise over from None
        write_login(renewed)
        return renewed


@contextmanager
def _only_one(server: str) -> Iterator[None]:
    path = login_file(server).with_suffix(".lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_private(server: str) -> None:
    """Raises ConfigError where a token would cross a network in clear."""
    if not private_url(server):
        raise ConfigError(f"{server} is neither https nor this machine: a token would cross the network in clear")


def as_json(login: Login | None) -> dict[str, Any] | None:
    """A sign-in without its secrets."""
    return None if login is None else {"server": login.server, "issuer": login.issuer, "expires_s": login.expires_s}
