"""One identity provider for all these tests, and a server that takes its sign-ins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_server.config import OidcConfig
from tests.end_to_end.operators.oidc_provider import CLIENT, OidcProvider
from tests.server.api.running import Server, running_server

ROLES = {"fleet-admins": "admin", "fleet-viewers": "viewer"}


def settings_of(provider: OidcProvider) -> OidcConfig:
    """The server's settings for a provider."""
    return OidcConfig(issuer=provider.issuer, client_id=CLIENT, roles=ROLES, leeway_s=0)


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with OidcProvider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, provider: OidcProvider) -> Iterator[Server]:
    with running_server(tmp_path / "server", oidc=settings_of(provider)) as running:
        yield running


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, provider: OidcProvider) -> Iterator[Server]:
    """A server for tests that do not care what others did there."""
    with running_server(tmp_path_factory.mktemp("server"), oidc=settings_of(provider)) as running:
        yield running
