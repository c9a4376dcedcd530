"""Metrics: by name, by a user's function, and what each refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantize.data import Samples
from quantize.errors import InvalidDataError, InvalidOptionError
from quantize.metrics import METRICS, metric_named

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def samples(labels: object = None) -> Samples:
    return Samples(inputs={"x": X}, labels=None if labels is None else np.asarray(labels))


def test_auc_is_the_chance_that_a_positive_scores_higher_and_ties_are_half() -> None:
    auc = METRICS["auc"]

    assert auc({"y": np.array([0.1, 0.4, 0.35, 0.8])}, samples([0, 0, 1, 1])) == 0.75
    assert auc({"y": np.array([[0.5], [0.5], [0.5], [0.5]])}, samples([0, 1, 0, 1])) == 0.5
    two = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    assert auc({"y": two}, samples([0, 1, 0, 1])) == 1.0


def test_auc_of_a_reconstruction_takes_its_squared_error() -> None:
    worse = X + np.array([[0.0], [3.0], [0.1], [2.0]], dtype=np.float32)

    assert METRICS["auc"]({"y": worse}, samples([0, 1, 0, 1])) == 1.0


def test_auc_wants_both_kinds_of_sample() -> None:
    with pytest.raises(InvalidDataError, match="labels 0 and 1"):
        METRICS["auc"]({"y": np.zeros(4)}, samples([1, 1, 1, 1]))
    with pytest.raises(InvalidDataError, match="two classes"):
        METRICS["auc"]({"y": np.eye(4, 5)}, samples([0, 1, 0, 1]))


def test_mse_compares_with_targets_or_with_the_input_itself() -> None:
    mse = METRICS["mse"]

    assert mse({"y": np.array([[1.0], [2.0], [3.0], [4.0]])}, samples([1.0, 2.0, 3.0, 6.0])) == 1.0
    assert mse({"y": X + 2}, samples()) == 4.0
    with pytest.raises(InvalidDataError, match="must match"):
        mse({"y": X}, samples([1.0, 2.0, 3.0, 6.0]))
    with pytest.raises(InvalidDataError, match="target values"):
        mse({"y": X[:, :2]}, samples())


def test_what_a_variant_keeps_is_one_when_it_is_as_good_whichever_way_is_better() -> None:
    assert METRICS["accuracy"].keeps(fp32=0.9, variant=0.855) == pytest.approx(0.95)
    assert METRICS["mse"].keeps(fp32=1.9, variant=2.0) == pytest.approx(0.95)
    assert METRICS["mse"].keeps(fp32=0.0, variant=0.0) == 1.0
    assert METRICS["mse"].keeps(fp32=0.0, variant=0.1) == 0.0
    assert METRICS["accuracy"].keeps(fp32=0.0, variant=0.5) == 0.0
    assert METRICS["accuracy"].keeps(fp32=-2.0, variant=-2.1) == pytest.approx(0.95)


def test_accuracy_refuses_labels_that_are_no_class_numbers() -> None:
    scores = {"y": np.eye(4, 3)}
    for labels in (np.linspace(0, 1, 4), np.eye(4)):
        with pytest.raises(InvalidDataError, match="whole class numbers"):
            METRICS["accuracy"](scores, samples(labels))
    with pytest.raises(InvalidDataError, match="no labels"):
        METRICS["accuracy"](scores, samples())
    with pytest.raises(InvalidDataError, match="no output holds scores"):
        METRICS["accuracy"]({"y": np.zeros(4)}, samples([0, 0, 0, 0]))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(
        "def within_one(outputs, inputs, labels):\n"
        "    return float((abs(outputs['y'] - labels) <= 1).mean())\n"
        "def cost(outputs, inputs, labels):\n"
        "    return float(inputs['x'].mean())\n"
        "cost.higher_is_better = False\n"
        "def broken(outputs, inputs, labels):\n"
        "    raise KeyError('gone')\n"
        "def nothing(outputs, inputs, labels):\n"
        "    return float('nan')\n"
    )
    return path


def test_a_users_function_is_a_metric(own: Path) -> None:
    metric = metric_named(f"{own}:within_one")

    assert metric.name == "own.py:within_one"
    assert metric({"y": np.array([0.0, 0.0, 0.0, 0.0])}, samples([0, 1, 2, 3])) == 0.5
    assert metric.higher_is_better
    assert not metric_named(f"{own}:cost").higher_is_better


def test_a_users_function_that_raises_or_answers_nothing_is_one_clear_error(own: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"own\.py:broken raised KeyError: 'gone'"):
        metric_named(f"{own}:broken")({"y": X}, samples())
    with pytest.raises(InvalidDataError, match=r"own\.py:nothing is nan"):
        metric_named(f"{own}:nothing")({"y": X}, samples())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("beauty", "unknown metric 'beauty'"),
        ("nowhere.py:f", "not there"),
        ("{own}:absent", "no function absent"),
        ("{own}", "unknown metric"),
        ("{broken}:f", "does not load: SyntaxError"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused(own: Path, tmp_path: Path, text: str, says: str) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(InvalidOptionError, match=says):
        metric_named(text.format(own=own, broken=broken))
