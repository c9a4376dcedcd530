"""Operators sign in at a real identity provider with the real command, and the API takes what it signed."""

from __future__ import annotations

import base64
import hmac
import json
import stat
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner, Result

from fleet_server.cli import app
from fleet_server.cli.client import open_client
from fleet_server.cli.logins import Login, LoginAuth, login_file, origin_of, read_login, write_login
from fleet_server.cli.provider import Provider
from fleet_server.errors import ConfigError, ForbiddenError, UnauthorizedError
from fleet_server.identity.oidc_settings import identity_provider
from fleet_server.identity.operators import Role
from tests.end_to_end.operators.conftest import settings_of
from tests.end_to_end.operators.oidc_provider import CLIENT, CLIENTS, PEOPLE, Browser, OidcProvider
from tests.real_servers.processes import Process, wait_until
from tests.server.api.running import Server, running_server

_ROOT = Path(__file__).parents[3]
_CALLBACK = "http://127.0.0.1:9/callback"


def sign_in(provider: OidcProvider, person: str, *, client: str = CLIENT) -> str:
    """The ID token of somebody who signs in with the command's own code, and no listener."""
    with Provider.find(provider.issuer, client_id=client) as found, Browser(person) as browser:
        request = found.request(redirect_uri=_CALLBACK, scopes=["openid", "profile", "email"])
        reached = browser.open(request.url, until=_CALLBACK).next_request
        assert reached is not None
        answer = dict(reached.url.params)
        assert request.is_answered_by(answer)
        token = found.redeem(request, request.code_of(answer)).id_token
    assert token
    return token


