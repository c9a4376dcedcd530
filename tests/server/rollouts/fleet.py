"""A small fleet for the driver's tests: a real database file, a real telemetry store, a clock that is set.

Devices are virtual but speak as real ones do: they verify and read the signed desired state, and write their
reports and windows where the server's ingest writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, insert, select, update

from fleet_protocol.envelope import DESIRED_TYPE, verify_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import (
    Assignment,
    Desired,
    ModelReport,
    Outcomes,
    Phase,
    Probation,
    Reported,
    Window,
    decode,
)
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import desired, devices, metadata, models, versions
from fleet_server.rollouts.desired import assign
from fleet_server.rollouts.driver import RolloutDriver, StepReport
from fleet_server.rollouts.repository import create_rollout, get_rollout
from fleet_server.rollouts.views import RolloutView
from fleet_server.rollouts.work_share import WorkShare
from fleet_server.telemetry_store.embedded import EmbeddedStore

FLEET = "acme"
MODEL = "digits"
S = 1_000_000_000
POLICY: dict[str, Any] = {
    "stages": [{"percent": 20, "bake_s": 10}, {"percent": 100, "bake_s": 10}],
    "gates": [
        {"gate": "update_failures"},
        {"gate": "error_rate", "max_increase": 0.1},
        {"gate": "outcome_accuracy", "max_drop": 0.15},
    ],
    "max_bake_extensions": 1,
    "deploy_deadline_s": 60,
    "salt": "test",
}


def bundle(version: str) -> str:
    """The digest these tests give a version."""
    return version.replace(".", "").rjust(64, "0")


@dataclass
class VirtualDevice:
    """A device and what it will answer: each version's accuracy in hundredths, and the phase an update ends in."""

    name: str
    accuracy: dict[str, int]
    ends_in: Phase = Phase.HEALTHY
    online: bool = True
    generation: int = 0
    active: Assignment | None = None
    sequence: int = 0


