"""Scoring tables: good rows out, bad rows beside them, nothing half-written."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edge_agent.batch.engine import BatchReport, score_file
from edge_agent.batch.job import BatchJob
from edge_agent.errors import ConfigError, InvalidInputError, ModelLoadError
from tests.agent.runtime import onnx_files

LABELS = ("no", "yes")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_files.linear(tmp_path / "linear.onnx")


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def score(model: Path, source: Path, target: Path, **settings: Any) -> BatchReport:
    return score_file(BatchJob(model_path=model, input_path=source, output_path=target, **settings))


def totals(report: BatchReport) -> tuple[int, int]:
    return report.scored, report.rejected


@pytest.mark.parametrize("batch_rows", [None, 1, 7, 1000])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_scored_in_order_whatever_the_batch(
    model: Path, tmp_path: Path, batch_rows: int | None, threads: int, save: Any
) -> None:
    x = np.random.default_rng(3).normal(size=(1_500, 3)).astype(np.float32)
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    save(source, x=x)

    report = score(model, source, target, batch_rows=batch_rows, threads=threads, labels=LABELS)

    assert totals(report) == (1_500, 0)
    assert report.rejects_path is None
    with np.load(target) as scores:
        np.testing.assert_array_equal(scores["row"], np.arange(1_500))
        np.testing.assert_allclose(scores["scores"][:, 1], 2 * x.sum(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(scores["class"], scores["scores"].argmax(axis=1))
        np.testing.assert_array_equal(scores["label"], np.array(LABELS)[scores["class"]])
    assert zipfile.ZipFile(target).testzip() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "linear.onnx", "out.npz"]


@pytest.mark.parametrize("header", ["", "a,b,c\n", "\ufeffa,b,c\n"])
def test_a_csv_is_scored_with_or_without_its_header(model: Path, tmp_path: Path, header: str) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(header + "1,2,3\n\n-1, -2 ,-3\n", encoding="utf-8")

    score(model, source, target, labels=LABELS)

    assert read(target) == [
        ["row", "class", "label", "scores[0]", "scores[1]"],
        ["0", "1", "yes", "0.0", "12.0"],
        ["1", "0", "no", "0.0", "-12.0"],
    ]


def test_bad_lines_of_a_csv_are_written_beside_the_scores_with_their_reason(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("1,2,3\n1,2\n1,2,x\n1,2,nan\n1,2,1e300\n4,5,6\n")

    report = score(model, source, target)

    rejects = read(tmp_path / "out.rejects.csv")
    assert totals(report) == (2, 4)
    assert report.rejects_path == tmp_path / "out.rejects.csv"
    assert [row[0] for row in read(target)] == ["row", "0", "5"]
    assert [row[0] for row in rejects] == ["row", "1", "2", "3", "4"]
    assert "2 columns, the model takes 3" in rejects[1][1]
    assert "column 2" in rejects[2][1]
    assert "too large for FP32" in rejects[4][1]


def test_columns_of_a_csv_are_kept_beside_the_scores(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id,a,when,b,c\nx1,1,"May, 1",2,3\n,9,,bad,9\n007,4,,5,6\n')

    report = score(model, source, target, keep=("when", "id"))

    assert totals(report) == (2, 1)
    assert read(target)[1:] == [["0", "May, 1", "x1", "0.0", "12.0"], ["2", "", "007", "0.0", "30.0"]]


def test_arrays_of_an_npz_are_kept_whatever_their_type(model: Path, tmp_path: Path) -> None:
    kept = {
        "id": np.array(["ä", "bb", ""]),
        "when": np.array(["2026-01-01", "NaT", "2027-01-01"], dtype="datetime64[s]"),
    }
    source = save_npz(tmp_path / "in.npz", x=np.ones((3, 3)), box=np.arange(12).reshape(3, 2, 2), unused=1, **kept)

    score(model, source, tmp_path / "out.npz", keep=("id", "when", "box"))

    with np.load(tmp_path / "out.npz") as scores:
        assert set(scores.files) == {"row", "id", "when", "box", "scores"}
        for name, array in kept.items():
            np.testing.assert_array_equal(scores[name], array)
        np.testing.assert_array_equal(scores["box"], np.arange(12).reshape(3, 2, 2))


@pytest.mark.parametrize("keep", ["absent", "x", "row", "scores"])
def test_a_column_that_cannot_be_kept_is_told(model: Path, tmp_path: Path, keep: str) -> None:
    source = save_npz(tmp_path / "in.npz", x=np.ones((2, 3)), row=np.ones(2), scores=np.ones(2))

    with pytest.raises(ConfigError, match=keep):
        score(model, source, tmp_path / "out.npz", keep=(keep,))


def test_rows_on_which_the_model_fails_cost_themselves_only(tmp_path: Path) -> None:
    table = onnx_files.row_of_table(tmp_path / "table.onnx")
    rows = np.random.default_rng(5).integers(0, 2, size=700)
    rows[[0, 63, 64, 65, 400, 699]] = 9
    source, target = save_npz(tmp_path / "in.npz", x=rows), tmp_path / "out.npz"

    report = score(table, source, target)

    assert totals(report) == (694, 6)
    with np.load(target) as scores:
        good = np.flatnonzero(rows != 9)
        np.testing.assert_array_equal(scores["row"], good)
        np.testing.assert_array_equal(scores["y"], 10.0 * (rows[good] + 1))
    assert [row[0] for row in read(tmp_path / "out.rejects.csv")[1:]] == ["0", "63", "64", "65", "400", "699"]


def test_a_model_of_one_sample_is_scored_row_by_row(tmp_path: Path) -> None:
    one = onnx_files.identity(tmp_path / "one.onnx", TensorProto.FLOAT, [1, 2, 2])
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)

    score(one, save_npz(tmp_path / "in.npz", x=x), tmp_path / "out.npz")

    with np.load(tmp_path / "out.npz") as scores:
        np.testing.assert_array_equal(scores["y"], x)


def test_a_model_whose_rows_influence_each_other_is_scored_row_by_row(tmp_path: Path) -> None:
    from onnx import helper

    centred = onnx_files.save(
        tmp_path / "centred.onnx",
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    source = save_npz(tmp_path / "in.npz", x=np.arange(200, dtype=np.float32).reshape(100, 2))

    assert score(centred, source, tmp_path / "out.npz").batch_rows == 1
    with np.load(tmp_path / "out.npz") as scores:
        assert not scores["y"].any()


def test_several_inputs_come_from_one_npz(tmp_path: Path) -> None:
    both = onnx_files.two_inputs(tmp_path / "sum.onnx")
    source = save_npz(tmp_path / "in.npz", a=np.array([1.0, 2.0]), b=np.array([10.0, 20.0]))

    score(both, source, tmp_path / "out.csv")

    assert read(tmp_path / "out.csv") == [["row", "total"], ["0", "11.0"], ["1", "22.0"]]


def test_text_goes_in_and_out(tmp_path: Path) -> None:
    same = onnx_files.identity(tmp_path / "same.onnx", TensorProto.STRING, ["n"])
    source = save_npz(tmp_path / "in.npz", x=np.array(["a", "grün", ""]))

    for name in ("out.npz", "out.csv"):
        score(same, source, tmp_path / name)

    with np.load(tmp_path / "out.npz") as scores:
        assert scores["y"].tolist() == ["a", "grün", ""]
    assert [row[1] for row in read(tmp_path / "out.csv")] == ["y", "a", "grün", ""]


def test_the_real_anomaly_model_scores_a_recording(tmp_path: Path) -> None:
    windows = np.load(onnx_files.mlperf_tiny("ad_inputs.npy"))
    source, target = save_npz(tmp_path / "in.npz", input_1=windows), tmp_path / "out.npz"

    report = score(onnx_files.mlperf_tiny("ad.onnx"), source, target)

    assert report.scored == 196
    with np.load(target) as scores:
        assert float(((scores["Identity"] - windows) ** 2).mean()) == pytest.approx(9.71, abs=0.01)


def test_a_clean_run_takes_the_rejects_of_an_earlier_run_away(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("1,2\n")
    score(model, source, target)
    assert (tmp_path / "out.rejects.csv").exists()
    source.write_text("1,2,3\n")

    score(model, source, target)

    assert not (tmp_path / "out.rejects.csv").exists()


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_an_empty_file_has_no_scores(model: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in.csv").write_text("a,b,c\n")
    for source in (tmp_path / "in.csv", save_npz(tmp_path / "in.npz", x=np.zeros((0, 3)))):
        assert totals(score(model, source, tmp_path / f"out.{suffix}")) == (0, 0)

    if suffix == "npz":
        with np.load(tmp_path / "out.npz") as scores:
            assert (scores["row"].shape, scores["scores"].shape) == ((0,), (0, 2))
    else:
        assert read(tmp_path / "out.csv") == [["row", "scores[0]", "scores[1]"]]


def broken(path: Path, kind: str) -> Path:
    """A file that looks like an .npz and is not a good one."""
    if kind == "not a zip":
        path.write_bytes(b"1,2,3")
    elif kind == "torn":
        save_npz(path, x=np.ones((5_000, 3)))
        path.write_bytes(path.read_bytes()[:5_000])
    elif kind == "damaged":
        save_npz(path, x=np.ones((5_000, 3)))
        content = bytearray(path.read_bytes())
        content[60_000] ^= 1
        path.write_bytes(content)
    elif kind == "other names":
        save_npz(path, y=np.ones((2, 3)))
    elif kind == "other rows":
        save_npz(path, x=np.ones((2, 4)))
    elif kind == "objects":
        save_npz(path, x=np.array([{"a": 1}], dtype=object))
    else:
        save_npz(path, x=np.float32(1))
    return path


@pytest.mark.parametrize("kind", ["not a zip", "torn", "damaged", "other names", "other rows", "objects", "no rows"])
def test_an_unreadable_npz_is_told_and_leaves_the_old_scores_alone(model: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out.npz"
    target.write_text("the old scores")

    with pytest.raises(InvalidInputError, match=r"in\.npz"):
        score(model, broken(tmp_path / "in.npz", kind), target)

    assert target.read_text() == "the old scores"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "linear.onnx", "out.npz"]


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    both = onnx_files.two_inputs(tmp_path / "sum.onnx")

    with pytest.raises(InvalidInputError, match="different numbers of rows"):
        score(both, save_npz(tmp_path / "in.npz", a=np.ones(2), b=np.ones(3)), tmp_path / "out.csv")


def test_a_csv_for_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    both = onnx_files.two_inputs(tmp_path / "sum.onnx")
    (tmp_path / "in.csv").write_text("1,2\n")

    with pytest.raises(InvalidInputError, match=r"use an \.npz"):
        score(both, tmp_path / "in.csv", tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("source", "target", "settings"),
    [
        ("in.csv", "out.txt", {}),
        ("in.txt", "out.csv", {}),
        ("none.csv", "out.csv", {}),
        ("in.csv", "in.csv", {}),
        ("in.csv", "no/o.csv", {}),
        ("in.csv", "out.csv", {"batch_rows": 0}),
        ("in.csv", "out.csv", {"threads": 0}),
        ("in.csv", "out.csv", {"scale": "0..1"}),
        ("in.csv", "out.csv", {"keep": ("a",)}),
    ],
)
def test_a_job_that_cannot_be_is_refused(
    model: Path, tmp_path: Path, source: str, target: str, settings: dict[str, Any]
) -> None:
    (tmp_path / "in.csv").write_text("1,2,3\n")
    (tmp_path / "in.txt").write_text("1,2,3\n")

    with pytest.raises(ConfigError):
        score(model, tmp_path / source, tmp_path / target, **settings)

    assert (tmp_path / "in.csv").read_text() == "1,2,3\n"


def test_labels_that_do_not_fit_the_scores_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="labels"):
        score(model, save_npz(tmp_path / "in.npz", x=np.ones((2, 3))), tmp_path / "out.npz", labels=("one",))


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        score(tmp_path / "none.onnx", save_npz(tmp_path / "in.npz", x=np.ones(2)), tmp_path / "out.csv")


def edge_agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent", "batch", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_the_command_scores_tells_and_ends_with_0(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("1,2,3\n1,2\n")
    (tmp_path / "labels.txt").write_text("no\nyes\n")

    ended = edge_agent(
        "--model", f"m={model}", tmp_path / "in.csv", tmp_path / "out.csv", "--labels", tmp_path / "labels.txt"
    )

    assert ended.returncode == 0, ended.stderr
    assert "1 rows scored" in ended.stderr
    assert "1 rejected" in ended.stderr
    assert read(tmp_path / "out.csv")[1] == ["0", "1", "yes", "0.0", "12.0"]
    quiet = edge_agent("--model", f"m={model}", tmp_path / "out.csv", tmp_path / "x.csv", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["in.csv", "out.doc"], "must end in"),
        (["none.csv", "out.csv"], "none.csv"),
        (["in.csv", "out.csv", "--size", "2"], "HEIGHTxWIDTH"),
        (["in.csv", "out.csv", "--labels", "none.txt"], "none.txt"),
        (["in.csv", "out.csv", "--keep", "id"], "id"),
        (["in.csv", "out.csv", "--batch-size", "0"], "batch size"),
    ],
)
def test_arguments_that_cannot_be_are_one_line_and_status_2(
    model: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "in.csv").write_text("1,2,3\n")
    paths = [tmp_path / argument if "." in argument else argument for argument in arguments]

    ended = edge_agent("--model", f"m={model}", *paths)

    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1), ended.stderr
    assert says in ended.stderr


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    same = onnx_files.identity(tmp_path / "same.onnx", TensorProto.FLOAT, ["n", 1024])
    source = save_npz(tmp_path / "in.npz", x=np.ones((70_000, 1024), dtype=np.float32))  # 287 MB
    script = (
        "import re, sys; from edge_agent.cli import main; status = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(status)"
    )
    arguments = ["batch", "--model", f"m={same}", str(source), str(tmp_path / "out.npz"), "--quiet"]

    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True, timeout=60
    )

    assert int(ended.stdout) < 200 * 1024  # kB; the runtime alone takes some 60 MB
    (tmp_path / "out.npz").unlink()
    source.unlink()
