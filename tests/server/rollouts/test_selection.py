"""Whom a policy means."""

from __future__ import annotations

import fnmatch
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.rollouts.policy import RolloutPolicy, Selector, parse_policy
from fleet_server.rollouts.selection import DeviceFacts, LeftOut, select_devices, selected, selects, why_left_out

_CAMERA = DeviceFacts(
    device="camera-1",
    labels={"site": "lyon", "role": "door"},
    cpu_signature="aarch64:asimd+dotprod",
    agent_version="0.3.0",
    runs="1.0.0",
    online=True,
    has_reported=True,
)


def _but(**changes: Any) -> DeviceFacts:
    return msgspec.structs.replace(_CAMERA, **changes)


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        (Selector(), True),
        (Selector(labels={"site": "lyon"}), True),
        (Selector(labels={"site": ["nice", "lyon"], "role": "door"}), True),
        (Selector(labels={"site": "nice"}), False),
        (Selector(labels={"floor": "1"}), False),
        (Selector(devices=["camera-*"]), True),
        (Selector(devices=["camera-1"]), True),
        (Selector(devices=["Camera-*", "camera-[23]"]), False),
        (Selector(cpu=["aarch64:*dotprod*"]), True),
        (Selector(cpu=["x86_64*"]), False),
        (Selector(runs=["1.0.0", "0.9.0"]), True),
        (Selector(runs=[""]), False),
        (Selector(min_agent_version="0.3.0"), True),
        (Selector(min_agent_version="0.3.0-rc.1"), True),
        (Selector(min_agent_version="0.10.0"), False),
        (Selector(online=True), True),
        (Selector(online=False), False),
        (Selector(labels={"site": "lyon"}, online=False), False),
    ],
)
def test_everything_that_a_selector_names_must_hold(selector: Selector, chosen: bool) -> None:
    assert selects(selector, _CAMERA) is chosen


@pytest.mark.parametrize(
    "selector",
    [Selector(cpu=["*"]), Selector(runs=[""]), Selector(min_agent_version="0.0.1")],
)
def test_a_device_that_never_reported_is_not_selected_by_what_it_would_report(selector: Selector) -> None:
    silent = DeviceFacts(device="camera-2", labels={"site": "lyon"}, online=True)
    assert not selects(selector, silent)
    assert why_left_out(RolloutPolicy(), silent) is LeftOut.NEVER_REPORTED


@pytest.mark.parametrize("version", ["", "0.3", "newest", "1.0.0+build", "²", "9" * 50])
def test_an_agent_version_that_cannot_be_read_is_no_version(version: str) -> None:
    assert not selects(Selector(min_agent_version="0.0.1"), _but(agent_version=version))


def test_an_exclusion_outranks_the_selector_and_each_device_is_left_out_for_one_reason() -> None:
    policy = parse_policy({"selector": {"labels": {"site": "lyon"}}, "exclude": [{"devices": ["camera-9*"]}]})
    fleet = [_CAMERA, _but(device="camera-90"), _but(labels={}), _but(has_reported=False), _but(device="lamp")]
    found = select_devices(policy, fleet)
    assert [facts.device for facts in found.devices] == ["camera-1", "lamp"]
    assert found.left_out == {LeftOut.EXCLUDED: 1, LeftOut.NOT_SELECTED: 1, LeftOut.NEVER_REPORTED: 1}
    assert [selected(policy, facts) for facts in fleet] == [True, False, False, False, True]


_NAMES = st.text("ab-1", min_size=1, max_size=5)
_PATTERNS = st.lists(st.text("ab-1*?[]!", min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(_NAMES, _PATTERNS)
def test_many_patterns_at_once_mean_what_each_means_alone(name: str, patterns: list[str]) -> None:
    expected = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    assert selects(Selector(devices=patterns), _but(device=name)) is expected
