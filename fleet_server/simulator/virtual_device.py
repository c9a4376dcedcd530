"""One virtual device: what it says, and how it follows a desired state. No I/O, and no clock of its own.

It speaks the protocol as an agent does and runs no model. Invariants:
- a lower or equal generation changes nothing, an equal one is reported again;
- an update passes every phase in order; what is active changes only with PROBATION and goes back on REVERTED;
- windows and events share one growing sequence per boot, and each is kept until the server confirms it;
- at most MAX_UNCONFIRMED records are kept: the oldest goes first, and is counted;
- a bad net (`network`) holds windows back, repeats or loses them before they are kept: a window that waits is sent
  with those that are overdue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fleet_protocol.messages import (
    Assignment,
    Desired,
    Event,
    EventKind,
    ModelReport,
    OutboxStatus,
    Outcomes,
    Phase,
    Presence,
    Reported,
    VariantFigures,
    Window,
    encode,
)
from fleet_protocol.topics import TopicKind
from fleet_server.simulator.behaviour import FleetBehaviour
from fleet_server.simulator.devices import Character, Traits, traits_of
from fleet_server.simulator.drawing import Spans, draw_windows
from fleet_server.simulator.machine import FILE_VARIANT, resources, variant_figures
from fleet_server.simulator.network import DeviceNet

MAX_UNCONFIRMED = 200
AGENT_VERSION = "simulated"
ONNXRUNTIME_VERSION = "1.23.2"
CONFIRM_TIMEOUT_S = 10.0
_STEPS = (Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED, Phase.WARMING, Phase.PROBATION)
_NS = 10**9
_NOISE = 4
_NOTHING = Outcomes()

Record = tuple[TopicKind, bytes]


@dataclass(slots=True)
class _Model:
    target: Assignment | None = None
    active: Assignment | None = None
    before: Assignment | None = None
    phase: Phase = Phase.PENDING
    error: str = ""
    due_s: float | None = None


@dataclass(slots=True)
class Told:
    """What the device's windows added up to, for holding against what the server stored."""

    windows: int = 0
    predictions: int = 0
    correct: int = 0
    dropped: int = 0
    lost: int = 0