@dataclass
class Fleet:
    """Everything the driver needs, in one folder; the database is there too unless another is named."""

    folder: Path
    database_url: str = ""
    now_ns: int = 1_700_000_000 * S
    signer: PrivateKey = field(default_factory=PrivateKey.generate)
    devices: dict[str, VirtualDevice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine: Engine = open_engine(self.database_url or f"sqlite:///{self.folder / 'fleet.db'}")
        metadata.create_all(self.engine)
        self.store = EmbeddedStore(self.folder / "telemetry.db")
        self.driver = self.new_driver()
        with self.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=self.now_ns))

    def close(self) -> None:
        self.store.close()
        self.engine.dispose()

    def new_driver(self) -> RolloutDriver:
        return RolloutDriver(
            self.engine, self.store, self.signer, lambda: self.now_ns, share=WorkShare(spent=lambda: 0.0)
        )

    def publish(self, version: str, *, accuracy: float | None = 0.98) -> None:
        expected = {} if accuracy is None else {"accuracy": accuracy}
        with self.engine.begin() as connection:
            connection.execute(
                insert(versions).values(
                    model=MODEL,
                    version=version,
                    bundle=bundle(version),
                    manifest={"variants": [{"name": "int8", "expected": expected}]},
                    published_by="test",
                    published_ns=self.now_ns,
                )
            )

    def enrol(self, count: int, *, labels: dict[str, str] | None = None, **accuracy: int) -> list[VirtualDevice]:
        """`count` new devices with `v1_0_0=98`-like accuracies in percent; they have reported once."""
        by_version = {name[1:].replace("_", "."): percent for name, percent in accuracy.items()}
        new = [VirtualDevice(name=f"device-{len(self.devices) + n}", accuracy=by_version) for n in range(count)]
        for device in new:
            self.devices[device.name] = device
            with self.engine.begin() as connection:
                connection.execute(
                    insert(devices).values(
                        fleet=FLEET, device=device.name, labels=labels or {}, online=True, created_ns=self.now_ns
                    )
                )
            self.report(device)
        return new

    def install(self, version: str) -> None:
        """Give every device `version` as its incumbent, and let it run."""
        for device in self.devices.values():
            with self.engine.begin() as connection:
                assign(
                    connection,
                    fleet=FLEET,
                    device=device.name,
                    assignments={MODEL: [Assignment(model=MODEL, version=version, bundle=bundle(version))]},
                    signer=self.signer,
                    now_ns=self.now_ns,
                    probation=Probation(),
                )
        self.devices_update()

    def desired(self, name: str) -> Desired | None:
        """What the device would get from the broker, its signature verified."""
        with self.engine.connect() as connection:
            envelope = connection.scalar(select(desired.c.envelope).where(desired.c.device == name))
        if envelope is None:
            return None
        return decode(Desired, verify_envelope(envelope, DESIRED_TYPE, [self.signer.public], 1))

    def devices_update(self) -> None:
        """Each device that is online takes up its desired state and reports."""
        for device in self.devices.values():
            wanted = self.desired(device.name)
            if not device.online or wanted is None or wanted.generation == device.generation:
                continue
            assert wanted.generation > device.generation
            device.generation = wanted.generation
            target = next((entry for entry in wanted.assignments if entry.model == MODEL), None)
            phase = Phase.HEALTHY
            if target is not None and target.version not in ("1.0.0", getattr(device.active, "version", "")):
                phase = device.ends_in
            if phase is Phase.HEALTHY:
                device.active = target
            self.report(device, phase=phase, target=target)

    def report(self, device: VirtualDevice, *, phase: Phase = Phase.HEALTHY, target: Assignment | None = None) -> None:
        device.sequence += 1
        entry = ModelReport(
            model=MODEL,
            phase=phase,
            active=device.active.bundle if device.active else None,
            variant="int8" if device.active else "",
            desired=target.bundle if target else None,
        )
        message = Reported(
            device=device.name,
            boot_id="00000000-00000001",
            sequence=device.sequence,
            at_ns=self.now_ns,
            generation=device.generation,
            models=[entry] if device.active or target else [],
            cpu_signature="x86_64:avx2",
        )
        with self.engine.begin() as connection:
            connection.execute(
                update(devices)
                .where(devices.c.device == device.name)
                .values(
                    reported=msgspec.to_builtins(message),
                    reported_sequence=device.sequence,
                    online=device.online,
                    last_seen_ns=self.now_ns,
                )
            )

    def devices_answer(self, outcomes: int = 100) -> None:
        """Each device that runs a model answers and learns the truth `outcomes` times."""
        self.now_ns += S
        windows = []
        for device in self.devices.values():
            if device.active is None:
                continue
            device.sequence += 1
            correct = outcomes * device.accuracy[device.active.version] // 100
            windows.append(
                Window(
                    device=device.name,
                    boot_id="00000000-00000001",
                    sequence=device.sequence,
                    model=MODEL,
                    version=device.active.version,
                    variant="int8",
                    arm="main",
                    start_ns=self.now_ns - S,
                    end_ns=self.now_ns,
                    count=outcomes,
                    outcomes=Outcomes(correct=correct, wrong=outcomes - correct),
                )
            )
        self.store.write(FLEET, windows)

    def create(self, version: str, **changes: Any) -> str:
        return create_rollout(
            self.engine,
            fleet=FLEET,
            model=MODEL,
            version=version,
            policy_json={**POLICY, **changes},
            created_by="ann",
            now_ns=self.now_ns,
        )

    def live(self, seconds: int = 1, outcomes: int = 100) -> StepReport:
        """Let `seconds` pass: devices update and answer, and the driver looks once."""
        self.now_ns += (seconds - 1) * S
        self.devices_update()
        self.devices_answer(outcomes)
        return self.driver.step()

    def live_until(self, rollout_id: str, *states: str, seconds: int = 3, outcomes: int = 100) -> RolloutView:
        """Live until the rollout is in one of `states`; fails after 60 looks."""
        for _ in range(60):
            view = get_rollout(self.engine, rollout_id)
            if view.state in states:
                return view
            self.live(seconds, outcomes)
        raise AssertionError(f"the rollout never reached {states}: it is {view.state} {view.step}, {view.reason}")

    def running(self, version: str) -> set[str]:
        return {name for name, device in self.devices.items() if device.active and device.active.version == version}
