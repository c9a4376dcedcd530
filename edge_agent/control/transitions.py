"""The device's update machine: pure functions from state to state. DESIGN.md draws it.

Every slot (one arm of one model, see `slots`) goes through it by itself. Invariants of each slot, by test:
- a generation that is not higher than the accepted one changes nothing, unless those who signed the accepted one direct
  no more; the same one, issued later, only stays fresh for longer;
- neither `active` nor `last_good` points to a quarantined bundle; `active` changes only on acceptance, activation,
  revert and recovery; a bundle that served, proven, stays `last_good` until another takes its place;
- while an unproven bundle is loaded (WARMING, PROBATION) the crash guard stands;
- an end with a failure leaves `active` on what ran before, and its error says why.

And of each model's slots together:
- a model that answered with a proven bundle, and stays assigned, answers: an arm that is assigned no more stands in
  with its `active` until another arm has something proven;
- what an arm did as a shadow proves nothing about answering: an arm that changes from one to the other begins anew,
  and from answering to shadowing it ends to answer at once;
- a bundle that failed in one slot is rejected in every other, unless it has proven itself there;
- a slot that serves no purpose any more is forgotten, but "main" keeps its way back.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from edge_agent.control.slots import answers, parts_of, quarantine_key, quarantined_bundle, slot_of
from edge_agent.control.state import ControlState, CrashGuard, Installed, ModelState
from fleet_protocol.messages import MAIN_ARM, Assignment, Desired, Phase

_UNPROVEN = frozenset({Phase.WARMING, Phase.PROBATION})
_BEFORE_SERVING = frozenset({Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED})
_IN_WORK = _UNPROVEN | _BEFORE_SERVING


def is_in_work(model: ModelState) -> bool:
    """Whether the updater still has something to do for this slot."""
    return model.phase in _IN_WORK


def refreshed(state: ControlState, desired: Desired, *, directed_by: tuple[str, ...] = ()) -> ControlState:
    """The state once the accepted desired was issued again later, with nothing else in it changed.

    Unchanged for any other desired. Nothing begins anew.
    """
    now = state.desired
    if now is None or desired.issued_at_ns <= now.issued_at_ns:
        return state
    renewed = replace(
        now, issued_at_ns=desired.issued_at_ns, expires_ns=desired.expires_ns, root_version=desired.root_version
    )
    return replace(state, desired=desired, directed_by=directed_by) if renewed == desired else state


def accepted(
    state: ControlState, desired: Desired, *, directed_by: tuple[str, ...] = (), anew: bool = False
) -> ControlState:
    """The state once a verified desired of a higher generation is taken up; unchanged for any other.

    `directed_by` are the directors that signed it. `anew`: those of the accepted one direct no more, and its generation
    does not count. Work in progress on another bundle is superseded; a bundle in quarantine is rejected unless `retry`
    frees it.
    """
    if desired.generation <= state.generation and not anew:
        return state
    quarantine = {key: why for key, why in state.quarantine.items() if quarantined_bundle(key) not in desired.retry}
    wanted = {slot_of(assignment): assignment for assignment in desired.assignments}
    answered = {assignment.model for assignment in desired.assignments if not assignment.shadow}
    models = {}
    for slot, model in state.models.items():
        kept = model if slot in wanted else _unassigned(slot, model, needed=parts_of(slot)[0] in answered)
        if kept is not None:
            models[slot] = kept
    for slot, assignment in wanted.items():
        models[slot] = _assigned(slot, models.get(slot, ModelState()), assignment, quarantine)
    models = _without_idle_stand_ins(models)
    return replace(state, desired=desired, models=models, quarantine=quarantine, directed_by=directed_by)


def _assigned(slot: str, model: ModelState, assignment: Assignment, quarantine: Mapping[str, str]) -> ModelState:
    digest = assignment.bundle
    before = model.target or model.stands_in
    if before is not None and before.shadow != assignment.shadow:
        model = ModelState()
    same = model.target is not None and model.target.bundle == digest
    if same and (is_in_work(model) or model.phase is Phase.HEALTHY):
        return replace(model, target=assignment)
    settled = replace(without_unproven(model), target=assignment, stands_in=None, guard=None, error="")
    why = _why_quarantined(slot, settled, digest, quarantine)
    if why is not None:
        return replace(settled, phase=Phase.REJECTED, error=f"in quarantine: {why}")
    if settled.active is not None and settled.active.bundle == digest:
        return replace(settled, phase=Phase.HEALTHY)
    return replace(settled, phase=Phase.ACKED)


def _why_quarantined(slot: str, model: ModelState, digest: str, quarantine: Mapping[str, str]) -> str | None:
    here = quarantine.get(quarantine_key(slot, digest))
    if here is not None or digest in {installed.bundle for installed in (model.active, model.last_good) if installed}:
        return here
    return next((why for key, why in quarantine.items() if quarantined_bundle(key) == digest), None)


def _unassigned(slot: str, model: ModelState, *, needed: bool) -> ModelState | None:
    """The slot without an assignment, None when it is forgotten. `needed`: its model is assigned to other arms."""
    before, proven = model.target or model.stands_in, without_unproven(model)
    if before is not None and before.shadow:
        return None
    if needed and before is not None and proven.active is not None:
        return replace(proven, target=None, stands_in=before, phase=Phase.PENDING, guard=None, error="")
    return _retired(slot, proven)


def _retired(slot: str, model: ModelState) -> ModelState | None:
    if parts_of(slot)[1] != MAIN_ARM:
        return None
    return ModelState(last_good=model.active or model.last_good)


def _without_idle_stand_ins(models: Mapping[str, ModelState]) -> dict[str, ModelState]:
    """The slots once stand-ins end that a proven arm has made idle."""
    covered = {
        parts_of(slot)[0]
        for slot, model in models.items()
        if answers(model) and without_unproven(model).active is not None
    }
    kept = {}
    for slot, model in models.items():
        ends = model.stands_in is not None and parts_of(slot)[0] in covered
        after = _retired(slot, model) if ends else model
        if after is not None:
            kept[slot] = after
    return kept


def without_unproven(model: ModelState) -> ModelState:
    """The model with `active` back on the last good bundle when what is active has not been proven."""
    return replace(model, active=model.last_good) if model.phase is Phase.PROBATION else model


def advanced(state: ControlState, name: str, phase: Phase) -> ControlState:
    """One step further that runs no model code: DOWNLOADING or STAGED."""
    return _with(state, name, replace(state.models[name], phase=phase))


def hint_refuted(state: ControlState, name: str) -> ControlState:
    """The hinted variant does not hold here: the target goes on without the hint, its other candidates are fetched.

    What the state says is all that a crash leaves, so the hint is forgotten on disk too.
    """
    model = state.models[name]
    target = replace(model.target, variant="") if model.target else None
    guard = model.guard if model.guard and model.guard.machine_restarts else None
    return _with(state, name, replace(model, phase=Phase.DOWNLOADING, target=target, guard=guard))


def warming(state: ControlState, name: str, machine_boot_id: str) -> ControlState:
    """About to load the target: this must be on disk before that happens.

    The last good bundle has proven itself here, so a process that dies while it warms is not its doing.
    """
    model = state.models[name]
    restarts = model.guard.machine_restarts if model.guard else 0
    guard = CrashGuard(machine_boot_id=machine_boot_id, machine_restarts=restarts)
    return _with(state, name, replace(model, phase=Phase.WARMING, guard=None if _is_last_good(model) else guard))


def activated(state: ControlState, name: str, installed: Installed) -> ControlState:
    """The target passed its checks and serves from now on; what served before is the way back.

    A bundle that was the last good one has proven itself here and needs no second probation. Another variant of it may
    have been chosen this time: that one is the way back from now on, and the earlier one's file may go.
    """
    model = state.models[name]
    if _is_last_good(model):
        healthy = replace(model, phase=Phase.HEALTHY, active=installed, last_good=installed, guard=None)
        return _with(state, name, healthy)
    last_good = model.active or model.last_good
    return _with(state, name, replace(model, phase=Phase.PROBATION, active=installed, last_good=last_good))


def _is_last_good(model: ModelState) -> bool:
    return model.target is not None and model.last_good is not None and model.target.bundle == model.last_good.bundle


def proven(state: ControlState, name: str) -> ControlState:
    """Probation is over and nothing spoke against the bundle."""
    return _with(state, name, replace(state.models[name], phase=Phase.HEALTHY, guard=None, error=""))


def rejected(state: ControlState, name: str, error: str) -> ControlState:
    """The target must not, or cannot, run here."""
    model = without_unproven(state.models[name])
    return _with(state, name, replace(model, phase=Phase.REJECTED, guard=None, error=error))


def failed(state: ControlState, name: str, error: str) -> ControlState:
    """The target did not get as far as serving; it goes into quarantine, and is no way back any more."""
    before = without_unproven(state.models[name])
    last_good = None if _is_last_good(before) else before.last_good
    model = replace(before, phase=Phase.FAILED, last_good=last_good, guard=None, error=error)
    return _with(state, name, model, quarantine_because=error)


def reverted(state: ControlState, name: str, error: str) -> ControlState:
    """The target served, or died while loading, and is taken back; it goes into quarantine."""
    model = without_unproven(state.models[name])
    return _with(state, name, replace(model, phase=Phase.REVERTED, guard=None, error=error), quarantine_because=error)


def active_unusable(state: ControlState, name: str, error: str) -> ControlState:
    """The proven active bundle no longer loads (a damaged disk): fall back to the last good one, if another.

    An update to another bundle goes on: it may be the cure. An update to the last good one is over with this.
    """
    model = state.models[name]
    back = model.last_good if model.last_good != model.active else None
    phase = model.phase if model.phase in _BEFORE_SERVING or model.target is None else Phase.FAILED
    if back is not None and _is_last_good(model):
        phase = Phase.HEALTHY
    return _with(state, name, replace(model, phase=phase, active=back, guard=None, error=error))


def recovered(state: ControlState, machine_boot_id: str) -> ControlState:
    """The state after a start: a model whose guard still stands was loaded, unproven, when the last run died.

    A process that died on a running machine is the model's doing and is reverted at once. A machine that
    restarted may have lost power: the update begins again at STAGED, up to the probation's limit.
    """
    for name, model in state.models.items():
        guard = model.guard
        if guard is None or model.phase not in _UNPROVEN:
            continue
        restarts = guard.machine_restarts + 1
        limit = state.desired.probation.max_machine_restarts if state.desired else 0
        if guard.machine_boot_id == machine_boot_id:
            state = reverted(state, name, f"the agent process died in {model.phase.value} with this model")
        elif restarts > limit:
            state = reverted(state, name, f"the machine restarted {restarts} times in {model.phase.value}")
        else:
            suspicion = CrashGuard(machine_boot_id=machine_boot_id, machine_restarts=restarts)
            state = _with(state, name, replace(without_unproven(model), phase=Phase.STAGED, guard=suspicion))
    return state


def stopped_cleanly(state: ControlState) -> ControlState:
    """The agent ends by itself: what is unproven begins again at STAGED, without suspicion."""
    for name, model in state.models.items():
        if model.phase in _UNPROVEN:
            state = _with(state, name, replace(without_unproven(model), phase=Phase.STAGED, guard=None))
    return state


def kept_variants(state: ControlState) -> dict[str, frozenset[str] | None]:
    """What garbage collection must never remove: bundle -> the names of its variants, None for every one of them.

    Of a bundle that has proven itself only what runs, or may be returned to, is needed.
    """
    kept: dict[str, frozenset[str] | None] = {}
    for model in state.models.values():
        for installed in (model.active, model.last_good):
            if installed is not None:
                kept[installed.bundle] = (kept.get(installed.bundle) or frozenset()) | {installed.variant}
    undecided = {
        model.target.bundle for model in state.models.values() if model.target and model.phase is not Phase.HEALTHY
    }
    return kept | dict.fromkeys(undecided)


def kept_bundles(state: ControlState) -> frozenset[str]:
    """The digests of the bundles that `kept_variants` keeps something of."""
    return frozenset(kept_variants(state))


def _with(state: ControlState, name: str, model: ModelState, *, quarantine_because: str | None = None) -> ControlState:
    quarantine = dict(state.quarantine)
    if quarantine_because is not None and model.target is not None:
        quarantine[quarantine_key(name, model.target.bundle)] = quarantine_because
    models = _without_idle_stand_ins({**state.models, name: model})
    return replace(state, models=models, quarantine=quarantine)
