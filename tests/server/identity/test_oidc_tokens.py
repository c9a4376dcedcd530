"""What a token must be to sign somebody in: the judge alone, with keys made here."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.errors import ForbiddenError, UnauthorizedError
from fleet_server.identity.oidc_tokens import MAX_TOKEN_CHARS, TokenRules, UnknownKeyError, judge_token, role_of
from fleet_server.identity.operators import Operator, Role

_RSA = rsa.generate_private_key(65537, 2048)
_EC = ec.generate_private_key(ec.SECP256R1())
_P384 = ec.generate_private_key(ec.SECP384R1())
_KEYS = {
    "rsa": jwt.PyJWK(jwt.algorithms.RSAAlgorithm.to_jwk(_RSA.public_key(), as_dict=True)),
    "ec": jwt.PyJWK(jwt.algorithms.ECAlgorithm.to_jwk(_EC.public_key(), as_dict=True)),
    "p384": jwt.PyJWK(jwt.algorithms.ECAlgorithm.to_jwk(_P384.public_key(), as_dict=True)),
}
_RULES = TokenRules(
    issuer="https://login.test",
    client_id="cli",
    audiences=("cli",),
    roles_claim="realm.roles",
    roles={"a": Role.ADMIN, "v": Role.VIEWER},
    leeway_s=5,
)


def _claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": "https://login.test", "aud": "cli", "sub": "s1", "iat": now, "exp": now + 60}
    return {
        name: value for name, value in {**claims, "realm": {"roles": ["v"]}, **changes}.items() if value is not None
    }


def _signed(claims: dict[str, Any], *, kid: str | None = "rsa", algorithm: str = "RS256", key: Any = _RSA) -> str:
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else {})


def test_a_token_signs_in_its_subject_with_the_highest_role_its_groups_give() -> None:
    found = judge_token(_signed(_claims(realm={"roles": ["x", "v", "a"]}, name="Ada\x1b L")), _KEYS, _RULES)
    assert (found.subject, found.name, found.role, found.email) == ("s1", "Ada L", Role.ADMIN, None)
    with_email = judge_token(_signed(_claims(email="a@b.c", email_verified=True)), _KEYS, _RULES)
    assert (with_email.email, with_email.name) == ("a@b.c", "a@b.c")
    assert judge_token(_signed(_claims(email="a@b.c", email_verified="true")), _KEYS, _RULES).email is None
    assert judge_token(_signed(_claims(), kid="ec", algorithm="ES256", key=_EC), _KEYS, _RULES).role is Role.VIEWER


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://login.test/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": ["cli", "other"]},
        {"aud": {"cli": 1}},
        {"azp": "other"},
        {"azp": 3},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"nbf": 10**10},
        {"iat": 10**10},
        {"iat": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "x" * 256},
        {"sub": 7},
    ],
)
def test_a_claim_that_is_missing_or_wrong_is_refused_in_the_same_words(changes: dict[str, Any]) -> None:
    said = set()
    for token in (_signed(_claims(**changes)) if changes.get("sub") != 7 else _odd_subject(), "no token"):
        with pytest.raises(UnauthorizedError) as refused:
            judge_token(token, _KEYS, _RULES)
        said.add(str(refused.value))
    assert len(said) == 1


def _odd_subject() -> str:
    payload = b'{"iss":"https://login.test","aud":"cli","sub":7,"iat":1,"exp":99999999999}'
    return jwt.api_jws.PyJWS().encode(payload, _RSA, "RS256", headers={"kid": "rsa"})


def test_several_audiences_need_the_party_the_token_was_made_for() -> None:
    assert judge_token(_signed(_claims(aud=["cli", "other"], azp="cli")), _KEYS, _RULES).subject == "s1"


def test_an_algorithm_must_be_allowed_and_fit_its_key() -> None:
    for token in (
        _signed(_claims(), algorithm="RS512"),
        _signed(_claims(), algorithm="PS256"),
        _signed(_claims(), kid="rsa", algorithm="ES256", key=_EC),
        _signed(_claims(), kid="ec", algorithm="RS256"),
        _signed(_claims(), kid="p384", algorithm="ES384", key=_P384),
        _signed(_claims(), algorithm="HS256", key="x" * 32),
        jwt.encode(_claims(), None, "none", headers={"kid": "rsa"}),
    ):
        with pytest.raises(UnauthorizedError):
            judge_token(token, _KEYS, _RULES)


def test_keys_in_the_header_and_unknown_critical_extensions_count_for_nothing() -> None:
    own = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True)
    stranger = rsa.generate_private_key(65537, 2048)
    for header in ({"kid": "rsa", "jwk": own}, {"kid": "rsa", "jku": "https://evil.test/jwks"}):
        with pytest.raises(UnauthorizedError):
            judge_token(jwt.encode(_claims(), stranger, "RS256", headers=header), _KEYS, _RULES)
    critical = jwt.encode(_claims(), _RSA, "RS256", headers={"kid": "rsa", "crit": ["b64"], "b64": True})
    with pytest.raises(UnauthorizedError):
        judge_token(critical, _KEYS, _RULES)


def test_an_unknown_or_absent_key_id_is_told_apart_so_that_the_provider_can_be_asked() -> None:
    for kid in ("new", None):
        with pytest.raises(UnknownKeyError):
            judge_token(_signed(_claims(), kid=kid), _KEYS, _RULES)
    assert judge_token(_signed(_claims(), kid=None), {"only": _KEYS["rsa"]}, _RULES).subject == "s1"


@pytest.mark.parametrize(
    "realm", [None, {}, {"roles": []}, {"roles": ["x"]}, {"roles": [1, {}]}, {"roles": {"a": 1}}, "a"]
)
def test_no_role_is_not_allowed_rather_than_unknown(realm: Any) -> None:
    with pytest.raises(ForbiddenError, match="has no role here"):
        judge_token(_signed(_claims(realm=realm)), _KEYS, _RULES)


def test_a_claim_named_like_the_path_comes_before_the_path() -> None:
    assert role_of({"realm.roles": "a", "realm": {"roles": ["v"]}}, _RULES) is Role.ADMIN


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}"))
def test_whatever_is_sent_is_judged(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        judge_token(text, _KEYS, _RULES)


def test_a_token_too_long_is_refused_unread() -> None:
    with pytest.raises(UnauthorizedError):
        judge_token(_signed(_claims(padding="x" * MAX_TOKEN_CHARS)), _KEYS, _RULES)


def test_an_actor_fits_its_column_whatever_the_subject() -> None:
    long = Operator(key_id="", name="n", role=Role.VIEWER, subject="s" * 255)
    other = Operator(key_id="", name="n", role=Role.VIEWER, subject="s" * 254 + "t")
    assert len(long.actor) <= 128
    assert long.actor != other.actor
