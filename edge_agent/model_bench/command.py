"""The `bench` command: checking its arguments, its table, and writing what it recommends into a config."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edge_agent.config import load_config
from edge_agent.errors import ConfigError
from edge_agent.model_bench.measuring import MAX_BATCH, MAX_COMBINATIONS, BenchPlan, BenchRow, measure
from edge_agent.model_bench.recommendation import Recommendation, recommend
from edge_agent.model_bench.toml_edit import write_values
from edge_agent.runtime.cpu import machine_facts
from edge_agent.runtime.session_settings import MAX_THREADS

MAX_SECONDS = 3600.0
_BAR_COLUMNS = 30


def run(options: argparse.Namespace, *, read_inputs: Callable[[str], Mapping[str, NDArray[Any]]]) -> int:
    """Measure, print, and write where asked; returns the exit status. Raises ConfigError for wrong arguments."""
    plan = plan_of(options)
    if options.write is not None:
        check_writable(options.write, options.name)
    elif options.name is not None:
        raise ConfigError("--model belongs to --write AGENT.toml")
    inputs = read_inputs(options.inputs) if options.inputs else None
    rows = measure(plan, inputs=inputs, progress=_bar if sys.stderr.isatty() else _silent)
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * (_BAR_COLUMNS + 10) + "\r")
    advice = recommend(rows)
    if options.json:
        answer = {"cpu": machine_facts().signature, "rows": rows, "recommendation": advice}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    else:
        sys.stdout.write(as_table(rows) + "\n\n" + as_advice(advice) + "\n")
    if options.write is not None:
        write_advice(options.write, options.name, advice, variants=plan.variants)
        sys.stderr.write(f"wrote {options.write}\n")
    return 0


def plan_of(options: argparse.Namespace) -> BenchPlan:
    """The checked plan of the arguments. Raises ConfigError."""
    variants = tuple(dict.fromkeys([options.model, *options.variant]))
    for path in variants:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
    names = [path.name for path in variants]
    if len(set(names)) != len(names):
        raise ConfigError("two variants have the same file name: rename one")
    by_default = tuple(dict.fromkeys((1, max(1, int(machine_facts().quota)))))
    plan = BenchPlan(
        variants=variants,
        threads=_numbers("--threads", options.threads, MAX_THREADS) if options.threads else by_default,
        batches=_numbers("--batch", options.batch, MAX_BATCH),
        seconds=options.seconds,
    )
    if not 0 < plan.seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds {plan.seconds:g} is not between 0 and {MAX_SECONDS:g}")
    if (count := len(plan.variants) * len(plan.threads) * len(plan.batches)) > MAX_COMBINATIONS:
        raise ConfigError(f"{count} combinations are more than {MAX_COMBINATIONS}: ask for fewer")
    return plan


def check_writable(config_file: Path, name: str | None) -> None:
    """Raise ConfigError unless the config is right as it is, and has the model `name` where one is given."""
    config = load_config(config_file)
    if name is not None and name not in config.models:
        known = ", ".join(config.models) or "none"
        raise ConfigError(f"{config_file} has no [models.{name}]: it has {known}")


def write_advice(config_file: Path, name: str | None, advice: Recommendation, *, variants: Sequence[Path]) -> None:
    """Set [runtime] threads, and [models.NAME] path where a name is given. Raises ConfigError."""
    values: dict[tuple[str, ...], int | str] = {("runtime", "threads"): advice.threads}
    if name is not None:
        chosen = next(path for path in variants if path.name == advice.variant)
        if load_config(config_file).models[name].path.resolve() != chosen.resolve():
            values["models", name, "path"] = _from_folder(chosen, config_file.resolve().parent)
    write_values(config_file, values)


def as_table(rows: Sequence[BenchRow]) -> str:
    """The rows for a person."""
    width = min(40, max(7, *(len(row.variant) for row in rows)))
    head = (
        f"{'variant':<{width}} {'threads':>7} {'batch':>5} {'p50 us':>9} {'p90 us':>9} {'p99 us':>9}"
        f" {'items/s':>9} {'load ms':>8} {'mem MB':>7}"
    )
    lines = [
        f"{row.variant[:width]:<{width}} {row.threads:>7} {row.batch:>5} {row.p50_us:>9.1f} {row.p90_us:>9.1f}"
        f" {row.p99_us:>9.1f} {row.items_per_s:>9.0f} {row.load_ms:>8.1f} {row.memory_mb:>7.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def as_advice(advice: Recommendation) -> str:
    """The recommendation for a person."""
    lines = [f"use {advice.variant} with {advice.threads} thread(s): {advice.reason}"]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in advice.warnings)])


def _numbers(argument: str, text: str, largest: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= largest for part in parts):
        raise ConfigError(f"{argument} {text!r} is not a list of numbers from 1 to {largest}, for example 1,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _from_folder(path: Path, folder: Path) -> str:
    """`path` as a config in `folder` names it: relative where it is below, absolute elsewhere."""
    resolved = path.resolve()
    return os.path.relpath(resolved, folder) if resolved.is_relative_to(folder) else str(resolved)


def _bar(share: float) -> None:
    done = int(share * _BAR_COLUMNS)
    sys.stderr.write(f"\rmeasuring [{'#' * done}{'.' * (_BAR_COLUMNS - done)}]")
    sys.stderr.flush()


def _silent(_: float) -> None:
    return
