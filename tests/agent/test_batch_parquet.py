"""Parquet in and out: lists or columns, kept columns with their types, rows that are not whole."""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.batch.engine import BatchReport, score_file
from edge_agent.batch.job import BatchJob
from edge_agent.errors import ConfigError, InvalidInputError
from tests.agent.runtime import onnx_files

pa: Any = pytest.importorskip("pyarrow", reason="no pyarrow: pip install 'edgefleet[batch]'")
pq: Any = pytest.importorskip("pyarrow.parquet", reason="no pyarrow: pip install 'edgefleet[batch]'")

X = np.random.default_rng(4).normal(size=(1_000, 3)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_files.linear(tmp_path / "linear.onnx")


def write(path: Path, columns: dict[str, Any], *, group_rows: int = 300) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)
    return path


def score(model: Path, source: Path, target: Path, **settings: Any) -> BatchReport:
    return score_file(BatchJob(model_path=model, input_path=source, output_path=target, **settings))


def lists(x: np.ndarray, kind: str) -> Any:
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    values = [row.tolist() for row in x]
    return pa.array(values, type=pa.large_list(pa.float64()) if kind == "large" else pa.list_(pa.float32()))


@pytest.mark.parametrize("kind", ["fixed", "variable", "large"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
def test_a_column_of_lists_is_the_input_of_its_name(model: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    source = write(tmp_path / "in.parquet", {"other": pa.array(["a"] * len(X)), "x": lists(X, kind)})
    target = tmp_path / f"out.{suffix}"

    assert score(model, source, target).scored == len(X)

    expected = 2 * X.sum(axis=1)
    if suffix == "parquet":
        table = pq.read_table(target)
        assert table.schema.field("scores").type == pa.list_(pa.float32(), 2)
        assert table["row"].to_pylist() == list(range(len(X)))
        found = np.array(table["scores"].to_pylist())[:, 1]
    elif suffix == "csv":
        with target.open(newline="") as file:
            found = np.array([float(line["scores[1]"]) for line in csv.DictReader(file)])
    else:
        found = np.load(target)["scores"][:, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_numeric_column_per_element_is_a_single_input(model: Path, tmp_path: Path) -> None:
    columns = {"a": X[:, 0], "id": np.arange(len(X)), "b": X[:, 1].astype(np.float64), "c": X[:, 2]}
    source = write(tmp_path / "in.parquet", columns)

    score(model, source, tmp_path / "out.parquet", keep=("id",))

    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == list(range(len(X)))
    np.testing.assert_allclose(np.array(table["scores"].to_pylist())[:, 1], 2 * X.sum(axis=1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidInputError, match="3 numeric ones"):
        score(model, source, tmp_path / "again.parquet")


def test_an_image_model_takes_nested_and_flat_lists(tmp_path: Path) -> None:
    deep = onnx_files.identity(tmp_path / "deep.onnx", 1, ["n", 2, 3])
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    for name, values in (("nested", x.tolist()), ("flat", x.reshape(4, 6).tolist())):
        source = write(tmp_path / f"{name}.parquet", {"x": pa.array(values)})

        score(deep, source, tmp_path / "out.npz")
        score(deep, source, tmp_path / "out.parquet")

        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], x)
        assert pq.read_table(tmp_path / "out.parquet")["y"].to_pylist() == x.tolist()


def test_scalars_and_text_are_inputs_of_one_value_a_row(tmp_path: Path) -> None:
    both = onnx_files.two_inputs(tmp_path / "sum.onnx")
    source = write(tmp_path / "in.parquet", {"b": [10, 20, None], "a": [1.0, None, 3.0]})
    report = score(both, source, tmp_path / "out.npz")
    assert (report.scored, report.rejected) == (1, 2)
    assert np.load(tmp_path / "out.npz")["total"].tolist() == [11.0]

    same = onnx_files.identity(tmp_path / "same.onnx", 8, ["n"])
    score(same, write(tmp_path / "text.parquet", {"x": ["a", "ü"]}), tmp_path / "text.out.parquet")
    assert pq.read_table(tmp_path / "text.out.parquet")["y"].to_pylist() == ["a", "ü"]


def test_rows_that_are_not_whole_are_rejects_with_their_reason(model: Path, tmp_path: Path) -> None:
    values = [[1.0, 2.0, 3.0], None, [1.0, 2.0], [1.0, None, 3.0], [4.0, 5.0, 6.0]]
    source = write(tmp_path / "in.parquet", {"x": pa.array(values), "id": ["a", "b", "c", "d", "e"]}, group_rows=2)

    report = score(model, source, tmp_path / "out.parquet", keep=("id",))

    assert (report.scored, report.rejected) == (2, 3)
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert (table["row"], table["id"]) == ([0, 4], ["a", "e"])
    reasons = (tmp_path / "out.rejects.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in reasons] == ["1", "2", "3"]
    assert "is null" in reasons[0]
    assert "shape [2]" in reasons[1]
    assert "null" in reasons[2]


def test_kept_columns_come_out_as_they_went_in(model: Path, tmp_path: Path) -> None:
    day = datetime.datetime(2026, 5, 1, 12, 30, tzinfo=datetime.UTC)
    kept = {
        "id": pa.array([2**60 + 1, None, 3], type=pa.int64()),
        "name": pa.array(["ä", None, ""]),
        "at": pa.array([day, None, day], type=pa.timestamp("us", tz="UTC")),
        "price": pa.array([1.25, None, 2.0], type=pa.float64()),
        "ok": pa.array([True, False, None]),
    }
    source = write(tmp_path / "in.parquet", {"x": lists(X[:3], "fixed"), **kept})

    score(model, source, tmp_path / "out.parquet", keep=tuple(kept))

    table = pq.read_table(tmp_path / "out.parquet")
    for name, column in kept.items():
        assert table[name].to_pylist() == column.to_pylist(), name
        assert table.schema.field(name).type == column.type


def test_a_run_that_was_stopped_goes_on_in_the_middle_of_a_row_group(model: Path, tmp_path: Path) -> None:
    job = BatchJob(
        model_path=model,
        input_path=write(tmp_path / "in.parquet", {"x": lists(X, "fixed")}, group_rows=700),
        output_path=tmp_path / "out.parquet",
        resume=True,
    )
    runs = 0
    while not score_file(job, is_stopping=lambda: True).is_finished:
        runs += 1
        if runs > 2:
            break
    score_file(job)

    assert pq.read_table(job.output_path)["row"].to_pylist() == list(range(len(X)))


@pytest.mark.parametrize("content", [b"", b"PAR1 not", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_told(model: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.parquet").write_bytes(content)

    with pytest.raises(InvalidInputError, match=r"in\.parquet"):
        score(model, tmp_path / "in.parquet", tmp_path / "out.csv")


def test_columns_that_are_not_there_are_told(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", {"y": [1.0]})

    with pytest.raises(InvalidInputError, match="it has y"):
        score(model, source, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="--keep id"):
        score(model, source, tmp_path / "out.csv", keep=("id",))


def test_without_the_library_one_line_says_how_to_install_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.parquet", {"x": lists(X, "fixed")})
    (tmp_path / "in.csv").write_text("1,2,3\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    for job in ((source, tmp_path / "out.csv"), (tmp_path / "in.csv", tmp_path / "out.parquet")):
        with pytest.raises(ConfigError, match=r"pip install 'edgefleet\[batch\]'"):
            score(model, *job)
