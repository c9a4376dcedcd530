"""Measuring models on this device, what is recommended, and writing it into a config that people wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cli import main
from edge_agent.config import load_config
from edge_agent.errors import ConfigError, InvalidInputError
from edge_agent.model_bench.command import as_advice, as_table
from edge_agent.model_bench.measuring import BenchPlan, BenchRow, measure
from edge_agent.model_bench.recommendation import recommend
from edge_agent.model_bench.toml_edit import with_value, write_values
from tests.agent.runtime import onnx_files, quantized_files


def row(
    variant: str = "a.onnx", *, threads: int = 1, batch: int = 1, p50_us: float = 100.0, int8: bool = False
) -> BenchRow:
    return BenchRow(
        variant=variant,
        threads=threads,
        batch=batch,
        p50_us=p50_us,
        p90_us=p50_us,
        p99_us=p50_us,
        items_per_s=batch / p50_us * 1e6,
        load_ms=1.0,
        memory_mb=1.0,
        runs=10,
        is_quantized=int8,
    )


def quietly(_: float) -> None:
    return


def test_every_combination_is_measured_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = (onnx_files.linear(tmp_path / "a.onnx"), onnx_files.linear(tmp_path / "b.onnx"))
    shares: list[float] = []

    rows = measure(
        BenchPlan(variants=paths, threads=(1, 2), batches=(1, 4), seconds=0.2), inputs=None, progress=shares.append
    )

    assert [(one.variant, one.threads, one.batch) for one in rows] == [
        (variant, threads, batch) for variant in ("a.onnx", "b.onnx") for threads in (1, 2) for batch in (1, 4)
    ]
    for one in rows:
        assert 0 < one.p50_us <= one.p90_us <= one.p99_us
        assert one.items_per_s == pytest.approx(one.batch / one.p50_us * 1e6)
        assert one.runs >= 5
        assert one.load_ms > 0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_batch_that_a_model_cannot_take_is_left_out_and_none_at_all_is_told(tmp_path: Path) -> None:
    fixed = onnx_files.identity(tmp_path / "fixed.onnx", 1, [2, 3])

    rows = measure(BenchPlan(variants=(fixed,), batches=(1, 2, 4), seconds=0.05), inputs=None, progress=quietly)

    assert [one.batch for one in rows] == [1, 2]
    with pytest.raises(InvalidInputError, match="no variant takes batches of 3"):
        measure(BenchPlan(variants=(fixed,), batches=(3,), seconds=0.05), inputs=None, progress=quietly)


def test_given_rows_beyond_the_batch_are_left_out(tmp_path: Path) -> None:
    fixed = onnx_files.identity(tmp_path / "fixed.onnx", 1, [2, 3])
    inputs = {"x": np.ones((5, 3), dtype=np.float32)}

    assert measure(BenchPlan(variants=(fixed,), batches=(2,), seconds=0.05), inputs=inputs, progress=quietly)


def test_given_rows_are_repeated_to_fill_a_batch(tmp_path: Path) -> None:
    table = onnx_files.row_of_table(tmp_path / "table.onnx")
    plan = BenchPlan(variants=(table,), batches=(5,), seconds=0.05)

    assert measure(plan, inputs={"x": np.array([0, 1])}, progress=quietly)[0].batch == 5
    with pytest.raises(InvalidInputError, match="no x"):
        measure(plan, inputs={"y": np.array([0])}, progress=quietly)
    with pytest.raises(InvalidInputError, match="no rows"):
        measure(plan, inputs={"x": np.array([], dtype=np.int64)}, progress=quietly)


def test_a_quantized_variant_is_known_by_its_content(tmp_path: Path) -> None:
    path = quantized_files.qdq_convolution(tmp_path / "model.onnx")

    (one,) = measure(BenchPlan(variants=(path,), seconds=0.05), inputs=None, progress=quietly)

    assert one.is_quantized


@pytest.mark.parametrize(
    ("rows", "variant", "threads"),
    [
        ([row()], "a.onnx", 1),
        ([row(), row("b.onnx", p50_us=96)], "a.onnx", 1),
        ([row(), row("b.onnx", p50_us=90)], "b.onnx", 1),
        ([row(), row(threads=2, p50_us=85)], "a.onnx", 1),
        ([row(), row(threads=2, p50_us=70)], "a.onnx", 2),
        ([row(threads=4, p50_us=90), row(threads=1)], "a.onnx", 1),
        ([row(), row(threads=2, p50_us=70), row("b.onnx", p50_us=60)], "b.onnx", 1),
        ([row(batch=8, p50_us=10), row()], "a.onnx", 1),
    ],
)
def test_what_is_recommended_is_clearly_faster_or_the_default(rows: list[BenchRow], variant: str, threads: int) -> None:
    advice = recommend(rows)

    assert (advice.variant, advice.threads) == (variant, threads)
    assert advice.reason


def test_the_batch_with_the_most_items_per_second_is_told() -> None:
    advice = recommend([row(), row(batch=4, p50_us=200), row(batch=16, p50_us=1000)])

    assert advice.best_batch == 4
    assert "batches of 4 give 2.0 times" in advice.reason


def test_int8_that_loses_to_fp32_is_told_in_as_many_words() -> None:
    losing = recommend([row(), row("q.onnx", p50_us=120, int8=True)])
    winning = recommend([row(), row("q.onnx", p50_us=80, int8=True)])

    assert "q.onnx (int8) takes 120 us with 1 thread(s), fp32 100" in losing.warnings[0]
    assert "warning: " in as_advice(losing)
    assert winning.warnings == ()


def test_the_table_has_a_line_for_each_row() -> None:
    lines = as_table([row(), row("much_longer_name.onnx", batch=16)]).splitlines()

    assert [line.split()[0] for line in lines] == ["variant", "a.onnx", "much_longer_name.onnx"]
    assert len({len(line) for line in lines}) == 1


CONFIG = """# the device in the hall
data_dir = "data"  # keep

