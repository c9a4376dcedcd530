"""Enrolment tokens: n uses are n devices, whatever happens at once, and a refusal tells nothing."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Engine, select

from fleet_server.database.engine import open_engine
from fleet_server.database.identity_tables import enrolment_tokens
from fleet_server.database.schema import upgrade
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from fleet_server.identity.certificates import Issuing, is_good
from fleet_server.identity.device_credentials import enrol, enrol_device
from fleet_server.identity.enrolling import Enrolled, enrol_with_token
from fleet_server.identity.enrolment_tokens import (
    TokenTerms,
    _is_for,
    create_token,
    get_token,
    list_tokens,
    redeem,
    revoke_token,
)
from fleet_server.identity.revocation import get_revocation, revoke
from tests.server.identity.authority import make_issuing, new_request

NOW = 1_000 * 10**9
ANY = TokenTerms(labels={})
REFUSED = "unknown, used up, expired or not for this device"


@pytest.fixture
def issuing(tmp_path: Path) -> Issuing:
    return make_issuing(tmp_path / "ca")


def _token(engine: Engine, terms: TokenTerms = ANY) -> tuple[str, str]:
    with engine.begin() as connection:
        entry, token = create_token(connection, terms, fleet="demo", created_by="key:x", now_ns=NOW)
    return entry.id, token


def _redeem(engine: Engine, token: str, device: str = "pi-1", *, now_ns: int = NOW, fleet: str = "demo") -> None:
    with engine.begin() as connection:
        redeem(connection, token, fleet=fleet, device=device, key_sha256="k" * 64, now_ns=now_ns)


def test_a_token_has_256_random_bits_and_only_its_hash_is_kept(engine: Engine) -> None:
    tokens = {_token(engine)[1] for _ in range(10)}
    assert len(tokens) == 10
    assert all(token.startswith("eft_") and len(token) == 47 for token in tokens)
    with engine.connect() as connection:
        kept = str(connection.execute(select(enrolment_tokens)).all())
    assert not any(token in kept or token[4:] in kept for token in tokens)


def test_a_token_used_twice_is_refused_the_second_time(engine: Engine) -> None:
    _, token = _token(engine)
    _redeem(engine, token, "pi-1")
    with pytest.raises(UnauthorizedError, match=REFUSED):
        _redeem(engine, token, "pi-2")


def test_every_reason_for_a_refusal_sounds_the_same(engine: Engine) -> None:
    used_id, used = _token(engine)
    _redeem(engine, used)
    revoked_id, revoked = _token(engine)
    with engine.begin() as connection:
        assert revoke_token(connection, "demo", revoked_id, now_ns=NOW).revoked_ns == NOW
        assert revoke_token(connection, "demo", revoked_id, now_ns=NOW + 1).revoked_ns == NOW
    _, for_another = _token(engine, replace(ANY, device="pi-9"))
    _, by_pattern = _token(engine, replace(ANY, device_pattern="camera-*"))
    _, good = _token(engine)
    said = set()
    for token, late_s, fleet in (
        (used, 0, "demo"), (revoked, 0, "demo"), (for_another, 0, "demo"), (by_pattern, 0, "demo"),
        (good, 86_400, "demo"),
        (good, 0, "other"), (good[:-1], 0, "demo"), (good + "x", 0, "demo"), ("eft_", 0, "demo"), ("", 0, "demo"),
        ("x" * 5000, 0, "demo"), (good[4:], 0, "demo"), ("eft_é", 0, "demo"),
    ):  # fmt: skip
        with pytest.raises(UnauthorizedError) as refused:
            _redeem(engine, token, now_ns=NOW + late_s * 10**9, fleet=fleet)
        said.add(str(refused.value))
    assert len(said) == 1
    with engine.connect() as connection:
        assert get_token(connection, "demo", used_id).uses == 1
        assert {entry.uses for entry in list_tokens(connection, "demo", after="", limit=99)} == {0, 1}
        with pytest.raises(NotFoundError):
            get_token(connection, "other", used_id)


def test_two_devices_racing_for_one_token_have_one_winner(engine: Engine, issuing: Issuing) -> None:
    for uses, racers in ((1, 8), (3, 10)):
        _, token = _token(engine, replace(ANY, max_uses=uses))

        def race(number: int, token: str = token, uses: int = uses) -> Enrolled | None:
            try:
                with engine.begin() as connection:
                    return enrol_with_token(
                        connection, issuing, token=token, fleet="demo", device=f"pi-{uses}-{number}",
                        csr=new_request(), labels={}, now_ns=NOW,
                    )  # fmt: skip
            except UnauthorizedError:
                return None

        with ThreadPoolExecutor(racers) as pool:
            results = list(pool.map(race, range(racers)))
        assert sum(result is not None for result in results) == uses


def _enrol(
    engine: Engine, issuing: Issuing, token: str, device: str, *, csr: str, labels: dict[str, str] | None = None
) -> Enrolled:
    with engine.begin() as connection:
        return enrol_with_token(
            connection, issuing, token=token, fleet="demo", device=device, csr=csr, labels=labels or {}, now_ns=NOW
        )


def test_an_answer_that_was_lost_can_be_had_again_by_the_same_key_alone(engine: Engine, issuing: Issuing) -> None:
    token_id, token = _token(engine)
    csr = new_request()
    first = _enrol(engine, issuing, token, "pi-1", csr=csr)
    second = _enrol(engine, issuing, token, "pi-1", csr=csr)
    assert first.certificate is not None
    assert second.certificate is not None
    assert first.certificate.serial != second.certificate.serial
    with engine.connect() as connection:
        assert get_token(connection, "demo", token_id).uses == 1
    for device, request in (("pi-2", csr), ("pi-1", new_request())):
        with pytest.raises((UnauthorizedError, ConflictError)):
            _enrol(engine, issuing, token, device, csr=request)


def test_a_token_for_new_devices_takes_over_no_device_that_has_an_identity(engine: Engine, issuing: Issuing) -> None:
    enrol_device(engine, "demo", "old", {"site": "lab"}, now_ns=1)
    _, token = _token(engine, replace(ANY, max_uses=5))
    with pytest.raises(ConflictError, match="exactly this device"):
        _enrol(engine, issuing, token, "old", csr=new_request())
    _enrol(engine, issuing, token, "new", csr=new_request())
    with pytest.raises(ConflictError, match="exactly this device"):
        _enrol(engine, issuing, token, "new", csr=new_request())


def test_a_token_for_exactly_one_device_ends_its_revocation_and_its_older_certificates(
    engine: Engine, issuing: Issuing
) -> None:
    _, token = _token(engine)
    first = _enrol(engine, issuing, token, "pi-1", csr=new_request()).certificate
    assert first is not None
    with engine.begin() as connection:
        assert is_good(connection, "demo", "pi-1", first.serial)
        assert not is_good(connection, "demo", "pi-2", first.serial)
        revoke(connection, fleet="demo", device="pi-1", reason="lost", revoked_by="key:x", now_ns=NOW)
        assert not is_good(connection, "demo", "pi-1", first.serial)
    _, exact = _token(engine, replace(ANY, device="pi-1"))
    second = _enrol(engine, issuing, exact, "pi-1", csr=new_request()).certificate
    assert second is not None
    with engine.connect() as connection:
        assert get_revocation(connection, "demo", "pi-1") is None
        assert is_good(connection, "demo", "pi-1", second.serial)
        assert not is_good(connection, "demo", "pi-1", first.serial)


def test_the_tokens_labels_win_over_the_devices_own(engine: Engine, issuing: Issuing) -> None:
    _, token = _token(engine, TokenTerms(labels={"site": "lab"}))
    enrolled = _enrol(engine, issuing, token, "pi-1", csr=new_request(), labels={"site": "vault", "rack": "7"})
    assert enrolled.labels == {"site": "lab", "rack": "7"}


def test_a_bad_request_uses_nothing_up(engine: Engine, issuing: Issuing) -> None:
    token_id, token = _token(engine)
    for device, csr, labels in (
        ("pi-1", "nonsense", {}),
        ("Not An Id", new_request(), {}),
        ("pi-1", new_request(), {"bad key!": "x"}),
    ):
        with pytest.raises(InvalidRequestError):
            _enrol(engine, issuing, token, device, csr=csr, labels=labels)
    with engine.connect() as connection:
        assert get_token(connection, "demo", token_id).uses == 0


@pytest.mark.parametrize(
    "terms",
    [
        replace(ANY, max_uses=0), replace(ANY, max_uses=10**9), replace(ANY, life_s=1), replace(ANY, life_s=10**9),
        replace(ANY, device="UPPER"), replace(ANY, device="a", device_pattern="a*"),
        replace(ANY, device="a", max_uses=2),
        replace(ANY, device_pattern="[a-z]"), replace(ANY, device_pattern=""), replace(ANY, note="x" * 200),
        replace(ANY, note="\x1b[2J"), TokenTerms(labels={"bad key": "x"}),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(engine: Engine, terms: TokenTerms) -> None:
    with pytest.raises(InvalidRequestError):
        _token(engine, terms)


@given(device=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,12}", fullmatch=True))
@settings(max_examples=25)
def test_a_pattern_means_only_its_wildcards(device: str) -> None:
    class Row:
        device = None
        device_pattern = "camera-*"

    row = Row()
    assert _is_for(row, device) == device.startswith("camera-")  # type: ignore[arg-type]  # the two columns it reads
    row.device_pattern = device
    assert _is_for(row, device)  # type: ignore[arg-type]


class TokenLife(RuleBasedStateMachine):
    """Uses, lost answers, revocation and time in any order: never more devices than uses, none after the end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = open_engine(f"sqlite:///{self.folder.name}/t.db")
        upgrade(self.engine)
        self.now_ns, self.let_in, self.is_over, self.number = NOW, set[str](), False, 0
        with self.engine.begin() as connection:
            terms = replace(ANY, max_uses=3, life_s=60)
            self.entry, self.token = create_token(connection, terms, fleet="demo", created_by="x", now_ns=NOW)

    @rule(repeat=st.booleans())
    def try_to_enrol(self, repeat: bool) -> None:
        self.number += 1
        device = min(self.let_in) if repeat and self.let_in else f"pi-{self.number}"
        may = not self.is_over and len(self.let_in) < 3 and device not in self.let_in
        try:
            with self.engine.begin() as connection:
                redeem(connection, self.token, fleet="demo", device=device, key_sha256=None, now_ns=self.now_ns)
                enrol(connection, "demo", device, now_ns=self.now_ns)
            assert may
            self.let_in.add(device)
        except (UnauthorizedError, ConflictError):
            assert not may

    @rule()
    def revoke(self) -> None:
        with self.engine.begin() as connection:
            revoke_token(connection, "demo", self.entry.id, now_ns=self.now_ns)
        self.is_over = True

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * 10**9
        self.is_over = self.is_over or self.now_ns >= NOW + 60 * 10**9

    @invariant()
    def uses_are_devices(self) -> None:
        with self.engine.connect() as connection:
            assert get_token(connection, "demo", self.entry.id).uses == len(self.let_in) <= 3

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()


TestTokenLife = TokenLife.TestCase
TestTokenLife.settings = settings(max_examples=5, stateful_step_count=12, deadline=None)
