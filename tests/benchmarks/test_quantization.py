"""What the benchmarks of quantization make of their figures, and the data they cut."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import q1_variant_speed, q2_stock_quantization, q3_variant_accuracy, q4_quantization_peers
from benchmarks.q4_quantization_peers import OURS, Compared, Found
from benchmarks.quantization.cases import louder_and_softer, regions
from benchmarks.quantization.measured import CHOSEN, GIVEN, STOCK, Measured, geometric_mean
from benchmarks.quantization.parts import PARTS, Case, Settings, read_case, write_case
from benchmarks.quantization.photographs import MAX_CLASS_SHARE, PHOTOGRAPHS_OF, SURE, chosen_cuts, cut
from benchmarks.quantization.timing import p50_us
from fleet_server.errors import UnavailableError
from quantize.data import Samples
from quantize.metrics import METRICS
from tests.quantize.networks import dense_classifier

_PROGRAMS = Path(q4_quantization_peers.PROGRAMS)


def _measured(
    *, given: float = 100.0, chosen: float = 50.0, stock: float | None = 100.0, keeps: float = 1.0
) -> Measured:
    p50 = {GIVEN: given, CHOSEN: chosen, **({} if stock is None else {STOCK: stock})}
    return Measured(
        p50_us=p50,
        quality={GIVEN: 0.9, CHOSEN: 0.9 * keeps},
        keeps={GIVEN: 1.0, CHOSEN: keeps},
        variant="int8",
        origin="committed",
        truth="labels",
        sizes={"final": 10},
        metric="accuracy",
        stock_errors={STOCK: "it broke"} if stock is None else {},
    )


def test_the_geometric_mean_of_twice_and_half_as_fast_is_as_fast() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no ratios"):
        geometric_mean([])


def test_one_model_that_became_slower_fails_q1_whatever_the_mean() -> None:
    fast = q1_variant_speed.judge({"a": _measured(chosen=25.0), "b": _measured(chosen=100.0)})
    assert (fast.ratio, fast.holds) == (2.0, True)
    slow = q1_variant_speed.judge({"a": _measured(chosen=10.0), "b": _measured(chosen=101.0)})
    assert slow.ratio > q1_variant_speed.TARGET
    assert not slow.holds
    assert slow.figures["worst"] == {"b": 0.99}


def test_a_model_that_stock_quantization_cannot_do_is_named_and_no_part_of_the_mean() -> None:
    result = q2_stock_quantization.judge({"a": _measured(stock=100.0), "b": _measured(stock=None)})
    assert (result.ratio, result.holds) == (2.0, True)
    assert result.figures["failed"] == {"b": {STOCK: "it broke"}}
    assert set(result.figures["models"]) == {"a"}


def test_the_worst_model_decides_on_accuracy() -> None:
    result = q3_variant_accuracy.judge({"a": _measured(keeps=1.01), "b": _measured(keeps=0.994)})
    assert (result.ratio, result.holds, result.figures["worst"]) == (0.994, False, "b")


def _compared(*, ours: Found, nncf: Found, olive: Found) -> Compared:
    return Compared(found={OURS: ours, "nncf": nncf, "olive": olive}, given_us=100.0, max_drop=0.005)


def _result(p50: float, *, keeps: float = 1.0, took_s: float = 10.0) -> Found:
    return Found(took_s=took_s, file=Path("x.onnx"), keeps=keeps, p50_us=p50)


def test_a_peer_that_misses_the_drop_or_fails_counts_as_fp32() -> None:
    one = _compared(
        ours=_result(50.0, took_s=20.0), nncf=_result(10.0, keeps=0.99), olive=Found(took_s=None, error="no")
    )
    assert one.latency_ratio() == 0.5
    assert one.time_ratio() == 2.0
    result = q4_quantization_peers.judge({"a": one}, {})
    assert not result.holds
    assert result.figures["latency_ratio_where_a_peer_was_usable"] is None
    counted = {name: row["counts_as"] for name, row in result.figures["models"]["a"]["searches"].items()}
    assert counted == {OURS: OURS, "nncf": "fp32 as given", "olive": "fp32 as given"}


def test_we_count_as_fp32_too_when_we_miss_the_drop() -> None:
    one = _compared(ours=_result(20.0, keeps=0.9), nncf=_result(50.0), olive=_result(40.0, took_s=30.0))
    assert one.latency_ratio() == 2.5
    assert one.time_ratio() == 1.0


def test_a_result_slower_than_fp32_is_no_better_opponent_than_fp32_in_the_cautious_ratio() -> None:
    one = _compared(ours=_result(80.0), nncf=_result(160.0), olive=_result(200.0))
    assert (one.latency_ratio(), one.cautious_ratio()) == (0.5, 0.8)


def test_q4_holds_only_when_latency_and_search_time_both_do() -> None:
    fast = _compared(ours=_result(40.0, took_s=9.0), nncf=_result(50.0), olive=_result(60.0))
    slow = _compared(ours=_result(40.0, took_s=11.0), nncf=_result(50.0), olive=_result(60.0))
    assert q4_quantization_peers.judge({"a": fast}, {}).holds
    assert not q4_quantization_peers.judge({"a": slow}, {}).holds


@pytest.fixture(scope="module")
def judging() -> Iterator[ModuleType]:
    sys.path.insert(0, str(_PROGRAMS))
    try:
        yield importlib.import_module("judging")
    finally:
        sys.path.remove(str(_PROGRAMS))
        sys.modules.pop("judging", None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), metric=st.sampled_from(sorted(METRICS)), ties=st.booleans())
def test_the_peers_metrics_are_ours(judging: ModuleType, seed: int, metric: str, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(20, 6)).astype(np.float32)
    labels = np.arange(20, dtype=np.int64) % 2
    outputs = generator.normal(size=(20, 6 if metric == "mse" else 2)).astype(np.float32)
    outputs = outputs.round() if ties else outputs
    truth = None if metric == "mse" else labels
    ours = METRICS[metric]({"y": outputs}, Samples(inputs={"x": inputs}, labels=truth))
    theirs = judging.quality(metric, outputs, inputs, truth)
    assert theirs == pytest.approx(ours if METRICS[metric].higher_is_better else 1 / ours)
    assert judging.by_sample(metric, outputs, inputs, truth).shape == (20,)


def test_the_peers_reconstruction_errors_are_ours(judging: ModuleType) -> None:
    generator = np.random.default_rng(1)
    inputs, outputs = generator.normal(size=(2, 20, 6)).astype(np.float32)
    labels = np.arange(20, dtype=np.int64) % 2
    ours = METRICS["auc"]({"y": outputs}, Samples(inputs={"x": inputs}, labels=labels))
    assert judging.quality("auc", outputs, inputs, labels) == pytest.approx(ours)


def _turns(seed: int) -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    while True:
        yield generator.random((50, 4, 4, 3), dtype=np.float32)


def _first_pixel_classifier(cuts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sure of class 0 in most cuts, of class 1 in few, and unsure in the others."""
    pixel = cuts[:, 0, 0, 0].astype(np.float64)
    first = np.where(pixel < 0.6, 0.95, np.where(pixel < 0.8, 0.05, 0.5))
    return np.stack([first, 1 - first], axis=1)


