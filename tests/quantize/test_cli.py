"""`edge-quantize` from the command line: real models, real files, real refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleet_protocol.bundle_folder import file_path, read_manifest
from models.digits.data import CALIBRATION, SELECTION, split
from models.digits.recipe import HERE
from quantize.cli import main
from quantize.evaluation import measure
from quantize.metrics import METRICS
from tests.quantize.networks import fragile_classifier

DIGITS = HERE / "fp32" / "1.1.0.onnx"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits' calibration and selection parts as npz files."""
    folder = tmp_path_factory.mktemp("data")
    for name in (CALIBRATION, SELECTION):
        part = split()[name]
        np.savez(folder / f"{name}.npz", image=part.tensor(), labels=part.labels)
    return folder


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def arguments(data: Path, out: Path, **options: object) -> list[object]:
    chosen = {"--calibration": data / "calibration.npz", "--model": "digits", "--version": "1.1.0", "--out": out}
    chosen |= {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return ["run", DIGITS, *(part for pair in chosen.items() for part in pair)]


def test_digits_become_an_int8_bundle_that_keeps_its_accuracy(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    labels = f"{data / 'selection.npz'}:labels"

    assert run(*arguments(data, out, labels=labels, metric="accuracy", max_drop="0.5%"), "--json") == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["shipped"] == ["int8"]
    assert set(printed["variants"]) == {"fp32", "int8"}
    manifest = read_manifest(out)
    (variant,) = manifest.variants
    measured = measure(
        file_path(out, variant.file.sha256).read_bytes(), split()[SELECTION].samples(), METRICS["accuracy"]
    )
    assert variant.expected == measured.metrics == printed["variants"]["int8"]["metrics"]
    assert measured.metrics["accuracy"] >= 0.995 * printed["variants"]["fp32"]["metrics"]["accuracy"]


def test_the_table_shows_both_variants_and_what_ships(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(data, tmp_path / "bundle"), "--keep-fp32") == 0

    header, fp32, int8 = capsys.readouterr().out.splitlines()[:3]
    assert header.split() == ["variant", "accuracy", "p50", "µs", "p90", "µs", "size", "ships"]
    assert (fp32.split()[0], fp32.split()[-1]) == ("fp32", "yes")
    assert (int8.split()[0], int8.split()[-1]) == ("int8", "yes")
    assert [variant.name for variant in read_manifest(tmp_path / "bundle").variants] == ["int8", "fp32"]


def test_int8_that_loses_accuracy_is_refused_and_fp32_ships_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, arrays = fragile_classifier()
    (tmp_path / "fragile.onnx").write_bytes(model)
    np.savez(tmp_path / "data.npz", x=arrays["x"], labels=arrays["labels"])

    status = run(
        "run", tmp_path / "fragile.onnx", "--calibration", tmp_path / "data.npz", "--model", "fragile",
        "--version", "0.1.0", "--out", tmp_path / "bundle", "--json",
    )  # fmt: skip

    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert printed["shipped"] == ["fp32"]
    assert "int8 is refused and fp32 kept" in printed["reason"]
    assert printed["variants"]["fp32"]["metrics"]["accuracy"] == 1.0
    assert printed["variants"]["int8"]["metrics"]["accuracy"] < 0.9
    (variant,) = read_manifest(tmp_path / "bundle").variants
    assert (variant.name, variant.expected) == ("fp32", {"accuracy": 1.0})
    assert file_path(tmp_path / "bundle", variant.file.sha256).read_bytes() == model


def test_samples_that_calibrate_do_not_measure(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments(data, tmp_path / "bundle"), "--json") == 0

    assert json.loads(capsys.readouterr().out)["variants"]["int8"]["samples"] == 99  # of 197


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_drop": "half"}, "--max-drop"),
        ({"version": "1.1"}, "semantic version"),
        ({"model": "../digits"}, "model name"),
        ({"metric": "beauty"}, "unknown metric"),
        ({"labels": "labels"}, "FILE.npz:ARRAY"),
        ({"labels": "nowhere.npz:labels"}, "cannot read nowhere.npz"),
        ({"calibration": HERE / "README.md"}, "README.md is not an npz"),
        ({"class_names": "one,two"}, "2 class names"),
        ({"colour": "blue"}, "unrecognized"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    changed: dict[str, object], says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(data, tmp_path / "bundle", **changed)) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert says in printed.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("command", [[], ["run"], ["fly"], ["run", "nowhere.onnx"], ["report", "nowhere"]])
def test_an_unfinished_command_is_one_line_and_exits_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command) == 2

    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_that_is_no_model_gives_no_traceback_in_a_real_process(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "bundle")
    command[1] = HERE / "README.md"

    done = subprocess.run(
        [sys.executable, "-m", "quantize.cli", *map(str, command)],
        capture_output=True, text=True, check=False, timeout=60, cwd=HERE.parents[1],
    )  # fmt: skip

    assert done.returncode == 2
    assert "README.md is not an ONNX model" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_shows_the_bundle_and_finds_a_file_that_was_changed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert run(*arguments(data, out)) == 0
    capsys.readouterr()

    assert run("report", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["variants"]["int8"]["golden_tolerance"] == 0.02

    path = file_path(out, read_manifest(out).variants[0].file.sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run("report", out) == 2
    assert path.name in capsys.readouterr().err
