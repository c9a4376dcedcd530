"""What a device believes: its chain of roots, who directs it, and until when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.control import transitions
from edge_agent.control.state import ControlState
from edge_agent.control.trust import KnownTime, RootChain, Trust, why_held_back
from edge_agent.errors import ConfigError, DesiredRefusedError
from fleet_protocol.errors import ProtocolError, SignatureError
from fleet_protocol.messages import Desired, Phase
from fleet_protocol.root import KeyRule, sign_root
from tests.agent.control.roots import (
    DAY_NS,
    DIRECTOR,
    NEW_DIRECTOR,
    NOW_NS,
    ROOT_KEY,
    STRANGER,
    desired,
    pin,
    root,
    signed,
    signed_root,
)


def open_chain(folder: Path, pinned: bytes | None = None) -> RootChain:
    return RootChain(folder / "roots", pinned=pin(folder, pinned or signed_root(1)), fleet="f")


def trust_of(chain: RootChain, *, clock_ns: int = NOW_NS, uptime: list[int] | None = None) -> Trust:
    up = uptime or [0]
    known = KnownTime(clock_ns=lambda: clock_ns, uptime_ns=lambda: up[0])
    return Trust(fleet="f", device="d", director=None, chain=chain, known_time=known)


def test_the_newest_accepted_root_is_there_after_a_restart(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    chain.add(signed_root(2))
    chain.add(signed_root(3, director=NEW_DIRECTOR))

    assert open_chain(tmp_path).newest == chain.newest == root(3, director=NEW_DIRECTOR)


@pytest.mark.parametrize("version", [1, 2, 4])
def test_rollback_of_the_root_is_refused_and_so_is_a_skip(tmp_path: Path, version: int) -> None:
    chain = open_chain(tmp_path)
    chain.add(signed_root(2))
    with pytest.raises(SignatureError, match="does not follow"):
        chain.add(signed_root(version))
    assert open_chain(tmp_path).newest.version == 2


def test_a_root_that_the_pinned_ones_keys_did_not_sign_is_refused(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    with pytest.raises(SignatureError):
        chain.add(sign_root(root(2), [STRANGER]))
    assert not (tmp_path / "roots").exists()


@pytest.mark.parametrize("damage", [b"", b"torn", signed_root(5), signed_root(2, fleet="g")])
def test_a_damaged_root_on_disk_is_not_used_and_nothing_new_begins_until_it_is_back(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    chain = open_chain(tmp_path)
    chain.add(signed_root(2))
    (tmp_path / "roots" / "2.json").write_bytes(damage)

    chain = open_chain(tmp_path)
    assert (chain.newest.version, chain.is_broken) == (1, True)
    assert "2.json is damaged or gone" in caplog.text
    assert "trust root 2 is not here yet" in trust_of(chain).held_back(desired())
    chain.add(signed_root(2))
    assert not chain.is_broken
    assert trust_of(chain).held_back(desired()) == ""


@pytest.mark.parametrize("pinned", [b"no root", signed_root(1, fleet="g"), sign_root(root(1), [STRANGER])])
def test_a_pinned_root_that_cannot_be_believed_stops_the_agent_with_its_reason(tmp_path: Path, pinned: bytes) -> None:
    with pytest.raises(ConfigError, match=r"trust\.root .*copy the root from the operator again"):
        open_chain(tmp_path, pinned)


def test_a_director_that_the_newest_root_does_not_name_directs_no_more(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    trust = trust_of(chain)
    assert trust.verify(signed(desired())) == desired()
    chain.add(signed_root(2, director=NEW_DIRECTOR))
    with pytest.raises(DesiredRefusedError):
        trust.verify(signed(desired(2)))
    assert trust.verify(signed(desired(2), NEW_DIRECTOR)) == desired(2)


def test_fast_forward_by_a_stolen_director_key_is_undone_by_the_next_director(tmp_path: Path) -> None:
    """The thief used up the highest generation; the new director's small one is the newest all the same."""
    chain = open_chain(tmp_path)
    trust = trust_of(chain)
    stolen = signed(desired(2**53 - 1))
    state = transitions.accepted(ControlState(), trust.verify(stolen), directed_by=trust.signers(stolen))
    assert trust.still_counts(state.directed_by)

    chain.add(signed_root(2, director=NEW_DIRECTOR))
    assert not trust.still_counts(state.directed_by)
    right = signed(desired(7), NEW_DIRECTOR)
    state = transitions.accepted(state, trust.verify(right), directed_by=trust.signers(right), anew=True)
    assert (state.generation, state.directed_by) == (7, (NEW_DIRECTOR.public.key_id,))
    assert trust.still_counts(state.directed_by)
    assert transitions.accepted(state, desired(7), directed_by=state.directed_by) is state


def test_freeze_by_withheld_messages_is_seen_when_the_newest_word_expires(tmp_path: Path) -> None:
    word, chain = desired(), open_chain(tmp_path)
    assert trust_of(chain, clock_ns=word.expires_ns - 1).held_back(word) == ""
    assert "generation 1 expired on" in trust_of(chain, clock_ns=word.expires_ns).held_back(word)


