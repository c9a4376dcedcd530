"""A device for the joint machine: its real checks, transitions, reports and state, over bundles that are only names.

Every durable write is one `work()`, so a power cut can fall between any two of them. What it fetches must have been
released; what it may run must have come in a desired state that the real verification let through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from edge_agent.control import transitions
from edge_agent.control.desired import verify_desired
from edge_agent.control.reports import model_reports
from edge_agent.control.state import ControlState, Installed
from edge_agent.errors import DesiredRefusedError
from fleet_protocol.keys import PublicKey
from fleet_protocol.messages import Phase, Reported

LOADS, FAILS_TO_LOAD, REVERTS = "loads", "fails to load", "reverts"


@dataclass
class JointDevice:
    """One device. `released` says how each released bundle behaves; `disk` is what a power cut leaves."""

    name: str
    fleet: str
    model: str
    director: PublicKey
    released: dict[str, str]
    state: ControlState = field(default_factory=ControlState)
    disk: bytes = b""
    believed: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)
    boot: int = 1
    machine_boot: int = 1
    sequence: int = 0
    online: bool = True
    highest_generation: int = 0
    has_worked: bool = False

    @property
    def active(self) -> Installed | None:
        model = self.state.models.get(self.model)
        return model.active if model else None

    @property
    def phase(self) -> Phase | None:
        model = self.state.models.get(self.model)
        return model.phase if model else None

    def receive(self, envelope: bytes) -> None:
        """A desired state arrived, whoever sent it and whenever it was made."""
        try:
            wanted = verify_desired(
                envelope, fleet=self.fleet, device=self.name, director_keys=[self.director], threshold=1
            )
        except DesiredRefusedError:
            return
        self.believed |= {assignment.bundle for assignment in wanted.assignments}
        if wanted.generation == self.state.generation:
            self._save(transitions.refreshed(self.state, wanted))
        else:
            self._save(transitions.accepted(self.state, wanted))

    def work(self) -> bool:
        """One durable step of the update; False when there is nothing to do."""
        model = self.state.models.get(self.model)
        if model is None or model.target is None or not transitions.is_in_work(model):
            return False
        bundle = model.target.bundle
        behaviour = self.released[bundle]  # bytes that nobody released cannot be fetched
        if model.phase is Phase.ACKED:
            self._save(transitions.advanced(self.state, self.model, Phase.DOWNLOADING))
        elif model.phase is Phase.DOWNLOADING:
            self.fetched.add(bundle)
            self._save(transitions.advanced(self.state, self.model, Phase.STAGED))
        elif model.phase is Phase.STAGED:
            self._save(transitions.warming(self.state, self.model, str(self.machine_boot)))
        elif model.phase is Phase.WARMING:
            installed = Installed(bundle=bundle, version=model.target.version, variant="int8")
            after = transitions.activated(self.state, self.model, installed)
            broken = transitions.failed(self.state, self.model, "it does not load")
            self._save(broken if behaviour == FAILS_TO_LOAD else after)
        elif behaviour == REVERTS:
            self._save(transitions.reverted(self.state, self.model, "worse than the incumbent"))
        else:
            self._save(transitions.proven(self.state, self.model))
        return True

    def start_again(self, *, machine_restarted: bool) -> None:
        """The process died, or the machine with it; what was durable is all that is left."""
        self.boot += 1
        self.machine_boot += machine_restarted
        self.sequence = 0
        before = msgspec.json.decode(self.disk, type=ControlState) if self.disk else ControlState()
        self._save(transitions.recovered(before, str(self.machine_boot)))

    def report(self, now_ns: int) -> Reported:
        """What it says now."""
        self.sequence += 1
        return Reported(
            device=self.name,
            boot_id=f"{self.boot:08x}-00000001",
            sequence=self.sequence,
            at_ns=now_ns,
            generation=self.state.generation,
            models=model_reports(self.state),
            cpu_signature="x86_64:avx2",
        )

    def check(self) -> None:
        """What DESIGN.md promises of a device at every moment."""
        assert self.state.generation >= self.highest_generation, "a generation never falls"
        self.highest_generation = self.state.generation
        active = self.active
        if active is not None:
            assert active.bundle in self.released
            assert active.bundle in self.fetched
            assert active.bundle in self.believed, "it runs what a signed desired state named"
            self.has_worked = True
        if self.phase is Phase.HEALTHY:
            model = self.state.models[self.model]
            assert model.target is not None
            assert active is not None
            assert active.bundle == model.target.bundle, "success is only the desired bundle, active"

    def _save(self, state: ControlState) -> None:
        self.disk = msgspec.json.encode(state)
        self.state = state