class VirtualDevice:
    """A device called `name`. Times are handed in: `now_ns` as UTC, `now_s` as a steady clock."""

    def __init__(
        self,
        *,
        name: str,
        index: int,
        boot_id: str,
        seed: int,
        behaviour: FleetBehaviour,
        started_ns: int,
        confirm_timeout_s: float = CONFIRM_TIMEOUT_S,
    ) -> None:
        self.name, self.boot_id = name, boot_id
        self.told = Told()
        self.generation = 0
        self._behaviour = behaviour
        self._seed, self._index, self._begun_ns = seed, index, started_ns
        self._confirm_timeout_s = confirm_timeout_s
        self._random = np.random.default_rng([seed, index, _NOISE])
        self._character = Character.drawn(behaviour, seed=seed, index=index)
        self._net = DeviceNet(behaviour.network, seed=seed, index=index, started_ns=started_ns)
        self._traits: dict[tuple[str, str], Traits] = {}
        self._models: dict[str, _Model] = {}
        self._desired: Desired | None = None
        self._window_start_ns = started_ns
        self._sequence = self._report_sequence = 0
        self._unconfirmed: dict[int, tuple[float, Record]] = {}

    def presence(self, *, online: bool, now_ns: int) -> Record:
        """Online or offline."""
        message = Presence(device=self.name, boot_id=self.boot_id, online=online, at_ns=now_ns)
        return TopicKind.PRESENCE, encode(message)

    def report(self, *, now_ns: int) -> Record:
        """What the device runs now."""
        self._report_sequence += 1
        message = Reported(
            device=self.name,
            boot_id=self.boot_id,
            sequence=self._report_sequence,
            at_ns=now_ns,
            generation=self.generation,
            models=[self._model_report(name, model) for name, model in sorted(self._models.items())],
            agent_version=AGENT_VERSION,
            cpu_signature=self._character.hardware.cpu_signature,
            onnxruntime_version=ONNXRUNTIME_VERSION,
            labels=self._character.labels(),
        )
        return TopicKind.REPORTED, encode(message)

    def accept(self, desired: Desired, *, now_s: float, now_ns: int) -> list[Record]:
        """Take a desired state up; returns what the device says to it."""
        if desired.generation <= self.generation:
            return [self.report(now_ns=now_ns)] if desired.generation == self.generation else []
        self.generation, self._desired = desired.generation, desired
        wanted = {assignment.model: assignment for assignment in desired.assignments if not assignment.shadow}
        for name, model in self._models.items():
            if name not in wanted:
                model.target = model.active = model.before = model.due_s = None
                model.phase, model.error = Phase.PENDING, ""
        for name, assignment in wanted.items():
            self._assign(self._models.setdefault(name, _Model()), assignment, now_s)
        return [self.report(now_ns=now_ns)]

    def next_step_s(self) -> float | None:
        """When the next step of an update is due; None when there is nothing to do."""
        return min((model.due_s for model in self._models.values() if model.due_s is not None), default=None)

    def step(self, *, now_s: float, now_ns: int) -> list[Record]:
        """Carry every update one step further whose time has come."""
        said: list[Record] = []
        for name, model in sorted(self._models.items()):
            if model.due_s is None or model.due_s > now_s:
                continue
            if model.phase is Phase.WARMING:
                # what the last version did belongs to its own window
                said += self.close_windows(now_s=now_s, now_ns=now_ns)
            self._advance(model, now_s)
            said.append(self._event(name, model, now_s=now_s, now_ns=now_ns))
        return [*said, self.report(now_ns=now_ns)] if said else []

    def close_windows(self, *, now_s: float, now_ns: int) -> list[Record]:
        """One window for each model that serves, since the last ones; none when no time has passed."""
        start_ns = self._window_start_ns
        if now_ns <= start_ns:
            return []
        self._window_start_ns = now_ns
        serving = [(name, model.active) for name, model in sorted(self._models.items()) if model.active is not None]
        return [record for name, active in serving for record in self._window(name, active, start_ns, now_ns, now_s)]

    def overdue(self, *, before_s: float, now_s: float) -> list[Record]:
        """Records sent before `before_s` that the server has not confirmed: to be sent again."""
        late = [sequence for sequence, (sent_s, _) in self._unconfirmed.items() if sent_s <= before_s]
        for sequence in late:
            self._unconfirmed[sequence] = (now_s, self._unconfirmed[sequence][1])
        return [self._unconfirmed[sequence][1] for sequence in late]

    def confirm(self, boot_id: str, ranges: Sequence[tuple[int, int]]) -> None:
        """The server has stored these sequences."""
        if boot_id == self.boot_id:
            for first, last in ranges:
                for sequence in [known for known in self._unconfirmed if first <= known <= last]:
                    del self._unconfirmed[sequence]

    @property
    def unconfirmed(self) -> int:
        """How many records the server has not confirmed."""
        return len(self._unconfirmed)

    def running(self) -> dict[str, str]:
        """model -> the version that serves."""
        return {name: model.active.version for name, model in self._models.items() if model.active is not None}

    def _assign(self, model: _Model, assignment: Assignment, now_s: float) -> None:
        if model.target is not None and model.target.bundle == assignment.bundle and not model.phase.is_failure:
            model.target = assignment
            return
        if model.phase is Phase.PROBATION:
            model.active = model.before
        model.target, model.error = assignment, ""
        if model.active is not None and model.active.bundle == assignment.bundle:
            model.phase, model.due_s = Phase.HEALTHY, None
        else:
            model.phase, model.due_s = Phase.ACKED, now_s + self._pause_s()

    def _advance(self, model: _Model, now_s: float) -> None:
        assert model.target is not None  # noqa: S101 - only an assigned model has a step due
        ends_in = self._behaviour.of(model.target.version).ends_in
        model.due_s = now_s + self._pause_s()
        if model.phase is Phase.DOWNLOADING and ends_in is Phase.REJECTED:
            _end(model, ends_in, "simulated: the bundle is refused")
        elif model.phase is Phase.WARMING and ends_in is Phase.FAILED:
            _end(model, ends_in, "simulated: the model does not load")
        elif model.phase is Phase.WARMING:
            model.before, model.active, model.phase = model.active, model.target, Phase.PROBATION
            model.due_s = now_s + (self._desired.probation.duration_s if self._desired else 0.0)
        elif model.phase is Phase.PROBATION and ends_in is Phase.REVERTED:
            model.active = model.before
            _end(model, ends_in, "simulated: worse than the incumbent in probation")
        elif model.phase is Phase.PROBATION:
            _end(model, Phase.HEALTHY, "")
        else:
            model.phase = _STEPS[_STEPS.index(model.phase) + 1]

    def _pause_s(self) -> float:
        return self._behaviour.update_s / (len(_STEPS) - 1) * float(self._random.uniform(0.5, 1.5))

    def _event(self, name: str, model: _Model, *, now_s: float, now_ns: int) -> Record:
        message = Event(
            device=self.name,
            boot_id=self.boot_id,
            sequence=self._next_sequence(),
            at_ns=now_ns,
            kind=EventKind.REVERTED if model.phase is Phase.REVERTED else EventKind.PHASE_CHANGED,
            model=name,
            bundle=model.target.bundle if model.target else "",
            phase=model.phase,
            detail=model.error,
        )
        return self._keep(message.sequence, (TopicKind.EVENTS, encode(message)), now_s)

    def _window(self, name: str, active: Assignment, start_ns: int, end_ns: int, now_s: float) -> list[Record]:
        """The window as often as it is to be sent now: a net may lose it, repeat it or hold it back."""
        (seen,) = draw_windows(
            self._behaviour,
            self._traits_with(name, active.version),
            Spans(
                device=np.zeros(1, dtype=np.int64),
                start_ns=np.array([start_ns]),
                end_ns=np.array([end_ns]),
                begun_ns=self._begun_ns,
            ),
            model=name,
            version=active.version,
            random=self._random,
        )
        machine = resources(
            self._character,
            busy_s=seen.count * self._behaviour.of(active.version).latency_us / 1e6,
            span_s=(end_ns - start_ns) / _NS,
            at_ns=end_ns,
            noise=(float(self._random.standard_normal()), float(self._random.standard_normal())),
        )
        window = Window(
            device=self.name,
            boot_id=self.boot_id,
            sequence=self._next_sequence(),
            model=name,
            version=active.version,
            variant=self._variant(name, active),
            arm=active.arm,
            start_ns=start_ns,
            end_ns=end_ns,
            resources=machine,
            outbox=OutboxStatus(depth=len(self._unconfirmed), dropped=self.told.dropped),
            **msgspec.structs.asdict(seen),
        )
        self.told.windows += 1
        self.told.predictions += seen.count
        self.told.correct += (seen.outcomes or _NOTHING).correct
        arrivals_ns = self._net.arrivals_ns(end_ns)
        if not arrivals_ns:
            self.told.lost += 1
            return []
        record = (TopicKind.TELEMETRY, encode(self._net.told(window)))
        late_s = (arrivals_ns[0] - end_ns) / _NS
        # one that waits counts as sent so long ago that it is overdue when its time has come
        self._keep(window.sequence, record, now_s + late_s - self._confirm_timeout_s if late_s else now_s)
        return [] if late_s else [record] * len(arrivals_ns)

    def _traits_with(self, model: str, version: str) -> Traits:
        key = (model, version)
        if key not in self._traits:
            self._traits[key] = traits_of(
                self._behaviour,
                self._behaviour.reference(model, version),
                model=model,
                version=version,
                seed=self._seed,
                devices=[(self._index, self.name, self._character)],
            )
        return self._traits[key]

    def _figures(self, model: str, version: str) -> list[VariantFigures]:
        manifest = self._behaviour.manifests.get((model, version))
        latency_us = self._behaviour.of(version).latency_us
        return variant_figures(manifest, self._character, latency_us=latency_us) if manifest else []

    def _variant(self, model: str, active: Assignment) -> str:
        """The one that the server named, if this device can run it, else the fastest."""
        figures = self._figures(model, active.version)
        if any(one.variant == active.variant for one in figures):
            return active.variant
        return min(figures, key=lambda one: one.p50_us).variant if figures else FILE_VARIANT

    def _model_report(self, name: str, model: _Model) -> ModelReport:
        active = model.active
        return ModelReport(
            model=name,
            phase=model.phase,
            active=active.bundle if active else None,
            version=(self._net.version or active.version) if active else "",
            variant=self._variant(name, active) if active else "",
            desired=model.target.bundle if model.target else None,
            error=model.error,
            variants=self._figures(name, active.version) if active else [],
        )

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _keep(self, sequence: int, record: Record, now_s: float) -> Record:
        self._unconfirmed[sequence] = (now_s, record)
        if len(self._unconfirmed) > MAX_UNCONFIRMED:
            del self._unconfirmed[next(iter(self._unconfirmed))]
            self.told.dropped += 1
        return record


def _end(model: _Model, phase: Phase, error: str) -> None:
    model.phase, model.error, model.due_s = phase, error, None