[runtime]  # what runs
# one is enough
threads = 1   # measured in May
tune = false

[models."kws"]
path = "kws.onnx"
"""


def test_one_line_changes_and_every_other_stays() -> None:
    edited = with_value(CONFIG, ("runtime", "threads"), 4)

    assert edited == CONFIG.replace("threads = 1   #", "threads = 4   #")


def test_a_table_under_a_quoted_name_is_found() -> None:
    edited = with_value(CONFIG, ("models", "kws", "path"), "new/größer.onnx")

    assert edited == CONFIG.replace('"kws.onnx"', '"new/größer.onnx"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "[runtime]\nthreads = 2\n"),
        ("[runtime]\n", "[runtime]\nthreads = 2\n"),
        ("[runtime]", "[runtime]\nthreads = 2\n"),
        ("[runtime]\r\ntune = true\r\n", "[runtime]\r\nthreads = 2\r\ntune = true\r\n"),
        ("a = 1", "a = 1\n\n[runtime]\nthreads = 2\n"),
        ("[http]\nthreads = 9\n", "[http]\nthreads = 9\n\n[runtime]\nthreads = 2\n"),
        ("[ runtime ]\nthreads=1#x\n[http]\n", "[ runtime ]\nthreads=2#x\n[http]\n"),
        ('x = """\n[runtime]\nthreads = 1\n"""\n', 'x = """\n[runtime]\nthreads = 1\n"""\n\n[runtime]\nthreads = 2\n'),
    ],
)
def test_a_missing_key_or_table_is_added_where_it_belongs(text: str, expected: str) -> None:
    assert with_value(text, ("runtime", "threads"), 2) == expected


@pytest.mark.parametrize(
    "text", ["runtime = { threads = 1 }\n", "runtime.threads = 1\n", "[runtime]\nthreads = [\n 1 ]\n", "runtime = 5\n"]
)
def test_what_cannot_be_edited_line_by_line_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"threads = 2 into \[runtime\]|runtime is not a table"):
        with_value(text, ("runtime", "threads"), 2)


@given(
    before=st.lists(st.sampled_from(["# note", "", "[http]", "port = 1", "[runtime]", "threads = 7 # x", "tune = true",
                                     '[models.a]', 'path = "a"', "[runtime.deep]", "'threads' = 3"]), max_size=9),
    value=st.integers(1, 256),
)  # fmt: skip
def test_the_result_is_the_old_data_with_one_change_or_nothing(before: list[str], value: int) -> None:
    text = "\n".join(before)
    try:
        old = tomllib.loads(text)
    except ValueError:
        with pytest.raises(ConfigError, match="not TOML"):
            with_value(text, ("runtime", "threads"), value)
        return

    try:
        edited = with_value(text, ("runtime", "threads"), value)
    except ConfigError:
        return

    assert tomllib.loads(edited) == {**old, "runtime": {**old.get("runtime", {}), "threads": value}}
    assert [line for line in edited.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]


def test_a_file_keeps_its_permissions_and_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(CONFIG)
    real.chmod(0o640)
    link = tmp_path / "agent.toml"
    link.symlink_to(real)

    write_values(link, {("runtime", "threads"): 3})

    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert tomllib.loads(real.read_text())["runtime"]["threads"] == 3


def test_a_file_that_cannot_be_edited_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("runtime.threads = 1\n")

    with pytest.raises(ConfigError):
        write_values(path, {("runtime", "threads"): 3})

    assert path.read_text() == "runtime.threads = 1\n"
    assert list(tmp_path.iterdir()) == [path]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent", "bench", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_the_command_measures_recommends_and_writes(tmp_path: Path) -> None:
    slow = quantized_files.slow(tmp_path / "slow.onnx", steps=20, size=64, rows="n")
    quantized_files.slow(tmp_path / "fast.onnx", steps=2, size=64, rows="n")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 64), dtype=np.float32))
    config = tmp_path / "agent.toml"
    config.write_text('# mine\n[models.m]\npath = "slow.onnx"\n')

    ended = bench(
        slow, "--variant", tmp_path / "fast.onnx", "--threads", "1", "--batch", "1,4", "--seconds", "0.3",
        "--inputs", tmp_path / "x.npz", "--json", "--write", config, "--model", "m",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert len(answer["rows"]) == 4
    assert answer["recommendation"]["variant"] == "fast.onnx"
    written = load_config(config)
    assert (written.runtime.threads, written.models["m"].path.name) == (1, "fast.onnx")
    assert config.read_text().startswith('# mine\n[models.m]\npath = "fast.onnx"\n')
    assert "measuring" not in ended.stderr  # progress is for a terminal


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "--batch '0' is not a list of numbers from 1 to 1024"),
        (["--batch", "1,,2"], "is not a list"),
        (["--threads", "two"], "--threads 'two' is not a list"),
        (["--threads", "257"], "from 1 to 256"),
        (["--seconds", "0"], "--seconds 0 is not between"),
        (["--seconds", "nan"], "--seconds nan is not between"),
        (["--variant", "none.onnx"], "there is no file none.onnx"),
        (["--inputs", "none.npz"], "cannot read the inputs none.npz"),
        (["--model", "m"], "--model belongs to --write"),
        (["--write", "none.toml"], "cannot read the config file"),
        (["--batch", ",".join(map(str, range(1, 66)))], "65 combinations are more than 64"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["bench", str(onnx_files.linear(tmp_path / "a.onnx")), "--threads", "1", *arguments])

    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1
    assert says in told.err


def test_a_file_that_is_no_model_and_a_config_without_that_model_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    config = tmp_path / "agent.toml"
    config.write_text("[runtime]\n")

    assert main(["bench", str(broken)]) == 2
    assert "broken.onnx is not an ONNX model" in capsys.readouterr().err
    assert main(["bench", str(onnx_files.linear(tmp_path / "a.onnx")), "--write", str(config), "--model", "other"]) == 2
    assert "has no [models.other]" in capsys.readouterr().err
    assert config.read_text() == "[runtime]\n"
