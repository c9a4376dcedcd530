"""Which variant of a bundle a device fetches, checks, measures and keeps."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.config import RuntimeSection
from edge_agent.control import transitions
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.candidates import candidates_for, fastest_right, fault_of, wanted_variants
from edge_agent.control.download import Downloader
from edge_agent.control.fetching import fetch_bundle, is_fetched
from edge_agent.control.reports import model_reports
from edge_agent.control.state import ControlState, Installed, ModelState, StateFile
from edge_agent.control.variant_choice import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    ChosenVariant,
    HintDidNotHold,
    choose_variant,
    interleaved_medians_s,
    timed_inputs,
)
from edge_agent.errors import (
    ArtifactCorruptError,
    BundleRefusedError,
    GoldenMismatchError,
    MemoryBudgetError,
    ModelLoadError,
    OverloadedError,
)
from edge_agent.runtime.loading import Loading
from edge_agent.runtime.residency import ASLEEP, Residency
from fleet_protocol.messages import Phase, VariantFigures
from tests.agent.control.artifact_server import ArtifactServer
from tests.agent.control.bundles import (
    SmallBundle,
    VariantFile,
    bundle_of_variants,
    linear_file,
    store_in,
)

HERE = platform.machine()
ELSEWHERE = "riscv64"


class Disk:
    """One device's store, and a server of one bundle that counts what it is asked for."""

    def __init__(self, folder: Path, small: SmallBundle, server: ArtifactServer) -> None:
        self.small, self._server = small, server
        self.store: BundleStore = store_in(folder)
        self.downloader = Downloader(
            base_url=server.url, username="d", password="", attempts=1, backoff_max_s=1.0, wait=lambda seconds: False
        )
        served = {**small.files, small.digest: small.envelope}

        def answer(handler: Any, content: bytes, first: int) -> None:
            body = served[handler.path.rpartition("/")[2]]
            handler.head(200, len(body))
            handler.wfile.write(body)

        server.faults = [answer] * 40

    def fetch(self, hint: str = "") -> None:
        fetch_bundle(replace(self.small.assignment, variant=hint), store=self.store, downloader=self.downloader)

    def asked_for(self) -> list[str]:
        """What was asked for, by name, since the last time: the manifest, golden, or a variant's."""
        names = {self.small.digest: "manifest", self.small.manifest.golden.sha256: "golden"}
        names |= {variant.file.sha256: variant.name for variant in self.small.manifest.variants}
        found = [names.get(path.rpartition("/")[2], path) for path, _, _ in self._server.requests]
        self._server.requests.clear()
        return found


@pytest.fixture
def server() -> Iterator[ArtifactServer]:
    with ArtifactServer(b"") as running:
        yield running


@pytest.fixture
def residency() -> Iterator[Residency]:
    made = Residency(budget_bytes=None, on_event=lambda *_: None)
    yield made
    made.close()


@pytest.fixture
def three(tmp_path: Path) -> SmallBundle:
    """`slow` and `quick` for here, `other` for another architecture."""
    made = tmp_path / "made"
    return bundle_of_variants(
        made,
        {
            "slow": VariantFile(content=linear_file(made, busy=6)),
            "quick": VariantFile(content=linear_file(made, busy=0), architectures=(HERE, ELSEWHERE)),
            "other": VariantFile(content=linear_file(made, busy=1), architectures=(ELSEWHERE,)),
        },
    )


def loading_in(residency: Residency) -> Loading:
    return Loading(runtime=RuntimeSection(threads=1), residency=residency, cache_dir=None)


def choose(small: SmallBundle, store: BundleStore, residency: Residency, hint: str = "") -> ChosenVariant:
    return choose_variant(small.digest, store=store, loading=loading_in(residency), hint=hint)


def filled(folder: Path, small: SmallBundle) -> BundleStore:
    store = store_in(folder)
    small.put_into(store)
    return store


def test_without_a_hint_every_candidate_of_this_machine_is_fetched_and_nothing_for_people_or_other_machines(
    tmp_path: Path, three: SmallBundle, server: ArtifactServer
) -> None:
    disk = Disk(tmp_path / "store", three, server)

    disk.fetch()

    assert disk.asked_for() == ["manifest", "golden", "slow", "quick"]
    expected = sum(v.file.size_bytes for v in three.manifest.variants[:2]) + three.manifest.golden.size_bytes
    assert disk.downloader.received_bytes == expected + len(three.envelope)


