"""Scoring files: good rows out, bad rows beside them, nothing half-written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edge_agent.batch import BatchReport, score_file
from edge_agent.errors import ConfigError, InvalidInputError, UnknownModelError
from tests.agent.local_api.small_service import SmallService
from tests.agent.runtime import onnx_files


@pytest.fixture
def service(tmp_path: Path) -> SmallService:
    return SmallService({"linear": onnx_files.linear(tmp_path / "linear.onnx")}, labels=("no", "yes"))


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 1000])
def test_an_npz_is_scored_in_order_whatever_the_chunk(service: SmallService, tmp_path: Path, chunk_rows: int) -> None:
    x = np.random.default_rng(3).normal(size=(15, 3)).astype(np.float32)
    source, target = save_npz(tmp_path / "in.npz", x=x), tmp_path / "out.npz"

    report = score_file(service, "linear", source, target, chunk_rows=chunk_rows)

    assert report == BatchReport(scored=15, rejected=0, rejects_path=None)
    with np.load(target) as scores:
        np.testing.assert_array_equal(scores["row"], np.arange(15))
        np.testing.assert_allclose(scores["scores"][:, 1], 2 * x.sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(scores["class"], scores["scores"].argmax(axis=1))
        assert set(scores["label"]) == {"no", "yes"}


@pytest.mark.parametrize("header", ["", "a,b,c\n", "\ufeffa,b,c\n"])
def test_a_csv_is_scored_with_or_without_its_header(service: SmallService, tmp_path: Path, header: str) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(header + "1,2,3\n\n-1, -2 ,-3\n", encoding="utf-8")

    score_file(service, "linear", source, target)

    assert read(target) == [
        ["row", "class", "label", "scores[0]", "scores[1]"],
        ["0", "1", "yes", "0.0", "12.0"],
        ["1", "0", "no", "0.0", "-12.0"],
    ]


def test_bad_lines_of_a_csv_are_written_beside_the_scores_with_their_reason(
    service: SmallService, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("1,2,3\n1,2\n1,2,x\n1,2,nan\n1,2,1e300\n4,5,6\n")

    report = score_file(service, "linear", source, target)

    rejects = read(tmp_path / "out.rejects.csv")
    assert report == BatchReport(scored=2, rejected=4, rejects_path=tmp_path / "out.rejects.csv")
    assert [row[0] for row in read(target)] == ["row", "0", "5"]
    assert [row[0] for row in rejects] == ["row", "1", "2", "3", "4"]
    assert "2 columns, the model takes 3" in rejects[1][1]
    assert "column 2" in rejects[2][1]
    assert "too large for FP32" in rejects[4][1]


def test_a_row_on_which_the_model_fails_costs_itself_only(tmp_path: Path) -> None:
    service = SmallService({"table": onnx_files.row_of_table(tmp_path / "table.onnx")})
    source, target = save_npz(tmp_path / "in.npz", x=np.array([0, 1, 9, 1])), tmp_path / "out.npz"

    report = score_file(service, "table", source, target)

    assert (report.scored, report.rejected) == (3, 1)
    with np.load(target) as scores:
        assert scores["row"].tolist() == [0, 1, 3]
        assert scores["y"].tolist() == [10.0, 20.0, 20.0]
    assert read(tmp_path / "out.rejects.csv")[1][0] == "2"


def test_a_model_of_one_sample_is_scored_row_by_row(tmp_path: Path) -> None:
    service = SmallService({"one": onnx_files.identity(tmp_path / "one.onnx", TensorProto.FLOAT, [1, 2, 2])})
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    target = tmp_path / "out.npz"

    score_file(service, "one", save_npz(tmp_path / "in.npz", x=x), target)

    with np.load(target) as scores:
        np.testing.assert_array_equal(scores["y"], x)


def test_several_inputs_come_from_one_npz(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})
    source = save_npz(tmp_path / "in.npz", a=np.array([1.0, 2.0]), b=np.array([10.0, 20.0]))

    score_file(service, "sum", source, tmp_path / "out.csv")

    assert read(tmp_path / "out.csv") == [["row", "total"], ["0", "11.0"], ["1", "22.0"]]


def test_the_real_anomaly_model_scores_a_recording(tmp_path: Path) -> None:
    service = SmallService({"ad": onnx_files.mlperf_tiny("ad.onnx")})
    windows = np.load(onnx_files.mlperf_tiny("ad_inputs.npy"))
    target = tmp_path / "out.npz"

    report = score_file(service, "ad", save_npz(tmp_path / "in.npz", input_1=windows), target, chunk_rows=50)

    assert report.scored == 196
    with np.load(target) as scores:
        assert float(((scores["Identity"] - windows) ** 2).mean()) == pytest.approx(9.71, abs=0.01)


def test_a_clean_run_takes_the_rejects_of_an_earlier_run_away(service: SmallService, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("1,2\n")
    score_file(service, "linear", source, target)
    assert (tmp_path / "out.rejects.csv").exists()
    source.write_text("1,2,3\n")

    score_file(service, "linear", source, target)

    assert not (tmp_path / "out.rejects.csv").exists()


def test_an_empty_file_has_no_scores(service: SmallService, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b,c\n")
    for source in (tmp_path / "in.csv", save_npz(tmp_path / "in.npz", x=np.zeros((0, 3)))):
        report = score_file(service, "linear", source, tmp_path / "out.npz")

        assert report == BatchReport(scored=0, rejected=0, rejects_path=None)
        with np.load(tmp_path / "out.npz") as scores:
            assert scores["row"].tolist() == []


def broken(path: Path, kind: str) -> Path:
    """A file that looks like an .npz and is not a good one."""
    if kind == "not a zip":
        path.write_bytes(b"1,2,3")
    elif kind == "torn":
        save_npz(path, x=np.ones((5_000, 3)))
        path.write_bytes(path.read_bytes()[:5_000])
    elif kind == "other names":
        save_npz(path, y=np.ones((2, 3)))
    elif kind == "objects":
        save_npz(path, x=np.array([{"a": 1}], dtype=object))
    else:
        save_npz(path, x=np.float32(1))
    return path


@pytest.mark.parametrize("kind", ["not a zip", "torn", "other names", "objects", "no rows"])
def test_an_unreadable_npz_is_told_and_leaves_the_old_scores_alone(
    service: SmallService, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "out.npz"
    target.write_text("the old scores")

    with pytest.raises(InvalidInputError, match=r"in\.npz"):
        score_file(service, "linear", broken(tmp_path / "in.npz", kind), target)

    assert target.read_text() == "the old scores"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "linear.onnx", "out.npz"]


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})
    source = save_npz(tmp_path / "in.npz", a=np.ones(2), b=np.ones(3))

    with pytest.raises(InvalidInputError, match="different numbers of rows"):
        score_file(service, "sum", source, tmp_path / "out.csv")


def test_a_csv_for_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    service = SmallService({"sum": onnx_files.two_inputs(tmp_path / "sum.onnx")})
    (tmp_path / "in.csv").write_text("1,2\n")

    with pytest.raises(InvalidInputError, match=r"use an \.npz file"):
        score_file(service, "sum", tmp_path / "in.csv", tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("in.csv", "out.txt"),
        ("in.txt", "out.csv"),
        ("none.csv", "out.csv"),
        ("in.csv", "in.csv"),
        ("in.csv", "no/o.csv"),
    ],
)
def test_paths_that_cannot_be_are_refused(service: SmallService, tmp_path: Path, source: str, target: str) -> None:
    (tmp_path / "in.csv").write_text("1,2,3\n")

    with pytest.raises(ConfigError):
        score_file(service, "linear", tmp_path / source, tmp_path / target)

    assert (tmp_path / "in.csv").read_text() == "1,2,3\n"


def test_an_unknown_model_is_refused(service: SmallService, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        score_file(service, "other", tmp_path / "in.csv", tmp_path / "out.csv")
