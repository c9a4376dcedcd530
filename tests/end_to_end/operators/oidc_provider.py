"""A real identity provider as a process: npm's certified `oidc-provider`, installed once beside the environment."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.real_servers.processes import Process, free_port
from tests.real_servers.requirements import missing, require_program

CLIENT = "fleet-cli"
CLIENTS = {CLIENT: "RS256", "another-tool": "RS256", "tool-es256": "ES256", "tool-eddsa": "EdDSA"}
"""The clients the provider knows, and the algorithm that signs their tokens."""
_HERE = Path(__file__).parent
_INSTALLED = _HERE.parents[2] / ".venv" / "oidc-provider"
_INSTALL_TIMEOUT_S = 120
_START_TIMEOUT_S = 30.0
_MAX_PAGES = 12

PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"name": "Ada L", "email": "ada@example.org", "email_verified": True, "groups": ["fleet-admins"]},
    "bob": {"name": "Bob B", "email": "bob@example.org", "email_verified": True, "groups": ["fleet-viewers", "x"]},
    "eve": {"name": "Eve E", "email": "ada@example.org", "email_verified": False, "groups": ["fleet-viewers"]},
    "nobody": {"name": "No Body", "groups": ["canteen"]},
}


def new_key(algorithm: str, kid: str) -> dict[str, Any]:
    """A private key as a JWK."""
    made: dict[str, Any]
    if algorithm == "ES256":
        made = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    elif algorithm == "EdDSA":
        made = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    else:
        made = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048), as_dict=True)
    made.pop("key_ops", None)
    return {**made, "kid": kid, "use": "sig", "alg": algorithm}


def new_keys(name: str) -> list[dict[str, Any]]:
    """A private key of each kind; the first is RSA."""
    return [new_key(algorithm, f"{name}-{algorithm}") for algorithm in ("RS256", "ES256", "EdDSA")]


class OidcProvider:
    """A running provider with people who sign in by their name alone. `keys` are its private JWKs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.keys = new_keys("first")
        self._process: Process | None = None

    def __enter__(self) -> OidcProvider:
        _install()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it with the keys it has now, at the same address."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "provider.json"
        settings.write_text(
            json.dumps(
                {
                    "issuer": self.issuer,
                    "port": self.port,
                    "keys": self.keys,
                    "clients": CLIENTS,
                    "people": PEOPLE,
                }
            )
        )
        command = [require_program("node"), _INSTALLED / "provider.mjs", settings]
        self._process = Process(command, folder=self.folder, name="provider")
        self._process.wait_ready(self._answers, _START_TIMEOUT_S, "the identity provider answered")

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.__exit__(None, None, None)
            self._process = None

    def rotate(self) -> None:
        """Sign with a new key from now on; the old one is gone."""
        self.stop()
        self.keys = new_keys("second")
        self.start()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.issuer}/.well-known/openid-configuration", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


class Browser:
    """Opens pages, follows redirects and fills in the forms it is shown, as the person `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._http = httpx.Client(timeout=20)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def open(self, url: str, *, until: str = "") -> httpx.Response:
        """Go on until there is nothing more to fill in, or a redirect to an address that begins with `until`."""
        response = self._http.get(url)
        for _ in range(_MAX_PAGES):
            while response.next_request is not None:
                if until and str(response.next_request.url).startswith(until):
                    return response
                response = self._http.send(response.next_request)
            form = _form_of(response.text)
            if form is None:
                return response
            fields = form.fields | ({"login": self._name, "password": "any"} if "login" in form.fields else {})
            response = self._http.post(urljoin(str(response.url), form.action), data=fields)
        raise AssertionError(f"too many pages, the last is {response.url}: {response.text[:500]}")


class _Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form" and self.action is None:
            self.action = given.get("action") or ""
        elif tag == "input" and given.get("name"):
            self.fields[str(given["name"])] = given.get("value") or ""


def _form_of(page: str) -> Any:
    form = _Form()
    form.feed(page)
    return None if form.action is None else form


def _install() -> None:
    require_program("node")
    npm = require_program("npm")
    _INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("provider.mjs", "package.json"):
        shutil.copyfile(_HERE / name, _INSTALLED / name)
    if (_INSTALLED / "node_modules" / "oidc-provider" / "package.json").exists():
        return
    command = [npm, "install", "--no-audit", "--no-fund", "--silent"]
    try:
        subprocess.run(command, cwd=_INSTALLED, check=True, timeout=_INSTALL_TIMEOUT_S, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        missing("oidc-provider", f"npm could not install it: {error}")