def test_with_a_hint_that_one_variant_is_fetched_and_the_others_only_once_it_did_not_hold(
    tmp_path: Path, three: SmallBundle, server: ArtifactServer
) -> None:
    disk = Disk(tmp_path / "store", three, server)

    disk.fetch("quick")
    assert disk.asked_for() == ["manifest", "golden", "quick"]
    hinted, unhinted = replace(three.assignment, variant="quick"), three.assignment
    assert is_fetched(hinted, store=disk.store)
    assert not is_fetched(unhinted, store=disk.store)

    disk.fetch()
    assert disk.asked_for() == ["slow"]
    assert is_fetched(unhinted, store=disk.store)


@pytest.mark.parametrize("hint", ["other", "nobody-made-this"])
def test_a_hint_that_names_no_candidate_of_this_machine_counts_for_nothing(
    tmp_path: Path, three: SmallBundle, server: ArtifactServer, residency: Residency, hint: str
) -> None:
    disk = Disk(tmp_path / "store", three, server)

    disk.fetch(hint)

    assert disk.asked_for() == ["manifest", "golden", "slow", "quick"]
    assert choose(three, disk.store, residency, hint).warm.variant.name == "quick"


def test_a_bundle_without_a_variant_for_this_machine_is_refused_before_any_file_is_fetched(
    tmp_path: Path, server: ArtifactServer
) -> None:
    made = tmp_path / "made"
    foreign = bundle_of_variants(
        made, {"other": VariantFile(content=linear_file(made), architectures=(ELSEWHERE, "s390x"))}
    )
    disk = Disk(tmp_path / "store", foreign, server)

    with pytest.raises(BundleRefusedError, match="no variant for"):
        disk.fetch()
    assert disk.asked_for() == ["manifest"]
    assert [variant.name for variant in candidates_for(foreign.manifest, "S390X")] == ["other"]


def test_the_fastest_right_variant_is_kept_alone_and_the_figures_of_all_are_told(
    tmp_path: Path, three: SmallBundle, residency: Residency
) -> None:
    chosen = choose(three, filled(tmp_path / "store", three), residency)

    assert chosen.warm.variant.name == "quick"
    slow, quick = chosen.figures
    assert (slow.variant, slow.right, quick.variant, quick.right) == ("slow", True, "quick", True)
    assert slow.p50_us > quick.p50_us > 0
    assert min(slow.memory_bytes, quick.memory_bytes) > 0
    assert [fact.name for fact in residency.resident()] == ["m 1.0.0 quick"]


def test_every_candidate_is_timed_on_one_row_whether_or_not_its_own_rows_are_independent(three: SmallBundle) -> None:
    rows = {tensor.name: np.zeros((16, 4), dtype=np.float32) for tensor in three.manifest.inputs}
    fixed = replace(three.manifest, outputs=[replace(three.manifest.outputs[0], shape=[16, 4])])

    assert {len(array) for array in timed_inputs(three.manifest, rows).values()} == {1}
    assert {len(array) for array in timed_inputs(fixed, rows).values()} == {16}


def test_a_quicker_variant_with_wrong_answers_is_not_kept(tmp_path: Path, residency: Residency) -> None:
    made = tmp_path / "made"
    small = bundle_of_variants(
        made,
        {
            "right": VariantFile(content=linear_file(made, busy=3)),
            "wrong": VariantFile(content=linear_file(made, weight=2.1)),
            "broken": VariantFile(content=b"not onnx"),
        },
    )

    chosen = choose(small, filled(tmp_path / "store", small), residency)

    assert chosen.warm.variant.name == "right"
    assert [(one.variant, one.right, one.fault) for one in chosen.figures] == [
        ("right", True, ""), ("wrong", False, "wrong answers"), ("broken", False, "does not load"),
    ]  # fmt: skip
    assert [fact.name for fact in residency.resident()] == ["m 1.0.0 right"]


def test_a_hinted_variant_that_holds_is_all_that_is_loaded_and_is_measured_too(
    tmp_path: Path, three: SmallBundle, server: ArtifactServer, residency: Residency
) -> None:
    disk = Disk(tmp_path / "store", three, server)
    disk.fetch("slow")

    chosen = choose(three, disk.store, residency, "slow")

    assert chosen.warm.variant.name == "slow"
    [figures] = chosen.figures
    assert figures.right and figures.p50_us > 0 and figures.memory_bytes > 0


