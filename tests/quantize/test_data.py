"""Calibration and labelled samples read from npz files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_protocol.manifest import TensorSpec
from quantize.data import Samples, batches, load_samples, split
from quantize.errors import InvalidDataError, InvalidModelError, InvalidOptionError

SPECS = (TensorSpec(name="x", datatype="FP32", shape=[-1, 2]),)
X = np.arange(20, dtype=np.float64).reshape(10, 2)


class Bomb:
    """Unpickling it would be seen."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "exploded", True))


def test_samples_come_back_as_the_model_takes_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=np.arange(10, dtype=np.uint8), unused=X)

    samples = load_samples(tmp_path / "data.npz", SPECS, labels="truth")

    assert len(samples) == 10
    assert samples.labels is not None
    assert samples.labels.tolist() == list(range(10))
    batch = next(batches(samples.inputs, SPECS))
    assert batch["x"].dtype == np.float32
    np.testing.assert_array_equal(batch["x"], X)


def test_an_array_that_would_run_code_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([Bomb()], dtype=object))

    with pytest.raises(InvalidDataError, match="plain arrays"):
        load_samples(tmp_path / "data.npz", SPECS)
    assert not Bomb.exploded


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": X}, "lacks the arrays x"),
        ({"x": X, "labels": np.arange(9)}, "same number"),
        ({"x": X[:0], "labels": np.arange(0)}, "same number"),
        ({"x": X[:, :1], "labels": np.arange(10)}, "do not fit the model"),
        ({"x": np.float32(1), "labels": np.arange(10)}, "same number"),
        ({"x": np.where(X == 6, np.nan, X), "labels": np.arange(10)}, "NaN or infinity, first in sample 3"),
        ({"x": np.where(X == 19, np.inf, X), "labels": np.arange(10)}, "first in sample 9"),
    ],
    ids=["absent", "unequal", "empty", "wrong shape", "scalar", "NaN", "infinity"],
)
def test_data_that_does_not_fit_is_refused_with_its_reason(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)

    with pytest.raises(InvalidDataError, match=says):
        load_samples(tmp_path / "data.npz", SPECS, labels="labels" if "labels" in arrays else None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not an archive"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)

    with pytest.raises(InvalidDataError, match="npz"):
        load_samples(tmp_path / "data.npz", SPECS)


def test_a_missing_file_and_a_bare_array_are_told_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)

    with pytest.raises(InvalidOptionError, match="cannot read"):
        load_samples(tmp_path / "nowhere.npz", SPECS)
    with pytest.raises(InvalidOptionError, match="single array"):
        load_samples(tmp_path / "data.npy", SPECS)


@pytest.mark.parametrize("count", [2, 3])
def test_parts_share_no_sample_and_lose_none(count: int) -> None:
    samples = Samples(inputs={"x": np.arange(11)}, labels=np.arange(11))

    parts = split(samples, count)

    assert sorted(value for part in parts for value in part.inputs["x"]) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [part.inputs["x"].tolist() for part in split(samples, count)] == [
        part.inputs["x"].tolist() for part in parts
    ]
    assert split(samples, count, seed=5)[0].inputs["x"].tolist() != parts[0].inputs["x"].tolist()
    with pytest.raises(InvalidDataError, match="cannot be split"):
        split(samples.take(np.array([0])), count)


def test_the_digest_of_data_changes_with_any_value_name_or_type() -> None:
    original = Samples(inputs={"x": X}).sha256()
    changed = X.copy()
    changed[3, 1] += 1e-9

    others = [
        Samples(inputs={"x": changed}),
        Samples(inputs={"y": X}),
        Samples(inputs={"x": X.astype(np.float32)}),
        Samples(inputs={"x": X.reshape(10, 1, 2)}),
    ]
    assert Samples(inputs={"x": X.copy()}).sha256() == original
    assert original not in {other.sha256() for other in others}


def test_a_model_with_a_fixed_batch_of_one_gets_one_sample_at_a_time() -> None:
    sizes = [len(batch["x"]) for batch in batches({"x": X}, [TensorSpec(name="x", datatype="FP32", shape=[1, 2])])]

    assert sizes == [1] * 10
    with pytest.raises(InvalidModelError, match="batch"):
        next(batches({"x": X}, [TensorSpec(name="x", datatype="FP32", shape=[4, 2])]))