def ask(server: Server, token: str, path: str = "operators/me") -> httpx.Response:
    """What the API answers to a token."""
    return httpx.get(f"{server.url}/api/v1/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=20)


def claims_of(token: str) -> dict[str, Any]:
    """What a token says."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def forged(claims: dict[str, Any], header: dict[str, Any], signature: bytes = b"") -> str:
    """A token in three parts, signed or not."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in [*parts, signature])


@pytest.fixture(scope="module")
def ada(provider: OidcProvider) -> str:
    return sign_in(provider, "ada")


def test_a_token_of_the_provider_is_its_person_with_the_role_of_the_claim(server: Server, ada: str) -> None:
    me = ask(server, ada).json()
    assert (me["name"], me["role"], me["actor"], me["signed_in_with"]) == (
        "Ada L",
        "admin",
        "oidc:ada",
        "identity provider",
    )
    assert me["person"].startswith("person:")
    assert me["expires_ns"] // 10**9 == claims_of(ada)["exp"]
    again = ask(server, ada).json()
    assert again["person"] == me["person"]
    entries = ask(server, ada, "audit").json()["items"]
    assert [(entry["action"], entry["actor"]) for entry in entries] == [("operator.first_sign_in", "oidc:ada")]


def test_roles_bound_what_a_signed_in_person_may_do_and_no_role_gets_in_nowhere(
    server: Server, provider: OidcProvider
) -> None:
    bob = sign_in(provider, "bob")
    assert ask(server, bob, "devices").status_code == 200
    refused = ask(server, bob, "operators/keys")
    assert (refused.status_code, refused.json()["detail"]) == (403, "this needs the role admin, Bob B has viewer")
    nobody = ask(server, sign_in(provider, "nobody"), "devices")
    assert nobody.status_code == 403
    assert "has no role here" in nobody.json()["detail"]
    with server.client() as admin:
        assert [p["name"] for p in admin.get("/api/v1/operators").json()["items"]] == ["Bob B"], "nobody made no row"


def test_what_a_signed_in_person_does_is_audited_by_name(server: Server, ada: str) -> None:
    headers = {"Authorization": f"Bearer {ada}"}
    assert httpx.post(f"{server.url}/api/v1/devices/pi-1/enrol", json={}, headers=headers).status_code == 201
    entry = ask(server, ada, "audit?action=device.enrol").json()["items"][0]
    assert (entry["actor"], entry["detail"]["by"]["name"]) == ("oidc:ada", "Ada L")


def test_one_person_stays_one_with_a_key_of_their_own_or_a_key_they_made(server: Server, ada: str) -> None:
    with server.client() as admin:
        known = admin.post("/api/v1/operators", json={"name": "Ada", "email": "ADA@example.org"}).json()
        body = {"name": "ada-laptop", "role": "operator", "owner": known["id"]}
        before = admin.post("/api/v1/operators/keys", json=body).json()["key"]
    signed_in = ask(server, ada).json()["person"]
    headers = {"Authorization": f"Bearer {ada}"}
    made = httpx.post(
        f"{server.url}/api/v1/operators/keys", json={"name": "second", "role": "approver"}, headers=headers
    )
    persons = {signed_in, ask(server, before).json()["person"], ask(server, made.json()["key"]).json()["person"]}
    assert persons == {f"person:{known['id']}"}


def test_an_email_that_the_provider_does_not_vouch_for_makes_nobody_somebody_else(
    server: Server, provider: OidcProvider
) -> None:
    with server.client() as admin:
        known = admin.post("/api/v1/operators", json={"name": "Ada", "email": "ada@example.org"}).json()
    eve = ask(server, sign_in(provider, "eve")).json()
    assert eve["person"] != f"person:{known['id']}"


def test_ending_a_persons_access_refuses_their_tokens_and_keys_at_once(server: Server, ada: str) -> None:
    person = ask(server, ada).json()["person"].removeprefix("person:")
    headers = {"Authorization": f"Bearer {ada}"}
    key = httpx.post(f"{server.url}/api/v1/operators/keys", json={"name": "hers", "role": "viewer"}, headers=headers)
    with server.client() as admin:
        assert admin.patch(f"/api/v1/operators/{person}", json={"ended": True}).status_code == 200
        assert [ask(server, token).status_code for token in (ada, key.json()["key"])] == [401, 401]
        assert admin.patch(f"/api/v1/operators/{person}", json={"ended": False}).status_code == 200
        assert [ask(server, token).status_code for token in (ada, key.json()["key"])] == [200, 200]


def test_a_token_made_for_another_client_is_refused(shared: Server, provider: OidcProvider) -> None:
    assert ask(shared, sign_in(provider, "ada", client="another-tool")).status_code == 401


def test_a_token_of_another_issuer_is_refused(shared: Server, provider: OidcProvider, tmp_path: Path) -> None:
    with OidcProvider(tmp_path / "other") as other:
        other_token = sign_in(other, "ada")
        assert ask(shared, other_token).status_code == 401
        header = jwt.get_unverified_header(other_token)
        claims = {**claims_of(other_token), "iss": provider.issuer}
        lying = jwt.encode(claims, jwt.PyJWK(other.keys[0]).key, "RS256", headers=header)
        assert ask(shared, lying).status_code == 401, "the right issuer's name under another's key"


def test_an_expired_token_is_refused_and_one_that_is_not_yet_valid_too(
    shared: Server, provider: OidcProvider, ada: str
) -> None:
    key, header = jwt.PyJWK(provider.keys[0]).key, jwt.get_unverified_header(ada)
    now = int(time.time())
    for change in ({"exp": now - 1}, {"nbf": now + 60}, {"iat": now + 60}, {"aud": "x"}, {"azp": "x"}, {"sub": ""}):
        changed = jwt.encode({**claims_of(ada), **change}, key, "RS256", headers=header)
        assert ask(shared, changed).status_code == 401, change
    assert ask(shared, jwt.encode(claims_of(ada), key, "RS256", headers=header)).status_code == 200


def test_alg_none_and_a_public_key_taken_for_a_shared_secret_are_refused(
    shared: Server, provider: OidcProvider, ada: str
) -> None:
    private = jwt.PyJWK(provider.keys[0]).key
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for algorithm in ("none", "None", "nOnE"):
        assert ask(shared, forged(claims_of(ada), {"alg": algorithm, "kid": "first-RS256"})).status_code == 401
    header = {"alg": "HS256", "kid": "first-RS256", "typ": "JWT"}
    unsigned = forged(claims_of(ada), header).rpartition(".")[0]
    signature = base64.urlsafe_b64encode(_hmac(pem, unsigned.encode())).decode().rstrip("=")
    assert ask(shared, f"{unsigned}.{signature}").status_code == 401
    own = jwt.encode(claims_of(ada), private, "RS256", headers={"kid": "first-RS256", "typ": "logout+jwt"})
    assert ask(shared, own).status_code == 401, "a logout token is no sign-in"
    stretched = ada[:-4] + ("AAAA" if not ada.endswith("AAAA") else "BBBB")
    assert ask(shared, stretched).status_code == 401


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, "sha256").digest()