@pytest.mark.parametrize("content", [b"not onnx", None], ids=["does not load", "wrong answers"])
def test_a_hint_that_does_not_hold_asks_for_the_others_and_leaves_nothing_in_memory(
    tmp_path: Path, server: ArtifactServer, residency: Residency, content: bytes | None
) -> None:
    made = tmp_path / "made"
    hinted = linear_file(made, weight=2.1) if content is None else content
    small = bundle_of_variants(
        made, {"hinted": VariantFile(content=hinted), "other": VariantFile(content=linear_file(made))}
    )
    disk = Disk(tmp_path / "store", small, server)
    disk.fetch("hinted")

    with pytest.raises(HintDidNotHold, match="hinted"):
        choose(small, disk.store, residency, "hinted")
    assert residency.resident() == ()
    disk.fetch()
    chosen = choose(small, disk.store, residency)
    assert (chosen.warm.variant.name, [one.right for one in chosen.figures]) == ("other", [False, True])


def test_the_only_candidate_has_no_others_to_ask_for(tmp_path: Path, residency: Residency) -> None:
    made = tmp_path / "made"
    small = bundle_of_variants(
        made,
        {
            "only": VariantFile(content=linear_file(made, weight=2.1)),
            "other": VariantFile(content=linear_file(made), architectures=(ELSEWHERE,)),
        },
    )

    with pytest.raises(GoldenMismatchError, match="differs from its golden output"):
        choose(small, filled(tmp_path / "store", small), residency, "only")


def heavy_file(folder: Path, size_mb: int) -> bytes:
    """As `linear_file`, with ballast that its graph uses."""
    from onnx import helper, load_from_string, numpy_helper

    model = load_from_string(linear_file(folder))
    ballast = np.random.default_rng(size_mb).random(size_mb * 250_000, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    model.graph.node[4].output[0] = "before_ballast"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["ballast", "largest"], ["heavy"]),
            helper.make_node("ReduceMin", ["heavy"], ["least"], keepdims=0),
            helper.make_node("Min", ["least", "nothing"], ["still_nothing"]),
            helper.make_node("Add", ["before_ballast", "still_nothing"], ["scores"]),
        ]
    )
    return bytes(model.SerializeToString())


def test_a_variant_that_the_memory_budget_refuses_gives_way_to_one_that_fits(tmp_path: Path) -> None:
    made = tmp_path / "made"
    small = bundle_of_variants(
        made,
        {"large": VariantFile(content=heavy_file(made, 40)), "small": VariantFile(content=linear_file(made, busy=4))},
    )
    residency = Residency(budget_bytes=30_000_000, on_event=lambda *_: None)
    try:
        chosen = choose(small, filled(tmp_path / "store", small), residency)
    finally:
        residency.close()

    assert chosen.warm.variant.name == "small"
    assert [(one.variant, one.fault) for one in chosen.figures] == [("large", "no memory"), ("small", "")]


def test_candidates_that_do_not_fit_into_memory_together_are_measured_all_the_same(tmp_path: Path) -> None:
    made = tmp_path / "made"
    content = {f"v{size}": VariantFile(content=heavy_file(made, size)) for size in (20, 21, 22)}
    small = bundle_of_variants(made, content)
    residency = Residency(budget_bytes=75_000_000, on_event=lambda *_: None)
    try:
        chosen = choose(small, filled(tmp_path / "store", small), residency)
        used = residency.used_bytes
    finally:
        residency.close()

    assert all(one.right and one.p50_us > 0 for one in chosen.figures)
    assert used <= 75_000_000
    assert chosen.warm.slot.model is not None


def test_candidates_that_would_hold_too_much_memory_sleep_between_their_turns(
    tmp_path: Path, three: SmallBundle
) -> None:
    told: list[tuple[str, str]] = []
    residency = Residency(budget_bytes=None, on_event=lambda kind, name, detail: told.append((kind, name)))
    try:
        store = filled(tmp_path / "store", three)
        chosen = choose_variant(three.digest, store=store, loading=loading_in(residency), held_bytes=1)
    finally:
        residency.close()

    for name in ("m 1.0.0 slow", "m 1.0.0 quick"):
        assert told.count((ASLEEP, name)) > MIN_ROUNDS
    assert all(one.right and one.p50_us > 0 for one in chosen.figures)
    assert chosen.warm.variant.name == "quick"
    assert chosen.warm.slot.model is not None


