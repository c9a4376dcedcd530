"""Over every history of updates, collected at any moment: what runs and what it may return to stays whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.control import transitions
from edge_agent.control.state import ControlState, Installed, ModelState
from fleet_protocol.messages import MAIN_ARM, Assignment, Desired, Phase, Probation
from tests.agent.control.bundles import SmallBundle, VariantFile, bundle_of_variants, linear_file, store_in

SLOTS = {MAIN_ARM: "m", "b": "m/b"}
VARIANTS = ("first", "second")
STEPS = (
    *["update"] * 4, "assign", "assign other arm", "unassign", "go on", "go on", "end well", "fail", "revert",
    "lose active", "die", "stop",
)  # fmt: skip


def _bundles() -> list[SmallBundle]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        return [
            bundle_of_variants(
                path,
                # the second variant is the same file in every version: shared files are kept for whoever needs them
                {
                    "first": VariantFile(content=linear_file(path, weight=2.0 + number)),
                    "second": VariantFile(content=linear_file(path, weight=9.0)),
                },
                version=f"1.{number}.0",
                created_at_ns=number,
            )
            for number in range(4)
        ]


BUNDLES = _bundles()
BY_DIGEST = {one.digest: one for one in BUNDLES}


def _desired(state: ControlState, wanted: dict[str, int], retry: bool) -> Desired:
    return Desired(
        fleet="f",
        device="d",
        generation=state.generation + 1,
        issued_at_ns=1,
        assignments=[
            Assignment(model="m", version=f"1.{number}.0", bundle=BUNDLES[number].digest, arm=arm)
            for arm, number in wanted.items()
        ],
        probation=Probation(max_machine_restarts=1),
        retry=list(BY_DIGEST) if retry else [],
    )


def _gone_on(state: ControlState, slot: str, model: ModelState, variant: str, folder: Path) -> ControlState:
    """One step further, as the updater takes it; what is downloaded is on the disk after it."""
    if model.target is None or not transitions.is_in_work(model):
        return state
    match model.phase:
        case Phase.ACKED:
            return transitions.advanced(state, slot, Phase.DOWNLOADING)
        case Phase.DOWNLOADING:
            made = BY_DIGEST[model.target.bundle]
            for sha256, content in {**made.files, made.digest: made.envelope}.items():
                (folder / sha256).write_bytes(content)
            return transitions.advanced(state, slot, Phase.STAGED)
        case Phase.STAGED:
            return transitions.warming(state, slot, "boot")
        case Phase.WARMING:
            version = BY_DIGEST[model.target.bundle].manifest.version
            installed = Installed(bundle=model.target.bundle, version=version, variant=variant)
            return transitions.activated(state, slot, installed)
    return transitions.proven(state, slot)


def _after(state: ControlState, step: str, number: int, folder: Path) -> ControlState:
    wanted = {
        assignment.arm: [one.digest for one in BUNDLES].index(assignment.bundle)
        for assignment in (state.desired.assignments if state.desired else [])
    }
    if step == "update":
        return _after(_after(state, "assign", number, folder), "end well", 0, folder)
    if step in ("assign", "assign other arm"):
        arm = MAIN_ARM if step == "assign" else "b"
        return transitions.accepted(state, _desired(state, wanted | {arm: number}, retry=number == 0))
    if step == "unassign":
        return transitions.accepted(state, _desired(state, dict(list(wanted.items())[1:]), retry=False))
    if step == "die":
        return transitions.recovered(state, "boot" if number % 2 else "another boot")
    if step == "stop":
        return transitions.stopped_cleanly(state)
    slot = SLOTS[(MAIN_ARM, MAIN_ARM, "b")[number % 3]]
    model = state.models.get(slot)
    if model is None:
        return state
    variant = VARIANTS[number // 2 % 2]
    if step == "go on":
        return _gone_on(state, slot, model, variant, folder)
    if step == "end well":
        while (model := state.models[slot]).target is not None and transitions.is_in_work(model):
            state = _gone_on(state, slot, model, variant, folder)
        return state
    if step == "lose active":
        return transitions.active_unusable(state, slot, "damaged") if model.active else state
    if not transitions.is_in_work(model):
        return state
    return transitions.failed(state, slot, "x") if step == "fail" else transitions.reverted(state, slot, "x")


@settings(max_examples=25)
@given(history=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.booleans()), min_size=8, max_size=20))
def test_garbage_collection_never_takes_what_runs_or_the_last_good(history: list[tuple[str, int, bool]]) -> None:
    state = ControlState()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = store_in(folder)
        for step, number, collects in history:
            state = _after(state, step, number, folder)
            (folder / ("e" * 64)).write_bytes(b"a delta that a crash left")
            if collects:
                store.collect_garbage(transitions.kept_variants(state))
                assert not (folder / ("e" * 64)).exists()
            for model in state.models.values():
                for installed in (model.active, model.last_good):
                    if installed is not None:
                        manifest = store.manifest(installed.bundle)
                        [file] = [one.file for one in manifest.variants if one.name == installed.variant]
                        assert store.has(file)
                        assert store.has(manifest.golden)
        store.collect_garbage(transitions.kept_variants(ControlState()))
        assert list(folder.iterdir()) == []
