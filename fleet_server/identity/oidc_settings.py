"""From the settings of `[oidc]` to an identity provider."""

from __future__ import annotations

from fleet_server.config import OidcConfig
from fleet_server.identity.oidc import IdentityProvider, LoginOptions, ProviderKeys
from fleet_server.identity.oidc_tokens import TokenRules
from fleet_server.identity.operators import Role


def identity_provider(settings: OidcConfig) -> IdentityProvider | None:
    """The configured provider, None without one. It is first asked when a token comes. Raises ConfigError."""
    if not settings.issuer:
        return None
    rules = TokenRules(
        issuer=settings.issuer,
        client_id=settings.client_id,
        audiences=tuple(settings.audiences) or (settings.client_id,),
        roles_claim=settings.roles_claim,
        roles={value: Role.parse(role) for value, role in settings.roles.items()},
        leeway_s=settings.leeway_s,
    )
    login = LoginOptions(
        issuer=settings.issuer,
        client_id=settings.client_id,
        scopes=tuple(settings.scopes),
        token=settings.token,
    )
    keys = ProviderKeys(issuer=settings.issuer, ca_file=settings.ca_file)
    return IdentityProvider(rules=rules, keys=keys, login=login)
