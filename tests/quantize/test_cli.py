"""`edge-quantize` from the command line: real models, real files, real refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleet_protocol.bundle_folder import file_path, read_manifest
from models.digits.data import CALIBRATION, FINAL, SELECTION, split
from models.digits.recipe import HERE
from quantize.cli import main
from quantize.evaluation import loaded, run_all
from quantize.metrics import METRICS
from tests.quantize.networks import autoencoder, fragile_classifier

DIGITS = HERE / "fp32" / "1.1.0.onnx"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits' calibration, selection and final parts as npz files."""
    folder = tmp_path_factory.mktemp("data")
    for name in (CALIBRATION, SELECTION, FINAL):
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
    chosen: dict[str, object] = {
        "--calibration": data / "calibration.npz",
        "--model": "digits",
        "--version": "1.1.0",
        "--placement-seconds": 0.2,
        "--out": out,
    }
    chosen |= {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return ["run", DIGITS, *(part for pair in chosen.items() for part in pair)]


def test_digits_become_a_bundle_whose_variants_keep_what_the_report_promises(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    labels = f"{data / 'selection.npz'}:labels"
    final = f"{data / 'final.npz'}:labels"

    assert run(*arguments(data, out, labels=labels, final=final, metric="accuracy", max_drop="0.5%"), "--json") == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["samples"] == {"calibration": 197, "selection": 300, "final": 500}
    manifest = read_manifest(out)
    assert [variant.name for variant in manifest.variants] == [one["name"] for one in printed["shipped"]]
    assert manifest.variants[0].name in ("fp32", "fp32-optimised")
    for variant in manifest.variants:
        content = file_path(out, variant.file.sha256).read_bytes()
        final_part = split()[FINAL].samples()
        with loaded(content) as model:
            accuracy = METRICS["accuracy"](run_all(model, final_part.inputs), final_part)
        assert variant.expected == {"accuracy": accuracy}
        assert accuracy >= 0.995 * printed["shipped"][0]["fp32_metric"]
    assert {one["scheme"]["form"] for one in printed["candidates"]} >= {"fp32", "fp32-optimised", "qdq", "qoperator"}
    assert (out / "report" / "report.html").is_file()
    assert not list(tmp_path.glob(".*"))


def test_int8_that_loses_accuracy_is_refused_and_fp32_ships_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, arrays = fragile_classifier()
    (tmp_path / "fragile.onnx").write_bytes(model)
    np.savez(tmp_path / "data.npz", x=arrays["x"], labels=arrays["labels"])

    status = run(
        "run", tmp_path / "fragile.onnx", "--calibration", tmp_path / "data.npz", "--out", tmp_path / "bundle", "--json"
    )

    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (printed["model"], printed["version"]) == ("fragile", "1.0.0")
    static = [one for one in printed["candidates"] if one["scheme"]["form"] == "qdq" and one["metric"] is not None]
    assert static
    assert all("loses" in one["reason"] for one in static if one["metric"] < 0.9)
    assert min(one["metric"] for one in static) < 0.9
    for variant in read_manifest(tmp_path / "bundle").variants:
        assert variant.expected["accuracy"] >= 0.995


def test_one_file_of_samples_is_split_in_three_that_share_none(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(data, tmp_path / "bundle"), "--json") == 0

    assert json.loads(capsys.readouterr().out)["samples"] == {"calibration": 66, "selection": 66, "final": 65}


def test_an_autoencoder_is_measured_by_its_reconstruction_and_needs_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = autoencoder()
    (tmp_path / "ae.onnx").write_bytes(model)
    np.savez(tmp_path / "data.npz", x=x)

    status = run(
        "run", tmp_path / "ae.onnx", "--calibration", tmp_path / "data.npz", "--task", "anomaly", "--metric", "mse",
        "--max-drop", "5%", "--out", tmp_path / "bundle", "--json",
    )  # fmt: skip

    assert status == 0
    printed = json.loads(capsys.readouterr().out)
    assert not printed["higher_is_better"]
    assert all(one["keeps"] >= 0.95 for one in printed["shipped"])
    assert read_manifest(tmp_path / "bundle").task == "anomaly"


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
        ({"final": "final.npz"}, "--final 'final.npz' is not FILE.npz:ARRAY"),
        ({"shape": "image=a,b"}, "--shape 'image=a,b'"),
        ({"shape": "picture=1,1,8,8"}, "picture"),
        ({"card": "nowhere.md"}, "nowhere.md"),
        ({"task": "dreaming"}, "--task"),
        ({"architectures": "x86_64,vax"}, "--architectures vax is not known"),
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
    assert not list(tmp_path.iterdir())


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
    shown = json.loads(capsys.readouterr().out)["variants"]
    assert list(shown) == [variant.name for variant in read_manifest(out).variants]

    path = file_path(out, read_manifest(out).variants[0].file.sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run("report", out) == 2
    assert path.name in capsys.readouterr().err