def test_what_is_not_chosen_is_collected_and_fetched_again_when_it_is_needed(
    tmp_path: Path, three: SmallBundle, server: ArtifactServer, residency: Residency
) -> None:
    disk = Disk(tmp_path / "store", three, server)
    disk.fetch()
    disk.asked_for()

    disk.store.collect_garbage({three.digest: {"quick"}})

    assert not is_fetched(three.assignment, store=disk.store)
    assert is_fetched(replace(three.assignment, variant="quick"), store=disk.store)
    disk.fetch()
    assert disk.asked_for() == ["slow"]
    assert choose(three, disk.store, residency).warm.variant.name == "quick"


def test_a_hint_that_did_not_hold_is_forgotten_on_disk_and_restarts_still_count(
    tmp_path: Path, three: SmallBundle
) -> None:
    state = ControlState(
        models={"m": ModelState(phase=Phase.STAGED, target=replace(three.assignment, variant="quick"))}
    )
    state = transitions.recovered(transitions.warming(state, "m", "boot-1"), "boot-1")
    assert state.models["m"].phase is Phase.REVERTED  # a death while the hinted one warms is like any other

    state = transitions.warming(
        ControlState(models={"m": ModelState(phase=Phase.STAGED, target=replace(three.assignment, variant="quick"))}),
        "m",
        "boot-1",
    )
    file = StateFile(tmp_path / "control")
    file.save(transitions.hint_refuted(state, "m"))
    kept = transitions.recovered(file.load(), "boot-1").models["m"]

    assert (kept.phase, kept.target, kept.guard) == (Phase.DOWNLOADING, three.assignment, None)


def test_figures_of_another_onnxruntime_are_not_reported() -> None:
    figures = (VariantFigures(variant="a", right=True, p50_us=1.0),)
    installed = Installed(bundle="b" * 64, version="1.0.0", variant="a", figures=figures, measured_with="now")
    state = ControlState(models={"m": ModelState(phase=Phase.HEALTHY, active=installed)})

    assert model_reports(state, measured_with="now")[0].variants == list(figures)
    assert model_reports(state, measured_with="later")[0].variants == []


def test_a_slow_moment_of_the_machine_falls_on_every_candidate() -> None:
    speed = iter(range(10_000))

    def turn(cost: float) -> Callable[[], Sequence[float]]:
        return lambda: [cost * (10.0 if 20 <= next(speed) < 60 else 1.0)]

    medians = interleaved_medians_s({"a": turn(1.0), "b": turn(1.2), "c": turn(1.1)}, clock=lambda: 0.0)

    assert sorted(medians, key=lambda name: medians[name]) == ["a", "c", "b"]


@given(measure_s=st.floats(0, 100), turn_s=st.floats(0, 100))
def test_measuring_ends_in_time_and_not_before_everyone_had_its_turns(measure_s: float, turn_s: float) -> None:
    now, turns = [0.0], {"a": 0, "b": 0}

    def turn(name: str) -> Callable[[], Sequence[float]]:
        def run() -> Sequence[float]:
            now[0] += turn_s
            turns[name] += 1
            return [turn_s]

        return run

    interleaved_medians_s({name: turn(name) for name in turns}, measure_s=measure_s, clock=lambda: now[0])

    assert turns["a"] == turns["b"]
    assert MIN_ROUNDS <= turns["a"] <= MAX_ROUNDS
    assert turns["a"] == MIN_ROUNDS or (turns["a"] - 1) * 2 * turn_s <= measure_s * 1.001


FIGURES = st.builds(
    VariantFigures,
    variant=st.sampled_from(["a", "b", "c"]),
    right=st.booleans(),
    p50_us=st.sampled_from([0.0, 1.0, 2.0, 3.0]),
)


@given(st.lists(FIGURES))
def test_what_is_kept_is_right_measured_and_no_slower_than_any_other_such(figures: list[VariantFigures]) -> None:
    able = [one for one in figures if one.right and one.p50_us > 0]
    kept = fastest_right(figures)

    assert (kept is None) == (not able)
    assert kept is None or (kept in able and kept.p50_us == min(one.p50_us for one in able))


def test_every_failure_has_its_word_and_a_hint_narrows_to_one(three: SmallBundle) -> None:
    words = {
        MemoryBudgetError("m"): "no memory",
        OverloadedError("o"): "no memory",
        ArtifactCorruptError("a"): "damaged file",
        GoldenMismatchError("g"): "wrong answers",
        ModelLoadError("l"): "does not load",
    }
    assert {fault_of(error): word for error, word in words.items()} == {word: word for word in words.values()}
    assert [one.name for one in wanted_variants(three.manifest, "quick", HERE)] == ["quick"]
    assert [one.name for one in wanted_variants(three.manifest, "", ELSEWHERE)] == ["slow", "quick", "other"]