@pytest.mark.parametrize("client", ["tool-es256", "tool-eddsa"])
def test_elliptic_curve_signatures_are_taken(provider: OidcProvider, client: str) -> None:
    trusting = identity_provider(msgspec.structs.replace(settings_of(provider), client_id=client))
    assert trusting is not None
    token = sign_in(provider, "bob", client=client)
    assert jwt.get_unverified_header(token)["alg"] == CLIENTS[client]
    assert trusting.sign_in(token).role is Role.VIEWER
    trusting.close()


def test_keys_rotate_and_a_provider_that_is_away_stops_only_who_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_server.identity.oidc.ASK_PAUSE_S", 0.2)
    with (
        OidcProvider(tmp_path / "provider") as provider,
        running_server(tmp_path / "server", oidc=settings_of(provider)) as server,
    ):
        old = sign_in(provider, "ada")
        assert ask(server, old).status_code == 200
        provider.rotate()
        new = sign_in(provider, "ada")
        wait_until(lambda: ask(server, new).status_code == 200, 5, "the new key was taken")
        assert ask(server, old).status_code == 401, "the old key is gone at the provider"
        provider.stop()
        assert ask(server, new).status_code == 200, "known keys go on"
        unknown = jwt.encode(claims_of(new), jwt.PyJWK(provider.keys[0]).key, "RS256", headers={"kid": "never seen"})
        wait_until(lambda: ask(server, unknown).status_code == 503, 5, "an unknown key could not be asked for")
        assert "retry-after" in ask(server, unknown).headers
        with server.client() as by_key:
            assert by_key.get("/api/v1/operators/me").status_code == 200
        provider.start()


