"""Drives this device's updates: the thin loop around `transitions`.

Every change of state follows one order: the new state is durable → what serves follows it → an event and a
report say so. Invariants: only this thread changes the state; the newest desired is taken up between steps,
never in the middle of a swap; what begins to serve does so before what it replaces ends; nothing here is waited for
by an inference.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.control import transitions
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.download import Downloader, DownloadStopped
from edge_agent.control.fetching import fetch_bundle, is_fetched
from edge_agent.control.fit import admit_into_free_memory
from edge_agent.control.installation import WarmModel, load_installed
from edge_agent.control.probation import Judgement, judge, judge_shadow
from edge_agent.control.reports import model_reports
from edge_agent.control.serving_room import ServingRoom
from edge_agent.control.slots import Service, parts_of, serving, slot_of
from edge_agent.control.starting import why_it_waits
from edge_agent.control.state import ControlState, Installed, ModelState, StateFile
from edge_agent.control.time_zone import device_time_zone
from edge_agent.control.trial import NOTHING, Before, Look, Trial
from edge_agent.control.trust import BelievesForever, KnownTime, UpdateTrust
from edge_agent.control.variant_choice import HintDidNotHold, choose_variant, measured_with
from edge_agent.errors import AgentError, BundleRefusedError, DesiredRefusedError, MemoryBudgetError, OverloadedError
from edge_agent.runtime.loading import Loading
from edge_agent.service.heartbeat import ANY_TIME_S, Heartbeat
from edge_agent.telemetry.spans import CLOCK_IS_SET_NS
from fleet_protocol.messages import MAIN_ARM, Assignment, Desired, EventKind, ModelReport, Phase

_LOG = logging.getLogger(__name__)
_PROBATION_TICK_S = 0.25
_IDLE_LOOK_S = 60.0  # so that an idle updater gives a sign of life
_LOAD_LIMIT_S = 900.0
"""So long a model may take to load, answer its golden vectors and be measured before the updater counts as stuck."""
_BEGINS = frozenset({Phase.ACKED, Phase.STAGED})
_REFUSALS = (BundleRefusedError, MemoryBudgetError, OverloadedError)  # nothing that speaks against the bundle itself
_MACHINE_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Updater:
    """Owns the control state. `offer` may be called from any thread."""

    def __init__(
        self,
        *,
        state_file: StateFile,
        store: BundleStore,
        make_downloader: Callable[[Callable[[float], bool]], Downloader],
        verify: Callable[[bytes], Desired],
        room: ServingRoom,
        loading: Loading,
        admit: Callable[[int], None] = admit_into_free_memory,
        trust: UpdateTrust | None = None,
    ) -> None:
        self._file, self._store, self._verify, self._room, self._loading = state_file, store, verify, room, loading
        self._admit, self._trust = admit, trust or BelievesForever()
        self._downloader = make_downloader(self._pause)
        self._state = ControlState()
        self._machine_boot_id = _machine_boot_id()
        self._offering = threading.Lock()
        self._offered: bytes | None = None
        self._offered_generation = 0
        self._newer = False
        self._wake, self._stop = threading.Event(), threading.Event()
        self._at_work: dict[str, Assignment] = {}
        self._trials: dict[str, Trial] = {}
        self._known_time, self._told_waiting = KnownTime(), 0
        self._accepted_s = time.monotonic()
        self.heartbeat = Heartbeat()
        self._thread = threading.Thread(target=self._run, name="updater", daemon=True)

    def start(self) -> None:
        """Recover from the last run, put the active models to work, begin."""
        before = self._file.load()
        after = transitions.recovered(before, self._machine_boot_id)
        self._state = before
        self._move(after, swap=self._follow_state)
        self._thread.start()

    def stop(self) -> None:
        """End; unproven models begin again with the next start."""
        self._stop.set()
        self._wake.set()
        self._downloader.interrupt()
        if self._thread.is_alive():
            self._thread.join()
            self._file.save(transitions.stopped_cleanly(self._state))

    def offer(self, envelope: bytes) -> None:
        """A desired state arrived. Only a newer generation stops work in progress, and nothing else displaces it."""
        try:
            generation = self._verify(envelope).generation
        except DesiredRefusedError:
            generation = 0  # refused, with its reason, when its turn comes
        with self._offering:
            if generation > max(self._state.generation, self._offered_generation):
                self._newer = True
            elif self._newer:
                _LOG.info("a desired state of generation %s is dropped: a newer one waits", generation)
                return
            self._offered, self._offered_generation = envelope, generation
        if self._newer:
            self._downloader.interrupt()
        self._wake.set()

    @property
    def generation(self) -> int:
        """The newest accepted generation."""
        return self._state.generation

    @property
    def desired(self) -> Desired | None:
        """The newest accepted desired state."""
        return self._state.desired

    def reports(self) -> list[ModelReport]:
        """What each model of the fleet is doing here, arm by arm."""
        return model_reports(self._state, measured_with=measured_with())

    def _run(self) -> None:
        while not self._stop.is_set():
            self.heartbeat.beat()
            try:
                self._take_desired()
                busy = [name for name, model in self._state.models.items() if transitions.is_in_work(model)]
                for name in busy:
                    self._work_on(name)
            except DownloadStopped:
                continue
            except Exception:  # noqa: BLE001 - a bug in one round must not end updates for good
                _LOG.exception("the updater failed on one round; it tries again")
            self._wake.wait(self._patience_s())
            self._wake.clear()

    def _patience_s(self) -> float:
        if self._offered is not None:
            return 0.0
        return _PROBATION_TICK_S if any(map(transitions.is_in_work, self._state.models.values())) else _IDLE_LOOK_S

    def _pause(self, seconds: float) -> bool:
        """Wait; True when work in progress should stop because something newer came or the agent ends."""
        deadline = time.monotonic() + seconds
        while not (self._newer or self._stop.is_set()):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wake.wait(left)
            self._wake.clear()
        return True

    def _take_desired(self) -> None:
        with self._offering:
            self._newer, envelope = False, self._offered
            self._offered, self._offered_generation = None, 0
        if envelope is None:
            return
        try:
            desired, directed_by = self._verify(envelope), self._trust.signers(envelope)
        except DesiredRefusedError as error:
            _LOG.warning("%s", error)
            self._room.emit(EventKind.DESIRED_REFUSED, model="", bundle="", phase=None, detail=str(error))
            return
        anew = not self._trust.still_counts(self._state.directed_by)
        if desired.generation <= self._state.generation and not anew:
            if desired.generation < self._state.generation:
                _LOG.info("generation %s is older than %s: ignored", desired.generation, self._state.generation)
            else:
                self._move(transitions.refreshed(self._state, desired, directed_by=directed_by))
            self._room.report()
            return
        self._supersede(desired)
        state = transitions.accepted(self._state, desired, directed_by=directed_by, anew=anew)
        self._accepted_s = time.monotonic()
        self._move(state, swap=self._follow_state)
        self._collect_garbage()

    def _collect_garbage(self) -> None:
        self._store.collect_garbage(transitions.kept_variants(self._state))

    def _supersede(self, desired: Desired) -> None:
        kept = {(slot_of(assignment), assignment.bundle) for assignment in desired.assignments}
        for name, model in self._state.models.items():
            if model.target and transitions.is_in_work(model) and (name, model.target.bundle) not in kept:
                self._trials.pop(name, None)
                self._emit_phase(name, model, Phase.SUPERSEDED)

    def _work_on(self, name: str) -> None:
        """Carry one slot as far as it goes now."""
        while not (self._stop.is_set() or self._newer):
            model = self._state.models[name]
            if model.phase is Phase.PROBATION:
                self._judge(name, model)
                return
            if not transitions.is_in_work(model) or not self._may_start(model):
                return
            try:
                self._step(name, model)
            except _REFUSALS as error:
                self._move(transitions.rejected(self._state, name, str(error)), swap=self._follow_state)
            except AgentError as error:
                self._move(transitions.failed(self._state, name, str(error)), swap=self._follow_state)

    def _step(self, name: str, model: ModelState) -> None:
        assert model.target is not None and self._state.desired is not None  # noqa: S101 - in work means assigned
        if model.phase is Phase.ACKED:
            self._move(transitions.advanced(self._state, name, Phase.DOWNLOADING))
        elif model.phase is Phase.DOWNLOADING:
            self.heartbeat.beat(ANY_TIME_S)
            fetch_bundle(model.target, store=self._store, downloader=self._downloader)
            self._move(transitions.advanced(self._state, name, Phase.STAGED))
        elif not is_fetched(model.target, store=self._store):
            self._move(transitions.advanced(self._state, name, Phase.DOWNLOADING))
        else:
            try:
                self._activate(name, model.target)
            except HintDidNotHold as why:
                _LOG.warning("%s: %s: the other variants are fetched", name, why)
                self._move(transitions.hint_refuted(self._state, name))

    def _activate(self, name: str, target: Assignment) -> None:
        self.heartbeat.beat(_LOAD_LIMIT_S)
        self._move(transitions.warming(self._state, name, self._machine_boot_id))
        chosen = choose_variant(
            target.bundle,
            store=self._store,
            loading=self._loading,
            hint=target.variant,
            must_answer=not target.shadow,
            admit=self._admit,
        )
        before, warm = self._before(name, target), chosen.warm
        installed = Installed(
            bundle=target.bundle,
            version=warm.manifest.version,
            variant=warm.variant.name,
            figures=chosen.figures,
            measured_with=measured_with(),
        )

        def swap() -> None:
            self._put_to_work(name, Service(assignment=target, installed=installed), warm)
            self._follow_state()

        self._move(transitions.activated(self._state, name, installed), swap=swap)
        self.heartbeat.beat()
        look = self._room.look(target.model, target.arm)
        self._trials[name] = Trial(started_s=time.monotonic(), baseline=look.stats if look else NOTHING, before=before)
        if look is not None and look.comparison:
            self._emit(
                EventKind.PHASE_CHANGED, name, bundle=target.bundle, phase=Phase.PROBATION, detail=look.comparison
            )

    def _before(self, name: str, target: Assignment) -> Before:
        """What the arm itself did so far, or else the arm of its model that answers most."""
        look = self._incumbent(name, target)
        if look is None:
            return Before()
        return Before(stats=None if target.shadow else look.stats, memory_bytes=look.memory_bytes)

    def _incumbent(self, name: str, target: Assignment) -> Look | None:
        own = self._room.look(target.model, target.arm)
        others = [
            service.assignment
            for slot, service in serving(self._state).items()
            if slot != name and service.assignment.model == target.model and not service.assignment.shadow
        ]
        if own is not None or not others:
            return own
        heaviest = max(others, key=lambda assignment: assignment.weight)
        return self._room.look(heaviest.model, heaviest.arm)

    def _may_start(self, model: ModelState) -> bool:
        """Whether this word may still begin something, and not-before and this device's share of jitter have passed."""
        desired = self._state.desired
        if desired is not None and model.phase in _BEGINS and self._trust.held_back(desired):
            return False
        if model.phase is not Phase.ACKED or desired is None:
            return True
        waits = why_it_waits(
            desired,
            now_ns=self._known_time.now_ns(desired.issued_at_ns),
            is_clock_set=time.time_ns() >= CLOCK_IS_SET_NS,
            waited_s=time.monotonic() - self._accepted_s,
            time_zone=device_time_zone(),
        )
        if waits and self._told_waiting != desired.generation:
            self._told_waiting = desired.generation
            _LOG.info("generation %s waits: %s", desired.generation, waits)
        return not waits

    def _judge(self, name: str, model: ModelState) -> None:
        desired, look = self._state.desired, self._room.look(*parts_of(name))
        if desired is None or look is None or model.target is None:
            return
        now_s, rule = time.monotonic(), desired.probation
        trial = self._trials.setdefault(name, Trial(started_s=now_s, baseline=look.stats, before=Before()))
        evidence = trial.evidence(rule, look, now_s=now_s)
        ruling = judge_shadow(rule, evidence) if model.target.shadow else judge(rule, evidence)
        if ruling.judgement is Judgement.WAIT:
            return
        del self._trials[name]
        if ruling.judgement is Judgement.KEEP:
            self._move(transitions.proven(self._state, name), swap=lambda: self._room.end_trial(*parts_of(name)))
            self._collect_garbage()
        else:
            self._move(transitions.reverted(self._state, name, ruling.reason), swap=self._follow_state)

    def _follow_state(self) -> None:
        """Make what serves agree with the state: first what is to begin, then shares, then what is to end."""
        while (name := self._first_not_serving()) is not None:
            self._load(name, serving(self._state)[name])
        wanted = serving(self._state)
        for name, service in wanted.items():
            assignment = service.assignment
            if self._at_work[name].weight != assignment.weight:
                self._room.set_weight(assignment.model, assignment.arm, assignment.weight)
                self._at_work[name] = assignment
        for name in [name for name in self._at_work if name not in wanted]:
            self._room.take_from_work(*parts_of(name))
            del self._at_work[name]

    def _first_not_serving(self) -> str | None:
        for name, service in serving(self._state).items():
            there = name in self._at_work and self._at_work[name].shadow == service.assignment.shadow
            if not there or self._room.serving_bundle(*parts_of(name)) != service.installed.bundle:
                return name
        return None

    def _load(self, name: str, service: Service) -> None:
        """Put what is installed to work; a proven bundle that no longer loads gives way to the last good."""
        installed = service.installed
        try:
            warm = load_installed(
                installed.bundle,
                installed.variant,
                store=self._store,
                loading=self._loading,
                must_answer=not service.assignment.shadow,
            )
            self._put_to_work(name, service, warm)
        except AgentError as error:
            _LOG.error("%s %s does not load: %s", name, installed.version, error)
            detail = f"active bundle {installed.bundle} does not load: {error}"
            self._emit(EventKind.MODEL_LOAD_FAILED, name, bundle=installed.bundle, phase=None, detail=detail)
            self._move(transitions.active_unusable(self._state, name, detail))

    def _put_to_work(self, name: str, service: Service, warm: WarmModel) -> None:
        desired, is_proven = self._state.desired, self._state.models[name].phase is not Phase.PROBATION
        on_trial = None if is_proven or desired is None else desired.probation
        self._room.put_to_work(service.assignment, warm, bundle=service.installed.bundle, on_trial=on_trial)
        self._at_work[name] = service.assignment
        for fallback in warm.fallbacks:
            detail = f"provider {fallback.provider} does not run variant {warm.variant.name}: {fallback.reason}"
            self._emit(EventKind.PROVIDER_FALLBACK, name, bundle=service.installed.bundle, phase=None, detail=detail)

    def _move(self, state: ControlState, swap: Callable[[], None] = lambda: None) -> None:
        before, changed = self._state, state is not self._state
        if changed:
            self._file.save(state)
            self._state = state
        swap()
        for name, model in state.models.items():
            old = before.models.get(name)
            if old is None or (old.phase, old.target) != (model.phase, model.target):
                self._emit_phase(name, model, model.phase)
        if changed:
            self._room.report()

    def _emit_phase(self, name: str, model: ModelState, phase: Phase) -> None:
        bundle = model.target.bundle if model.target else ""
        _LOG.info("%s %s: %s %s", name, model.target.version if model.target else "-", phase.value, model.error)
        kind = EventKind.REVERTED if phase is Phase.REVERTED else EventKind.PHASE_CHANGED
        self._emit(kind, name, bundle=bundle, phase=phase, detail=model.error)

    def _emit(self, kind: EventKind, name: str, *, bundle: str, phase: Phase | None, detail: str) -> None:
        model, arm = parts_of(name)
        if arm != MAIN_ARM:
            detail = f"arm {arm}: {detail}" if detail else f"arm {arm}"
        self._room.emit(kind, model=model, bundle=bundle, phase=phase, detail=detail)


def _machine_boot_id() -> str:
    try:
        return _MACHINE_BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
