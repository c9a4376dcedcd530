"""A device's network is cut, slow or late, and its process is killed: it answers on, and its windows arrive later."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.accounting import identities, identities_of, require_every_window_once, wait_until_drained
from tests.end_to_end.fleet import Device, Fleet, eventually, plain_model
from tests.end_to_end.test_server_faults import BOTH_BROKERS, Broker

_NS = 10**9


def wait_for_first_window(fleet: Fleet, device: Device) -> None:
    """Return when the server has something of this device."""
    eventually(lambda: fleet.windows(device.name), 20, f"{device.name}'s first window is stored")


@BOTH_BROKERS
def test_a_device_cut_off_for_thirty_windows_answers_on_and_delivers_each_in_its_own_time(
    tmp_path: Path, broker: Broker
) -> None:
    with Fleet(tmp_path, broker=broker) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1)
        wait_for_first_window(fleet, device)
        device.relay.cut()
        cut_ns, answered = time.time_ns(), device.answered()
        eventually(lambda: len(device.outbox()) >= 30, 20, "thirty windows wait on the device")
        eventually(lambda: device.answered() >= answered + 30, 20, "the device answered on without the network")
        kept, back_ns = device.outbox(), time.time_ns()
        offline = [window for window in kept if window.end_ns > cut_ns]
        assert len(offline) >= 28
        assert all(cut_ns < window.end_ns <= back_ns for window in offline)
        assert identities(fleet.windows("camera-1")).isdisjoint(identities_of(offline))
        device.relay.restore()
        require_every_window_once(fleet, [device])
        windows = fleet.windows("camera-1")
        assert identities_of(kept) <= identities(windows)
        for earlier, later in itertools.pairwise(windows):
            gap_s = (later["start_ns"] - earlier["end_ns"]) / _NS
            assert abs(gap_s) < 0.05, f"{gap_s} s between windows {earlier['sequence']} and {later['sequence']}"


def test_a_device_killed_with_a_full_outbox_delivers_on_its_next_start_what_was_durable(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1)
        wait_for_first_window(fleet, device)
        device.relay.cut()
        eventually(lambda: len(device.outbox()) >= 30, 20, "thirty windows wait on the device")
        device.kill()
        durable = device.outbox()
        first_boot = {window.boot_id for window in durable}
        assert len(first_boot) == 1
        device.relay.restore()
        device.start()
        eventually(
            lambda: identities_of(durable) <= identities(fleet.windows("camera-1")),
            20,
            "every window that was durable is stored",
        )
        eventually(
            lambda: {window["boot_id"] for window in fleet.windows("camera-1")} > first_boot,
            20,
            "windows of the second boot are stored, too",
        )
        wait_until_drained(fleet, [device])
        device.stop()
        eventually(
            lambda: fleet.ingest_status()["windows"] == len(fleet.windows("camera-1")), 20, "ledger and store agree"
        )
        status = fleet.ingest_status()
        assert (status["boots"], status["missing"]) == (2, 0), status["incomplete"]
        second = [w for w in fleet.windows("camera-1") if w["boot_id"] not in first_boot]
        assert sum(window["count"] for window in second) == device.answered()


def test_an_outbox_without_room_merges_windows_and_every_inference_still_arrives(tmp_path: Path) -> None:
    idle = {f"idle-{number}": plain_model() for number in range(4)}  # each fills the outbox with windows of its own
    small: dict[str, dict[str, Any]] = {"telemetry": {"outbox_max_bytes": 64 * 1024}, "models": idle}
    with Fleet(tmp_path) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1, rate=100, settings=small)
        device.relay.cut()
        eventually(lambda: any(window.covers for window in device.outbox()), 60, "windows were merged for room")
        assert device.answered() > 0
        device.relay.restore()
        wait_until_drained(fleet, [device])
        assert device.stop() == 0
        eventually(
            lambda: sum(window["count"] for window in fleet.windows("camera-1")) == device.answered(),
            20,
            "every inference is counted",
        )
        assert len(fleet.windows("camera-1")) < device.status()["windows"]
        assert fleet.ingest_status()["missing"] == 0


def test_a_slow_and_late_link_delays_windows_and_loses_none(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        slow, good = fleet.add_device("slow-1", window_s=0.1), fleet.add_device("good-1", window_s=0.1)
        wait_for_first_window(fleet, slow)
        slow.relay.throttle(2_000)
        slow.relay.delay(0.3)
        answered, delivered = slow.answered(), len(fleet.windows("slow-1"))
        eventually(lambda: len(slow.outbox()) >= 15, 30, "windows pile up behind the slow link")
        eventually(lambda: len(fleet.windows("slow-1")) > delivered + 5, 30, "windows trickle through")
        assert slow.answered() > answered + 30
        assert len(good.outbox()) < 15
        slow.relay.restore()
        require_every_window_once(fleet, [slow, good])


def test_a_link_that_drops_again_and_again_loses_no_window_and_counts_none_twice(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        device = fleet.add_device("camera-1", window_s=0.1)
        wait_for_first_window(fleet, device)
        for _ in range(5):
            accepted = device.relay.accepted
            device.relay.drop_connections()
            eventually(lambda accepted=accepted: device.relay.accepted > accepted, 10, "the device connects again")  # type: ignore[misc] # a bound default
        require_every_window_once(fleet, [device])
