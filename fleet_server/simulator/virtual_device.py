"""One virtual device: what it says, and how it follows a desired state. No I/O, and no clock of its own.

It speaks the protocol as an agent does and runs no model. Invariants:
- a lower or equal generation changes nothing, an equal one is reported again;
- an update passes every phase in order; what is active changes only with PROBATION and goes back on REVERTED;
- windows and events share one growing sequence per boot, and each is kept until the server confirms it;
- at most MAX_UNCONFIRMED records are kept: the oldest goes first, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    Resources,
    Window,
    encode,
)
from fleet_protocol.topics import TopicKind
from fleet_server.simulator.behaviour import Character, FleetBehaviour, observe

MAX_UNCONFIRMED = 200
VARIANT = "int8"
AGENT_VERSION = "simulated"
_STEPS = (Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED, Phase.WARMING, Phase.PROBATION)
_CPU_SIGNATURES = ("x86_64:avx2", "aarch64:dotprod")
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


class VirtualDevice:
    """A device called `name`. Times are handed in: `now_ns` as UTC, `now_s` as a steady clock."""

    def __init__(
        self, *, name: str, index: int, boot_id: str, seed: int, behaviour: FleetBehaviour, started_ns: int
    ) -> None:
        self.name, self.boot_id = name, boot_id
        self.told = Told()
        self.generation = 0
        self._behaviour = behaviour
        self._random = np.random.default_rng([seed, index])
        self._character = Character.drawn(self._random, behaviour.spread)
        self._cpu_signature = _CPU_SIGNATURES[index % len(_CPU_SIGNATURES)]
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
            models=[_model_report(name, model) for name, model in sorted(self._models.items())],
            agent_version=AGENT_VERSION,
            cpu_signature=self._cpu_signature,
            labels={"simulated": "true"},
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
        return [self._window(name, active, start_ns, now_ns, now_s) for name, active in serving]

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

    def _window(self, name: str, active: Assignment, start_ns: int, end_ns: int, now_s: float) -> Record:
        seen = observe(
            self._behaviour,
            self._character,
            name,
            active.version,
            span_s=(end_ns - start_ns) / 1e9,
            random=self._random,
        )
        window = Window(
            device=self.name,
            boot_id=self.boot_id,
            sequence=self._next_sequence(),
            model=name,
            version=active.version,
            variant=VARIANT,
            arm=active.arm,
            start_ns=start_ns,
            end_ns=end_ns,
            count=seen.count,
            errors=seen.errors,
            latency=seen.latency,
            features=seen.features,
            classes=seen.classes,
            score=seen.score,
            outcomes=seen.outcomes,
            resources=Resources(cpu_percent=float(self._random.uniform(1, 60)), rss_bytes=100_000_000),
            outbox=OutboxStatus(depth=len(self._unconfirmed), dropped=self.told.dropped),
        )
        self.told.windows += 1
        self.told.predictions += seen.count
        self.told.correct += (seen.outcomes or _NOTHING).correct
        return self._keep(window.sequence, (TopicKind.TELEMETRY, encode(window)), now_s)

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


def _model_report(name: str, model: _Model) -> ModelReport:
    active = model.active
    return ModelReport(
        model=name,
        phase=model.phase,
        active=active.bundle if active else None,
        version=active.version if active else "",
        variant=VARIANT if active else "",
        desired=model.target.bundle if model.target else None,
        error=model.error,
    )
