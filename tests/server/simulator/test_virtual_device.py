"""One virtual device: the phases it passes, what it keeps until confirmed, and that a seed repeats it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.messages import Assignment, Desired, Event, Phase, Probation, Reported, Window, decode
from fleet_protocol.topics import TopicKind
from fleet_server.cli import app
from fleet_server.errors import InvalidRequestError
from fleet_server.simulator import Behaviour, FleetBehaviour, NetFaults, VirtualDevice
from fleet_server.simulator.virtual_device import MAX_UNCONFIRMED, Record
from models.digits.recipe import HERE

S = 10**9
T0_NS = 1_750_000_000 * S
_BOOT = "0000000a-00000001"
_BEHAVIOUR = FleetBehaviour(
    window_s=60,
    update_s=4,
    by_version={
        "2.0.0": Behaviour(ends_in=Phase.REVERTED),
        "3.0.0": Behaviour(ends_in=Phase.FAILED),
        "4.0.0": Behaviour(ends_in=Phase.REJECTED),
    },
)


def device(*, seed: int = 1, index: int = 0, behaviour: FleetBehaviour = _BEHAVIOUR) -> VirtualDevice:
    return VirtualDevice(name="sim-00001", index=index, boot_id=_BOOT, seed=seed, behaviour=behaviour, started_ns=T0_NS)


def desired(generation: int, version: str | None) -> Desired:
    assignments = [Assignment(model="digits", version=version, bundle=version[0] * 64)] if version else []
    return Desired(
        fleet="acme",
        device="sim-00001",
        generation=generation,
        issued_at_ns=T0_NS,
        assignments=assignments,
        probation=Probation(duration_s=2),
    )


def carry_through(virtual: VirtualDevice) -> list[Phase]:
    """Let every step happen; the phases the device told of."""
    phases, now_s = [], 0.0
    while (due_s := virtual.next_step_s()) is not None:
        now_s = max(now_s, due_s)
        for kind, payload in virtual.step(now_s=now_s, now_ns=T0_NS + int(now_s * S) + 1):
            if kind is TopicKind.EVENTS and (phase := decode(Event, payload).phase):
                phases.append(phase)
    return phases


def report(virtual: VirtualDevice) -> Reported:
    return decode(Reported, virtual.report(now_ns=T0_NS)[1])


def windows(records: list[Record]) -> list[Window]:
    return [decode(Window, payload) for kind, payload in records if kind is TopicKind.TELEMETRY]


def test_an_update_passes_every_phase_in_order_and_ends_healthy() -> None:
    virtual = device()
    virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
    steps = [Phase.DOWNLOADING, Phase.STAGED, Phase.WARMING, Phase.PROBATION, Phase.HEALTHY]
    assert carry_through(virtual) == steps
    (entry,) = report(virtual).models
    assert (entry.phase, entry.active, entry.version) == (Phase.HEALTHY, "1" * 64, "1.0.0")


@pytest.mark.parametrize(
    ("version", "end"), [("2.0.0", Phase.REVERTED), ("3.0.0", Phase.FAILED), ("4.0.0", Phase.REJECTED)]
)
def test_a_version_that_does_not_hold_leaves_the_incumbent_at_work(version: str, end: Phase) -> None:
    virtual = device()
    virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    virtual.accept(desired(2, version), now_s=100, now_ns=T0_NS)
    assert carry_through(virtual)[-1] is end
    (entry,) = report(virtual).models
    assert (entry.phase, entry.active, entry.desired) == (end, "1" * 64, version[0] * 64)
    assert entry.error
    virtual.accept(desired(3, "1.0.0"), now_s=200, now_ns=T0_NS)
    assert report(virtual).models[0].phase is Phase.HEALTHY


def test_an_old_generation_changes_nothing_and_an_unassigned_model_goes() -> None:
    virtual = device()
    virtual.accept(desired(5, "1.0.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    assert virtual.accept(desired(4, None), now_s=9, now_ns=T0_NS) == []
    assert len(virtual.accept(desired(5, "2.0.0"), now_s=9, now_ns=T0_NS)) == 1
    assert virtual.running() == {"digits": "1.0.0"}
    virtual.accept(desired(6, None), now_s=9, now_ns=T0_NS)
    assert virtual.running() == {}


def test_what_the_old_version_did_is_told_before_the_new_one_serves() -> None:
    virtual = device()
    virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    virtual.accept(desired(2, "5.0.0"), now_s=0, now_ns=T0_NS)
    told: list[Window] = []
    while (due_s := virtual.next_step_s()) is not None:
        told += windows(virtual.step(now_s=due_s, now_ns=T0_NS + int((60 + due_s) * S)))
    assert [window.version for window in told] == ["1.0.0"]
    (later,) = windows(virtual.close_windows(now_s=200, now_ns=T0_NS + 200 * S))
    assert (later.version, later.start_ns) == ("5.0.0", told[0].end_ns)


def test_records_are_repeated_until_confirmed_and_at_most_so_many_are_kept() -> None:
    virtual = device()
    virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    virtual.confirm(_BOOT, [(1, 1000)])
    for minute in range(3):
        virtual.close_windows(now_s=100 + minute, now_ns=T0_NS + (100 + minute) * S)
    assert virtual.overdue(before_s=99, now_s=200) == []
    late = windows(virtual.overdue(before_s=101, now_s=200))
    assert len(late) == 2
    virtual.confirm("ffffffff-00000001", [(1, 1000)])
    virtual.confirm(_BOOT, [(late[0].sequence, late[0].sequence)])
    assert virtual.unconfirmed == 2
    for second in range(MAX_UNCONFIRMED + 5):
        virtual.close_windows(now_s=300 + second, now_ns=T0_NS + (300 + second) * S)
    assert virtual.unconfirmed == MAX_UNCONFIRMED
    assert virtual.told.dropped == 7


def test_a_seed_repeats_a_device_and_another_device_differs() -> None:
    def told(seed: int = 1, index: int = 0) -> Window:
        virtual = device(seed=seed, index=index)
        virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
        carry_through(virtual)
        (window,) = windows(virtual.close_windows(now_s=60, now_ns=T0_NS + 60 * S))
        return window

    assert told() == told()
    assert told().latency != told(index=1).latency
    assert told().latency != told(seed=2).latency


def test_a_version_with_a_manifest_sends_what_its_reference_describes() -> None:
    manifest = read_manifest(HERE / "bundles" / "1.1.0")
    behaviour = FleetBehaviour(rate_per_s=20, manifests={("digits", "1.1.0"): manifest})
    virtual = device(behaviour=behaviour)
    virtual.accept(desired(1, "1.1.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    (window,) = windows(virtual.close_windows(now_s=60, now_ns=T0_NS + 60 * S))
    assert set(window.features) == {"mean", "std", "brightness", "sharpness"}
    assert sum(window.classes.values()) == window.count > 900
    assert window.score
    assert len(virtual.overdue(before_s=60, now_s=60)[-1][1]) < 4096


def test_behaviour_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="accuracy"):
        Behaviour(accuracy=1.5)
    with pytest.raises(InvalidRequestError, match="cannot end in LOST"):
        Behaviour(ends_in=Phase.LOST)
    with pytest.raises(InvalidRequestError, match="shorter window"):
        FleetBehaviour(rate_per_s=1e6, window_s=3600)


@pytest.mark.parametrize("given", ["1.0.0", "1.0.0:accuracy=high", "1.0.0:acuracy=0.9", ":accuracy=0.9"])
def test_the_command_refuses_a_version_it_does_not_understand(given: str) -> None:
    result = CliRunner().invoke(app, ["simulate", "--mqtt-url", "mqtt://127.0.0.1:1", "--version", given])
    assert isinstance(result.exception, InvalidRequestError)
    assert given in str(result.exception)


def bad_net(**faults: Any) -> VirtualDevice:
    virtual = device(behaviour=FleetBehaviour(window_s=60, update_s=4, network=NetFaults(**faults)))
    virtual.accept(desired(1, "1.0.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    virtual.confirm(_BOOT, [(1, 1000)])
    return virtual


def test_a_late_window_is_sent_when_its_time_has_come_and_not_before() -> None:
    virtual = bad_net(late_share=1, late_s=600, late_spread=0)
    assert virtual.close_windows(now_s=100, now_ns=T0_NS + 100 * S) == []
    assert virtual.overdue(before_s=690 - 10, now_s=690) == []
    (window,) = windows(virtual.overdue(before_s=701 - 10, now_s=701))
    assert window.end_ns == T0_NS + 100 * S


def test_a_lost_window_is_told_of_and_a_repeated_one_sent_twice() -> None:
    gone, doubled = bad_net(lost_share=1), bad_net(repeat_share=1)
    assert gone.close_windows(now_s=100, now_ns=T0_NS + 100 * S) == []
    assert (gone.told.lost, gone.told.windows, gone.unconfirmed) == (1, 1, 0)
    first, second = windows(doubled.close_windows(now_s=100, now_ns=T0_NS + 100 * S))
    assert first == second
    assert doubled.unconfirmed == 1


def test_a_device_says_what_it_is_and_how_fast_it_found_each_variant() -> None:
    manifest = read_manifest(HERE / "bundles" / "1.1.0")
    behaviour = FleetBehaviour(manifests={("digits", "1.1.0"): manifest}, sites={"lisbon": 0.0})
    virtual = device(behaviour=behaviour, index=1)  # the second kind of hardware is aarch64
    virtual.accept(desired(1, "1.1.0"), now_s=0, now_ns=T0_NS)
    carry_through(virtual)
    told = report(virtual)
    assert told.labels["site"] == "lisbon"
    assert {"hardware", "cohort"} <= set(told.labels)
    assert told.onnxruntime_version
    (entry,) = told.models
    assert {figures.variant for figures in entry.variants} == {variant.name for variant in manifest.variants}
    (window,) = windows(virtual.close_windows(now_s=60, now_ns=T0_NS + 60 * S))
    assert window.variant == entry.variant
    assert entry.variant in {variant.name for variant in manifest.variants if "aarch64" in variant.architectures}
    assert window.resources is not None
    assert window.resources.temperature_c
    assert window.estimated_accuracy is not None
    assert window.embedding_count == window.count
