"""`fleet login` and `fleet logout`: sign in at the server's identity provider."""

from __future__ import annotations

import time
import webbrowser
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import typer

from fleet_server.cli.client import DEFAULT_SERVER, FleetClient, JsonOption, ServerOption
from fleet_server.cli.logins import LoginAuth, as_json, check_private, forget_login, login_from, write_login
from fleet_server.cli.output import show_json, show_line
from fleet_server.cli.provider import Provider, Tokens
from fleet_server.errors import FleetError, UnauthorizedError, UnavailableError

WAIT_S = 300.0
MAX_CALLBACKS = 50
_CALLBACK = "/callback"
_PAGE = (
    b"<!doctype html><meta charset=utf-8><title>edgefleet</title>"
    b"<p>You can close this page and go back to the terminal."
)


def register(app: typer.Typer) -> None:
    """Add the commands to `fleet`."""
    app.command("login")(login)
    app.command("logout")(logout)


def login(
    *,
    server: ServerOption = DEFAULT_SERVER,
    device: Annotated[
        bool, typer.Option("--device", help="Sign in on another machine: for one without a browser.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the browser here.")] = True,
    as_json_: JsonOption = False,
) -> None:
    """Sign in; other commands then need no API key. Example: fleet login --server https://fleet.example.com"""
    check_private(server)
    with FleetClient(server=server) as anonymous:
        how = anonymous.get("login")
    with Provider.find(how["issuer"], client_id=how["client_id"]) as provider:
        if device:
            tokens = _on_another_machine(provider, how["scopes"])
        else:
            tokens = _in_a_browser(provider, how["scopes"], open_browser=browser)
        made = login_from(tokens, server=server, provider=provider, kind=how["token"])
    with FleetClient(server=server, auth=LoginAuth(made)) as client:
        me = client.get("operators/me")
    write_login(made)
    if as_json_:
        show_json({"login": as_json(made), "operator": me})
    else:
        show_line(f"signed in at {made.server} as {me['name']}, {me['role']}")


def logout(*, server: ServerOption = DEFAULT_SERVER, as_json_: JsonOption = False) -> None:
    """Forget the sign-in at a server. Example: fleet logout --server https://fleet.example.com"""
    forgotten = forget_login(server)
    revoked = False
    if forgotten is not None and forgotten.refresh_token:
        try:
            with Provider.find(forgotten.issuer, client_id=forgotten.client_id) as provider:
                revoked = provider.revoke(forgotten.refresh_token)
        except FleetError:
            revoked = False  # it is gone from here, which is what was asked; the provider ends it in its own time
    if as_json_:
        show_json({"login": as_json(forgotten), "revoked": revoked})
    else:
        show_line(f"signed out of {forgotten.server}" if forgotten else f"nobody was signed in at {server}")


def _on_another_machine(provider: Provider, scopes: list[str]) -> Tokens:
    request = provider.request_for_device(scopes)
    _say(f"open {request.url} on any machine and enter the code {request.user_code}")
    return provider.await_device(request)


def _in_a_browser(provider: Provider, scopes: list[str], *, open_browser: bool) -> Tokens:
    with _Loopback() as loopback:
        request = provider.request(redirect_uri=loopback.redirect_uri, scopes=scopes)
        _say(f"sign in at {request.url}")
        if open_browser:
            webbrowser.open(request.url)
        deadline = time.monotonic() + WAIT_S
        for _ in range(MAX_CALLBACKS):
            answer = loopback.next_answer(deadline)
            if request.is_answered_by(answer):
                return provider.redeem(request, request.code_of(answer))
    raise UnauthorizedError("too many answers came that belong to no sign-in: try again")


class _Loopback:
    """Waits on this machine for the provider's answer in the browser (RFC 8252, section 7.3)."""

    def __init__(self) -> None:
        self._answers: list[dict[str, str]] = []
        answers = self._answers

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                found = parts.path == _CALLBACK
                if found:
                    answers.append(dict(parse_qsl(parts.query, max_num_fields=20)))
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(_PAGE if found else b"")

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class names it
                """Say nothing: the request line holds the code."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._server.timeout = 0.5
        self.redirect_uri = f"http://127.0.0.1:{self._server.server_port}{_CALLBACK}"

    def __enter__(self) -> _Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def next_answer(self, deadline: float) -> dict[str, str]:
        while not self._answers:
            if time.monotonic() > deadline:
                raise UnavailableError("nobody signed in in time: try again")
            self._server.handle_request()
        return self._answers.pop(0)


def _say(text: str) -> None:
    """What the user must do now, on standard error: standard output holds the result."""
    typer.echo(text, err=True)