def test_only_cuts_that_fp32_is_sure_of_are_chosen_and_no_class_is_more_than_its_share() -> None:
    chosen = chosen_cuts(_turns(1), _first_pixel_classifier, count=60)
    scores = _first_pixel_classifier(chosen.cuts)
    assert (scores.max(axis=1) >= SURE).all()
    assert (scores.argmax(axis=1) == chosen.classes).all()
    assert np.bincount(chosen.classes).tolist() == [MAX_CLASS_SHARE * 60] * 2


def test_looking_for_cuts_ends_when_fp32_is_sure_of_one_class_alone() -> None:
    def one_class(cuts: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.tile([0.99, 0.01], (len(cuts), 1))

    with pytest.raises(UnavailableError, match="10 are needed"):
        chosen_cuts(_turns(1), one_class, count=10)


def test_a_photograph_is_in_one_part_alone() -> None:
    names = [name for part in PARTS for name in PHOTOGRAPHS_OF[part]]
    assert len(names) == len(set(names))


def test_a_cut_is_of_the_wanted_size_and_of_the_photographs_values() -> None:
    photograph = np.full((50, 80, 3), 200, dtype=np.uint8)
    generator = np.random.default_rng(1)
    for _ in range(20):
        assert (cut(photograph, size=32, generator=generator) == np.full((32, 32, 3), 200.0)).all()


def test_no_frame_of_a_recording_is_in_two_parts() -> None:
    frames = np.arange(200)
    windows = np.stack([frames[start : start + 5] for start in range(196)]).astype(np.float32)
    parts = [set(region.astype(int).ravel().tolist()) for region in regions(windows)]
    assert len(parts) == len(PARTS)
    assert not parts[0] & parts[1] and not parts[1] & parts[2]
    assert louder_and_softer(windows[:7], count=10, seed=1).shape == (10, 5)


def _case() -> Case:
    generator = np.random.default_rng(1)
    model = dense_classifier(generator.normal(size=(16, 4)).astype(np.float32))
    parts = [
        Samples(inputs={"x": generator.normal(size=(8, 16)).astype(np.float32)}, labels=np.arange(8) % 4) for _ in PARTS
    ]
    return Case(
        settings=Settings(name="dense", metric="accuracy", max_drop=0.01, task="classification", truth="made up"),
        fp32=model,
        calibration=parts[0],
        selection=parts[1],
        final=parts[2],
    )


def test_a_case_on_disk_is_the_same_case(tmp_path: Path) -> None:
    case = _case()
    write_case(case, tmp_path / "case")
    again = read_case(tmp_path / "case")
    assert (again.settings, again.fp32) == (case.settings, case.fp32)
    assert again.final.sha256() == case.final.sha256()
    assert again.calibration.sha256() == case.calibration.sha256() != again.selection.sha256()


def test_the_same_bytes_under_two_names_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_BENCH_SMALL", "1")
    write_case(_case(), tmp_path / "case")
    (tmp_path / "copy.onnx").write_bytes(_case().fp32)
    found = p50_us(tmp_path / "case", {"a": tmp_path / "case" / "model.onnx", "b": tmp_path / "copy.onnx"})
    assert found["a"] == found["b"] > 0
