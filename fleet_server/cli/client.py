"""Speaks to the fleet server: one request, one answer or one error of `fleet_server.errors`.

Every change carries an Idempotency-Key, so a request whose answer was lost on the way is sent again safely.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any
from uuid import uuid4

import httpx
import typer

from fleet_server.errors import (
    ConfigError,
    ConflictError,
    FleetError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    UnauthorizedError,
    UnavailableError,
    UntrustedBundleError,
)

DEFAULT_SERVER = "http://127.0.0.1:8080"
MAX_TRIES = 3
RETRY_PAUSE_S = 0.5
TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 600.0
DOWNLOAD_TIMEOUT_S = 300.0
CHUNK_BYTES = 256 * 1024
MAX_KEY_FILE_BYTES = 4096
MAX_SAID_CHARS = 2_000
MAX_LIMIT_PAUSE_S = 30
"""A server that asks to wait longer is not waited for."""

ServerOption = Annotated[
    str, typer.Option("--server", envvar="EDGEFLEET_SERVER", help="The server's address.", metavar="URL")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="EDGEFLEET_API_KEY_FILE",
        help="File with the API key; EDGEFLEET_API_KEY holds the key itself.",
        metavar="FILE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_KINDS: dict[int, type[FleetError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidRequestError,
    422: UntrustedBundleError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def read_api_key(key_file: Path | None) -> str:
    """The API key from its file, else from EDGEFLEET_API_KEY. Raises UnauthorizedError without one, or ConfigError."""
    key = os.environ.get("EDGEFLEET_API_KEY", "")
    if key_file is not None:
        try:
            with key_file.open("rb") as file:
                key = file.read(MAX_KEY_FILE_BYTES).decode("ascii")
        except OSError as error:
            raise ConfigError(f"cannot read the API key file {key_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{key_file} does not hold an API key") from None
    key = key.strip()
    if not key:
        raise UnauthorizedError("no API key: use --api-key-file FILE, set EDGEFLEET_API_KEY, or sign in: fleet login")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the API key has characters no key has: give the key alone, on one line")
    return key


class FleetClient:
    """A connection to the server, with an API key, a sign-in (`auth`), or neither. Use it in a `with`."""

    def __init__(self, *, server: str, api_key: str | None = None, auth: httpx.Auth | None = None) -> None:
        try:
            url = httpx.URL(server)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"--server {server!r} is not an address: use http://HOST:PORT or https://HOST")
        self._server = server
        headers = {"User-Agent": "edgefleet-cli"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._http = httpx.Client(base_url=url, headers=headers, auth=auth, timeout=TIMEOUT_S)

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at `path`; parameters that are None are left out."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._answer(lambda: self._http.build_request("GET", f"/api/v1/{path}", params=given)).json()

    def download(self, path: str, out: Path, **parameters: Any) -> int:
        """Write what is at `path` to the file `out`, whole or not at all; returns its size in bytes."""
        given = {name: value for name, value in parameters.items() if value is not None}
        answer = self._answer(
            lambda: self._http.build_request("GET", f"/api/v1/{path}", params=given, timeout=DOWNLOAD_TIMEOUT_S)
        )
        part = out.with_name(f".{out.name}.part")
        try:
            part.write_bytes(answer.content)
            part.replace(out)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ConfigError(f"cannot write {out}: {error.strerror}") from None
        return len(answer.content)

    def pages(self, path: str, **parameters: Any) -> list[Any]:
        """Every item of a list."""
        items: list[Any] = []
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **parameters)
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    def change(self, method: str, path: str, body: Any = None, *, content: bytes | None = None) -> Any:
        """Send a change, again where its answer was lost; returns the JSON answered."""
        headers = {"Idempotency-Key": uuid4().hex}
        if content is not None:
            headers["Content-Type"] = "application/vnd.dsse+json"
        build = self._http.build_request
        return self._answer(
            lambda: build(method, f"/api/v1/{path}", json=body, content=content, headers=headers)
        ).json()

    def has_artifact(self, sha256: str) -> bool:
        """Whether the server has the file."""
        try:
            self._answer(lambda: self._http.build_request("HEAD", f"/api/v1/artifacts/{sha256}"))
        except NotFoundError:
            return False
        return True

    def upload(self, sha256: str, file: Path) -> None:
        """Send a file under its digest."""
        self._answer(
            lambda: self._http.build_request(
                "PUT",
                f"/api/v1/artifacts/{sha256}",
                content=_chunks(file),
                headers={"Content-Length": str(file.stat().st_size)},
                timeout=UPLOAD_TIMEOUT_S,
            )
        )

    def _answer(self, build: Any) -> httpx.Response:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                response = self._http.send(build())
            except httpx.ConnectError as error:
                raise UnavailableError(f"cannot reach the server at {self._server}: {error}") from None
            except httpx.TransportError as error:
                if not tries_left:
                    what = str(error) or type(error).__name__
                    raise UnavailableError(f"the server at {self._server} did not answer: {what}") from None
            else:
                if response.status_code not in (429, 502, 503, 504) or not tries_left:
                    return _checked(response)
                if response.status_code == 429:
                    pause_s = _retry_after_s(response)
                    if pause_s > MAX_LIMIT_PAUSE_S:
                        return _checked(response)
                    time.sleep(pause_s)
            time.sleep(RETRY_PAUSE_S)
        raise AssertionError("the last try returns or raises")


def open_client(server: str, key_file: Path | None) -> FleetClient:
    """A client with the key the user gave, else with the sign-in at this server."""
    if key_file is None and not os.environ.get("EDGEFLEET_API_KEY", "").strip():
        from fleet_server.cli.logins import LoginAuth, read_login  # only where nobody gave a key

        login = read_login(server)
        if login is not None:
            return FleetClient(server=server, auth=LoginAuth(login))
    return FleetClient(server=server, api_key=read_api_key(key_file))


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    kind = _KINDS.get(response.status_code, FleetError)
    detail = f"the server answered {response.status_code}"
    if "json" in response.headers.get("content-type", "") and response.content:
        try:
            said = response.json()
        except ValueError:
            said = None
        if isinstance(said, dict) and isinstance(said.get("detail"), str):
            detail = said["detail"][:MAX_SAID_CHARS]
    raise kind(detail)


def _retry_after_s(response: httpx.Response) -> int:
    said = response.headers.get("retry-after", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 9 else 1


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