class _OpensInTheBackground:
    """A browser as `webbrowser` knows one."""

    def __init__(self, person: str) -> None:
        self._person = person
        self.pages: list[str] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        def look() -> None:
            with Browser(self._person) as browser:
                self.pages.append(browser.open(url).text)

        threading.Thread(target=look, daemon=True).start()
        return True


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own, and no API key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    for name in ("EDGEFLEET_API_KEY", "EDGEFLEET_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def browsers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, _OpensInTheBackground]]:
    """People whose browser opens when the command opens one: the last one taken is the one that opens."""
    monkeypatch.setattr(webbrowser, "_tryorder", [])
    monkeypatch.setattr(webbrowser, "_browsers", {})
    found = {person: _OpensInTheBackground(person) for person in PEOPLE}
    for person, browser in found.items():
        webbrowser.register(person, None, browser)  # type: ignore[arg-type]  # the stub wants its base class
    yield found


def fleet(*arguments: str) -> Result:
    """Run a command to its end."""
    return CliRunner().invoke(app, list(arguments))


def test_login_with_a_browser_then_commands_then_logout(
    shared: Server, provider: OidcProvider, home: Path, browsers: dict[str, _OpensInTheBackground], tmp_path: Path
) -> None:
    webbrowser.register("ada", None, browsers["ada"], preferred=True)  # type: ignore[arg-type]  # as above
    done = fleet("login", "--server", shared.url, "--json")
    assert json.loads(done.stdout)["operator"]["role"] == "admin", done.output
    assert "code_challenge_method=S256" in done.stderr
    wait_until(lambda: browsers["ada"].pages, 10, "the browser showed a page")
    assert "close this page" in browsers["ada"].pages[0]
    [kept] = (home / "edgefleet" / "logins").glob("*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    before = json.loads(kept.read_text())
    secrets = [before["token"], before["refresh_token"]]
    assert all(secrets)
    assert not any(secret in done.output for secret in secrets)

    command = [sys.executable, "-m", "fleet_server.cli", "operators", "me", "--server", shared.url, "--json"]
    with Process(command, folder=tmp_path, name="me", env={"PYTHONPATH": str(_ROOT)}) as process:
        wait_until(lambda: process.returncode is not None, 60, "the command ended")
        assert (process.returncode, json.loads(process.stdout_path.read_text())["name"]) == (0, "Ada L")

    kept.write_text(json.dumps({**before, "expires_s": time.time() + 5}))
    with ThreadPoolExecutor(3) as pool:
        names = pool.map(lambda _: _name_by_login(shared), range(3))
        assert list(names) == ["Ada L"] * 3
    renewed = json.loads(kept.read_text())
    assert renewed["refresh_token"] != before["refresh_token"], "the provider rotates it: used twice it would be over"
    assert renewed["expires_s"] > time.time() + 60

    assert json.loads(fleet("logout", "--server", shared.url, "--json").stdout)["revoked"]
    assert not kept.exists()
    with pytest.raises(UnauthorizedError, match="fleet login"):
        open_client(shared.url, None)
    with Provider.find(provider.issuer, client_id=CLIENT) as found, pytest.raises(UnauthorizedError):
        found.refresh(renewed["refresh_token"])


def _name_by_login(server: Server) -> str:
    with open_client(server.url, None) as client:
        return str(client.get("operators/me")["name"])


def test_login_on_a_machine_without_a_browser(shared: Server, provider: OidcProvider) -> None:
    with Provider.find(provider.issuer, client_id=CLIENT) as found, Browser("bob") as browser:
        request = found.request_for_device(["openid", "profile"])
        browser.open(request.url)
        tokens = found.await_device(replace(request, interval_s=0.05))
    assert tokens.id_token
    assert ask(shared, tokens.id_token).json()["name"] == "Bob B"


def test_a_code_that_nobody_confirms_ends_the_wait(provider: OidcProvider) -> None:
    with Provider.find(provider.issuer, client_id=CLIENT) as found:
        request = found.request_for_device(["openid"])
        with pytest.raises(UnauthorizedError, match="in time"):
            found.await_device(replace(request, interval_s=0.05, expires_in_s=0.3))


def test_a_code_is_worth_nothing_without_the_verifier_of_its_request(provider: OidcProvider) -> None:
    with Provider.find(provider.issuer, client_id=CLIENT) as found, Browser("ada") as browser:
        request = found.request(redirect_uri=_CALLBACK, scopes=["openid"])
        reached = browser.open(request.url, until=_CALLBACK).next_request
        assert reached is not None
        stolen = replace(request, verifier=found.request(redirect_uri=_CALLBACK, scopes=["openid"]).verifier)
        with pytest.raises(UnauthorizedError):
            found.redeem(stolen, request.code_of(dict(reached.url.params)))


def test_nobody_without_a_role_is_kept_as_signed_in(
    shared: Server, home: Path, browsers: dict[str, _OpensInTheBackground]
) -> None:
    webbrowser.register("nobody", None, browsers["nobody"], preferred=True)  # type: ignore[arg-type]  # as above
    done = fleet("login", "--server", shared.url)
    assert isinstance(done.exception, ForbiddenError)
    assert "has no role here" in str(done.exception)
    assert not list(home.rglob("*.json"))


def test_an_answer_to_another_sign_in_is_not_taken(
    shared: Server, home: Path, browsers: dict[str, _OpensInTheBackground], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's code, brought to the redirect, would sign the victim in as the attacker."""

    class Attacked(_OpensInTheBackground):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            redirect = dict(httpx.URL(url).params)["redirect_uri"]

            def bring() -> None:
                httpx.get(redirect, params={"code": "the attackers", "state": "guessed"}, timeout=20)
                super(Attacked, self).open(url)

            threading.Thread(target=bring, daemon=True).start()
            return True

    webbrowser.register("attacked", None, Attacked("bob"), preferred=True)  # type: ignore[arg-type]  # as above
    assert "as Bob B, viewer" in fleet("login", "--server", shared.url).stdout


def test_a_token_never_crosses_a_network_in_clear_nor_goes_to_another_server(home: Path, shared: Server) -> None:
    refused = fleet("login", "--server", "http://fleet.example.com")
    assert isinstance(refused.exception, ConfigError)
    login = Login(
        server=origin_of(shared.url),
        issuer="https://login.example.com",
        client_id="c",
        kind="id",
        token="secret",
        refresh_token=None,
        expires_s=time.time() + 600,
    )
    write_login(login)
    assert read_login(shared.url) == login
    assert read_login("http://127.0.0.1:1") is None
    request = httpx.Request("GET", "http://127.0.0.1:1/api/v1/devices")
    next(LoginAuth(login).auth_flow(request))
    assert "authorization" not in request.headers
    assert "secret" not in repr(login)
    login_file(shared.url).chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        read_login(shared.url)
