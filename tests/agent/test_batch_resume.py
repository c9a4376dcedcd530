"""A run that ends anywhere goes on from there: no row twice, none missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_agent.batch import engine, publishing
from edge_agent.batch.engine import BatchProgress, BatchReport, score_file
from edge_agent.batch.extras import library
from edge_agent.batch.job import BatchJob
from edge_agent.batch.journal import Journal
from edge_agent.errors import AgentError, ConfigError
from tests.agent.runtime import onnx_files

ROWS = 600
BAD = (5, 64, 300, 599)
DEADLINE_S = 30.0


class Crash(BaseException):
    """The end of the process, as far as the code sees it: nothing after it runs."""


@pytest.fixture(params=["npz", "csv", "parquet"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> BatchJob:
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="no pyarrow: pip install 'edgefleet[batch]'")
    x = np.random.default_rng(1).integers(0, 2, size=ROWS)
    x[list(BAD)] = 7
    np.savez(tmp_path / "in.npz", x=x, id=np.array([f"id-{number}" for number in range(ROWS)]))
    return BatchJob(
        model_path=onnx_files.row_of_table(tmp_path / "table.onnx"),
        input_path=tmp_path / "in.npz",
        output_path=tmp_path / f"out.{request.param}",
        keep=("id",),
        threads=2,
        resume=True,
    )


def rows_of(path: Path) -> list[tuple[int, str, float]]:
    if path.suffix == ".npz":
        with np.load(path) as scores:
            return list(zip(scores["row"].tolist(), scores["id"].tolist(), scores["y"].tolist(), strict=True))
    if path.suffix == ".csv":
        lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
        return [(int(row), name, float(y)) for row, name, y in lines]
    table = library("pyarrow.parquet").read_table(path).to_pydict()
    return list(zip(table["row"], table["id"], table["y"], strict=True))


def check_whole(job: BatchJob, report: BatchReport) -> None:
    with np.load(job.input_path) as arrays:
        x, names = arrays["x"].tolist(), arrays["id"].tolist()
    expected = [(row, names[row], 10.0 * (x[row] + 1)) for row in range(ROWS) if row not in BAD]
    assert (report.scored, report.rejected, report.is_finished) == (ROWS - len(BAD), len(BAD), True)
    assert rows_of(job.output_path) == expected
    rejects = job.rejects_path.read_text().splitlines()
    assert [line.split(",")[0] for line in rejects] == ["row", *map(str, BAD)]
    assert not job.partial_folder.exists()


def after(calls: int, what: Callable[[], None]) -> Callable[[object], None]:
    counted = [0]

    def on_progress(_: object) -> None:
        counted[0] += 1
        if counted[0] == calls:
            what()

    return on_progress


def crash() -> None:
    raise Crash


@given(ends=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.booleans()), min_size=1, max_size=4))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_that_crashes_anywhere_goes_on_without_a_row_lost_or_doubled(
    job: BatchJob, ends: list[tuple[int, bool, bool]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for calls, counts_at_once, leaves_garbage in ends:
            patch.setattr(engine, "CHECKPOINT_S", 0.0 if counts_at_once else 3600.0)
            try:
                score_file(job, on_progress=after(calls, crash))
            except Crash:
                pass
            else:
                break
            if leaves_garbage and job.partial_folder.exists():
                for path in (*job.partial_folder.glob("column-*"), job.partial_folder / "rejects.csv"):
                    with path.open("ab") as file:
                        file.write(b"half a row")
        check_whole(job, score_file(job))


def test_a_crash_while_the_output_is_made_is_made_good(job: BatchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "move_into_place", lambda *_: crash())
    with pytest.raises(Crash):
        score_file(job)
    monkeypatch.undo()

    assert not job.output_path.exists()
    check_whole(job, score_file(job))


def test_a_crash_after_the_output_is_in_place_is_made_good(job: BatchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "remove", lambda _: crash())
    with pytest.raises(Crash):
        score_file(job)
    monkeypatch.undo()
    assert job.partial_folder.exists()

    check_whole(job, score_file(job))


def test_a_run_that_is_stopped_keeps_what_is_done_and_counts_it(job: BatchJob) -> None:
    seen: list[BatchProgress] = []
    stopped = score_file(job, is_stopping=lambda: len(seen) >= 2, on_progress=seen.append)

    assert not stopped.is_finished
    assert 0 < stopped.scored < ROWS
    assert not job.output_path.exists()
    again: list[BatchProgress] = []
    check_whole(job, score_file(job, on_progress=again.append))
    assert again[0].resumed_rows == seen[-1].rows


def partial(job: BatchJob) -> BatchJob:
    """`job`, begun and stopped."""
    score_file(job, is_stopping=lambda: True)
    assert job.partial_folder.exists()
    return job


def changed(job: BatchJob, **settings: Any) -> BatchJob:
    from dataclasses import replace

    return replace(job, **settings)


def test_another_job_does_not_go_on_with_what_is_there(job: BatchJob, tmp_path: Path) -> None:
    partial(job)
    before = sorted(job.partial_folder.iterdir())

    with pytest.raises(ConfigError, match="--resume"):
        score_file(changed(job, resume=False))
    with pytest.raises(ConfigError, match="another keep"):
        score_file(changed(job, keep=()))
    with pytest.raises(ConfigError, match="another model"):
        score_file(changed(job, model_path=onnx_files.identity(tmp_path / "i.onnx", 7, ["n"])))
    os.utime(job.input_path, ns=(1, 1))
    with pytest.raises(ConfigError, match="another input"):
        score_file(job)

    assert sorted(job.partial_folder.iterdir()) == before


def test_a_journal_that_was_damaged_is_refused(job: BatchJob) -> None:
    partial(job)
    (job.partial_folder / "column-0.bin").write_bytes(b"short")
    with pytest.raises(ConfigError, match="start over"):
        score_file(job)

    (job.partial_folder / "progress.json").write_text("{")
    with pytest.raises(ConfigError, match="start over"):
        score_file(job)


def test_two_runs_do_not_write_one_output(job: BatchJob) -> None:
    def second() -> None:
        with pytest.raises(ConfigError, match="another process"):
            score_file(job)

    check_whole(job, score_file(job, on_progress=after(1, second)))


def test_a_full_disk_is_told_and_made_good(job: BatchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(publishing, "move_into_place", full)
    with pytest.raises(AgentError, match=r"No space left.*--resume"):
        score_file(job)
    monkeypatch.undo()

    check_whole(job, score_file(job))


def command(job: BatchJob, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "edge_agent", "batch", "--model", f"m={job.model_path}", str(job.input_path),
        str(job.output_path), *more,
    ]  # fmt: skip


SLOW_ROWS = 15_000
LAYERS, WIDTH = 24, 512


@pytest.fixture
def slow_job(tmp_path: Path) -> BatchJob:
    """Many seconds of work row by row, a few in batches: y = x, after multiplying by the identity many times."""
    names = ["x", *(f"h{layer}" for layer in range(LAYERS - 1)), "y"]
    model = onnx_files.save(
        tmp_path / "slow.onnx",
        [helper.make_node("MatMul", [names[at], "w"], [names[at + 1]]) for at in range(LAYERS)],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        initializers=[numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")],
    )
    x = np.random.default_rng(2).normal(size=(SLOW_ROWS, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    return BatchJob(model_path=model, input_path=tmp_path / "in.npz", output_path=tmp_path / "out.npz")


def counted(job: BatchJob) -> int:
    path = job.partial_folder / "progress.json"
    return int(json.loads(path.read_bytes())["read"]) if path.exists() else 0


def written_bytes(job: BatchJob) -> int:
    return (job.partial_folder / "column-1.bin").stat().st_size


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_goes_on_and_an_interrupted_one_says_how(slow_job: BatchJob) -> None:
    slowly = ("--threads", "1", "--batch-size", "1")
    killed = subprocess.Popen(command(slow_job, *slowly), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: counted(slow_job) > 0, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    first, at_kill = counted(slow_job), written_bytes(slow_job)
    assert 0 < first < SLOW_ROWS
    assert not slow_job.output_path.exists()

    stopped = subprocess.Popen(command(slow_job, *slowly, "--resume"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: written_bytes(slow_job) > at_kill, stopped)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=DEADLINE_S)
    assert stopped.returncode == 130
    assert "--resume" in told
    assert "Traceback" not in told
    assert first < counted(slow_job) < SLOW_ROWS

    ended = subprocess.run(command(slow_job, "--resume"), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    with np.load(slow_job.input_path) as arrays, np.load(slow_job.output_path) as scores:
        np.testing.assert_array_equal(scores["row"], np.arange(SLOW_ROWS))
        np.testing.assert_allclose(scores["y"], arrays["x"], atol=1e-5)
