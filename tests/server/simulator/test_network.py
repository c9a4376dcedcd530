"""What a bad net does to windows: each fault by itself, and none of them invents or changes a window."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.messages import Window
from fleet_server.simulator import Arrival, NetFaults, deliver
from tests.server.simulator.fleets import MONDAY_NS, S, day_of, fleet

HOUR_NS = 3_600 * S
WINDOWS = day_of(fleet(40))


def arrived(**faults: Any) -> list[Arrival]:
    return list(deliver(WINDOWS, NetFaults(**faults), seed=3, started_ns=MONDAY_NS))


def key(window: Window) -> tuple[str, int]:
    return window.device, window.sequence


def test_a_perfect_net_hands_every_window_over_as_it_ends() -> None:
    assert [(one.at_ns, one.window) for one in arrived()] == [(window.end_ns, window) for window in WINDOWS]


@settings(max_examples=25, deadline=None)
@given(
    shares=st.tuples(*[st.floats(0, 0.5)] * 3),
    jitter_s=st.floats(0, 600),
    dark_every_s=st.sampled_from([0.0, 20_000.0]),
    seed=st.integers(0, 2**32),
)
def test_whatever_the_net_does_windows_stay_what_they_are_and_come_in_order_of_arrival(
    shares: tuple[float, float, float], jitter_s: float, dark_every_s: float, seed: int
) -> None:
    late, repeat, lost = shares
    faults = NetFaults(
        late_share=late, repeat_share=repeat, lost_share=lost, jitter_s=jitter_s,
        dark_every_s=dark_every_s, dark_for_s=dark_every_s / 4,
    )  # fmt: skip
    sent = {key(window): window for window in WINDOWS}
    came = list(deliver(WINDOWS, faults, seed=seed, started_ns=MONDAY_NS))
    assert [one.at_ns for one in came] == sorted(one.at_ns for one in came)
    assert all(one.window == sent[key(one.window)] and one.at_ns >= one.window.end_ns for one in came)
    assert max(Counter(key(one.window) for one in came).values(), default=1) <= 2
    if not lost:
        assert {key(one.window) for one in came} == set(sent)
    assert came == list(deliver(WINDOWS, faults, seed=seed, started_ns=MONDAY_NS))


def test_late_repeated_and_lost_windows_are_as_many_as_asked() -> None:
    late = sum(one.at_ns > one.window.end_ns for one in arrived(late_share=0.2, late_s=86_400))
    assert 0.15 < late / len(WINDOWS) < 0.25
    assert any(one.at_ns > one.window.end_ns + 24 * HOUR_NS for one in arrived(late_share=0.2, late_s=86_400))
    assert 1.05 < len(arrived(repeat_share=0.1)) / len(WINDOWS) < 1.15
    assert 0.85 < len(arrived(lost_share=0.1)) / len(WINDOWS) < 0.95


def test_jitter_reorders_the_windows_of_different_devices() -> None:
    ends = [one.window.end_ns for one in arrived(jitter_s=900)]
    assert ends != sorted(ends)


def test_a_dark_device_comes_back_with_everything_it_kept() -> None:
    came = arrived(dark_every_s=40_000, dark_for_s=20_000)
    assert len(came) == len(WINDOWS)
    together = Counter((one.window.device, one.at_ns) for one in came)
    assert max(together.values()) >= 4
    dark_s = sum(one.at_ns - one.window.end_ns for one in came if one.at_ns > one.window.end_ns)
    assert dark_s > 0
    in_order = {name: [one.window.sequence for one in came if one.window.device == name] for name, _ in together}
    assert all(sequences == sorted(sequences) for sequences in in_order.values())


def test_a_wrong_clock_dates_windows_wrongly_and_keeps_their_length() -> None:
    sent = {key(window): window for window in WINDOWS}
    off = [one for one in arrived(clock_share=0.3, clock_off_s=-7_200) if one.window != sent[key(one.window)]]
    assert 0.1 < len({one.window.device for one in off}) / 40 < 0.5
    for one in off:
        true = sent[key(one.window)]
        assert (one.window.start_ns, one.window.end_ns) == (true.start_ns - 2 * HOUR_NS, true.end_ns - 2 * HOUR_NS)
        assert one.at_ns == true.end_ns
    (first, *_) = arrived(clock_share=1, clock_off_s=-60 * 365 * 86_400)
    assert (first.window.start_ns, first.window.end_ns) == (0, 0)


def test_a_liar_claims_another_version_all_the_time() -> None:
    versions = {one.window.device: one.window.version for one in arrived(liar_share=0.2, liar_version="9.9.9")}
    assert 0.05 < sum(version == "9.9.9" for version in versions.values()) / 40 < 0.4
    came = arrived(liar_share=0.2, liar_version="9.9.9")
    assert all(one.window.version == versions[one.window.device] for one in came)
