"""A whole search: what it chooses holds, what it kept is used again, and a kill at any moment costs one candidate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.bundle_folder import read_manifest
from models.digits.data import CALIBRATION, FINAL, SELECTION
from models.digits.data import split as digits_parts
from models.digits.recipe import HERE
from quantize.data import Samples
from quantize.gate import is_accurate
from quantize.pipeline import search_folder
from quantize.progress import SILENT
from quantize.search.choice import is_faster
from quantize.search.placement import toggled
from quantize.search.search import Search, SearchOptions
from quantize.search_report import Status, read_report
from tests.quantize.search.conftest import MakeBench

OPTIONS = SearchOptions(max_drop=0.005, architectures=("x86_64", "aarch64"), placement_s=1.0)
DEADLINE_S = 90.0


def digits() -> tuple[bytes, Samples]:
    return (HERE / "fp32" / "1.1.0.onnx").read_bytes(), digits_parts()[FINAL].samples()


def test_what_is_chosen_is_accurate_and_faster_and_every_candidate_has_its_reason(make_bench: MakeBench) -> None:
    bench = make_bench(*digits())

    result = Search(bench, OPTIONS, progress=SILENT).run()

    assert result.floating.name in ("fp32", "fp32-optimised")
    for one in (*result.ranked, *result.for_others):
        assert is_accurate(one.keeps, OPTIONS.max_drop)
        assert one in result.for_others or is_faster(one, result.floating)
    keys = [one.key for one in (result.floating, *result.ranked, *result.for_others)]
    assert len(set(keys)) == len(keys)
    assert bool(result.warnings) or result.ranked
    assert all(one.reason for one in result.candidates)
    assert any(one.on_front for one in result.candidates)
    assert len(result.layers) == len(bench.prepared.layers)


def test_a_candidate_that_cannot_be_built_is_a_result_and_no_end(make_bench: MakeBench) -> None:
    bench = make_bench(*digits())
    build, broken = bench.build, []

    def fail_the_third(scheme: object) -> bytes:
        broken.append(scheme)
        if len(broken) == 3:
            from quantize.errors import QuantizationFailedError

            raise QuantizationFailedError("out of luck")
        return build(scheme)  # type: ignore[arg-type]

    bench.build = fail_the_third  # type: ignore[method-assign]

    result = Search(bench, OPTIONS, progress=SILENT).run()

    (failed,) = [one for one in result.candidates if one.status is Status.FAILED]
    assert failed.reason == "out of luck"
    assert not failed.shipped


def test_what_was_measured_once_is_not_measured_again(make_bench: MakeBench) -> None:
    bench = make_bench(*digits())
    first = Search(bench, OPTIONS, progress=SILENT).run()
    known = {one.key: one.p50_us for one in first.candidates}
    bench.tried.clear()

    second = Search(bench, OPTIONS, progress=SILENT).run()

    same = [one for one in second.candidates if one.key in known and one.by == "screening"]
    assert len(same) > 5
    assert all(one.p50_us == known[one.key] for one in same)


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_layers_change_sides_and_keep_the_graphs_order(excluded: set[int], moved: set[int]) -> None:
    order = [str(number) for number in range(10)]
    found = toggled([str(n) for n in excluded], [str(n) for n in moved], order)

    assert list(found) == [str(n) for n in range(10) if (n in excluded) != (n in moved)]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    parts = digits_parts()
    for name in (CALIBRATION, SELECTION, FINAL):
        np.savez(tmp_path / f"{name}.npz", image=parts[name].tensor(), labels=parts[name].labels)
    return [
        sys.executable, "-m", "quantize.cli", "run", str(HERE / "fp32" / "1.1.0.onnx"),
        "--calibration", str(tmp_path / "calibration.npz"), "--labels", str(tmp_path / "selection.npz:labels"),
        "--final", str(tmp_path / "final.npz:labels"), "--placement-seconds", "1", "--out", str(tmp_path / "bundle"),
    ]  # fmt: skip


def ended(journal: Path) -> dict[str, float]:
    """The latency of each finished candidate in a journal, by its key."""
    lines = journal.read_bytes().splitlines() if journal.is_file() else []
    decoded = [msgspec.json.decode(line) for line in lines if line.endswith(b"}")]
    return {line["ended"]: line["result"]["p50_us"] for line in decoded if "ended" in line}


def _hear_ctrl_c() -> None:
    """What starts in the background inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_search_that_was_ended_goes_on_where_it_was(command: list[str], tmp_path: Path, how: int) -> None:
    journal = search_folder(tmp_path / "bundle") / "journal.jsonl"
    root, environment = (
        HERE.parents[1],
        {**os.environ, "TMPDIR": str(tmp_path)},
    )  # what a kill leaves goes with the test
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it takes no lock
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE_S
    while len(ended(journal)) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=30)
    before = ended(journal)

    assert not (tmp_path / "bundle").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1].endswith("interrupted: the same command goes on from here")

    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=DEADLINE_S)

    assert done.returncode == 0, done.stderr
    report = read_report(tmp_path / "bundle" / "report" / "report.json")
    measured = {one.key: one.p50_us for one in report.candidates}
    assert {key: measured[key] for key in before} == before
    assert read_manifest(tmp_path / "bundle").model == "1-1-0"
    assert not search_folder(tmp_path / "bundle").exists()