def test_freeze_is_seen_by_a_device_whose_clock_was_never_set(tmp_path: Path) -> None:
    uptime = [5]
    trust = trust_of(open_chain(tmp_path), clock_ns=3 * DAY_NS, uptime=uptime)
    assert trust.held_back(desired()) == ""
    uptime[0] += 14 * DAY_NS
    assert "expired" in trust.held_back(desired())
    fresh = replace(desired(), issued_at_ns=NOW_NS + 14 * DAY_NS, expires_ns=NOW_NS + 28 * DAY_NS)
    assert trust.held_back(fresh) == "", "a later word brings a later time"


def test_a_word_from_the_future_is_good_on_a_device_whose_clock_was_never_set(tmp_path: Path) -> None:
    trust = trust_of(open_chain(tmp_path), clock_ns=0)
    assert trust.held_back(trust.verify(signed(desired()))) == ""


def test_a_clock_that_was_set_to_2100_harms_only_while_it_is_wrong(tmp_path: Path) -> None:
    clock = [4_102_444_800 * 10**9]
    known = KnownTime(clock_ns=lambda: clock[0], uptime_ns=lambda: 0)
    trust = Trust(fleet="f", device="d", director=None, chain=open_chain(tmp_path), known_time=known)
    assert "expired" in trust.held_back(desired())
    clock[0] = NOW_NS
    assert trust.held_back(desired()) == ""


def test_a_server_whose_clock_stood_on_2100_harms_only_until_its_next_word(tmp_path: Path) -> None:
    trust = trust_of(open_chain(tmp_path))
    wrong_ns = 4_102_444_800 * 10**9
    assert trust.held_back(desired(issued_at_ns=wrong_ns, expires_ns=wrong_ns + DAY_NS)) != ""
    assert trust.held_back(desired(2)) == ""


def test_an_expired_root_begins_nothing_new_and_says_so(tmp_path: Path) -> None:
    trust = trust_of(open_chain(tmp_path, signed_root(1, expires_ns=NOW_NS)))
    assert "trust root 1 expired on" in trust.held_back(desired())


def test_a_newer_root_that_the_server_names_is_waited_for(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    assert "trust root 2 is not here yet" in trust_of(chain).held_back(desired(root_version=2))
    chain.add(signed_root(2))
    assert trust_of(chain).held_back(desired(root_version=2)) == ""


def test_plain_keys_know_freshness_too() -> None:
    known = KnownTime(clock_ns=lambda: NOW_NS + 15 * DAY_NS, uptime_ns=lambda: 0)
    rule = KeyRule((DIRECTOR.public,), 1)
    trust = Trust(fleet="f", device="d", director=rule, chain=None, known_time=known)
    assert "expired" in trust.held_back(desired(root_version=9))
    assert trust.held_back(desired(expires_ns=0, root_version=9)) == ""


def test_the_same_word_issued_later_stays_fresh_and_begins_nothing_again() -> None:
    state = transitions.accepted(ControlState(), desired(), directed_by=("x",))
    state = replace(state, models={"m": replace(state.models["m"], phase=Phase.HEALTHY)})
    later = replace(desired(), issued_at_ns=NOW_NS + DAY_NS, expires_ns=NOW_NS + 15 * DAY_NS, root_version=2)

    after = transitions.refreshed(state, later, directed_by=("y",))
    assert (after.desired, after.directed_by, after.models) == (later, ("y",), state.models)


CHANGES: list[dict[str, Any]] = [
    {"issued_at_ns": NOW_NS},
    {"issued_at_ns": NOW_NS - 1},
    {"issued_at_ns": NOW_NS + 1, "generation": 2},
    {"issued_at_ns": NOW_NS + 1, "assignments": []},
    {"issued_at_ns": NOW_NS + 1, "retry": ["a" * 64]},
    {"issued_at_ns": NOW_NS + 1, "jitter_s": 1.0},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_nothing_but_the_same_word_issued_later_refreshes(changes: dict[str, Any]) -> None:
    state = transitions.accepted(ControlState(), desired())
    assert transitions.refreshed(state, replace(desired(), **changes)) is state


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        lambda issued, lives, named: desired(issued_at_ns=issued, expires_ns=issued + lives, root_version=named),
        st.integers(1, 2**60), st.integers(1, 2**60), st.integers(0, 5),
    ),
    st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**62),
)  # fmt: skip
def test_whatever_may_begin_is_fresh_and_vouched_for(word: Desired, version: int, seen: int, now_ns: int) -> None:
    held = root(version)
    if not why_held_back(word, root=held, seen_version=seen, now_ns=now_ns):
        assert now_ns < min(word.expires_ns, held.expires_ns)
        assert version >= max(seen, word.root_version)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=6))
def test_the_chain_on_disk_only_ever_grows_by_one(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    chain, version = open_chain(folder), 1
    for offered, is_right, restarts in steps:
        envelope = sign_root(root(offered), [ROOT_KEY if is_right else STRANGER])
        try:
            chain.add(envelope)
        except ProtocolError:
            assert not (is_right and offered == version + 1)
        else:
            assert is_right
            assert offered == version + 1
            version = offered
        chain = open_chain(folder) if restarts else chain
        assert chain.newest.version == version
