"""Bundles of the models, made by the search, and what a device chooses of them; kept for one run of the benchmarks.

A search and a choice each run in a process of their own with one thread, one at a time. A zoo model's committed bundle
serves where it is there, unless `make_all_afresh` was called; MLPerf Tiny's bundles are always made in this run. Where
a bundle came from is in every row: a committed one may have been searched on another machine, but what is chosen of it
is always chosen here.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.quantization.cases import SMALL, all_cases
from benchmarks.quantization.parts import Case, write_case
from fleet_server.errors import UnavailableError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
FRESH, COMMITTED = "searched in this run", "committed"
_SEARCH_TIMEOUT_S = 3600.0
_CHOICE_TIMEOUT_S = 300.0
_STATE: dict[str, bool] = {"afresh": False}


@dataclass(frozen=True, kw_only=True)
class MadeBundle:
    """A bundle's folder, where it came from, and how long its search took (None for a committed one)."""

    folder: Path
    origin: str
    took_s: float | None


@dataclass(frozen=True, kw_only=True)
class DeviceChoice:
    """What this device runs of a bundle: the variant, its file, and the figures of all it looked at."""

    variant: str
    file: Path
    candidates_us: dict[str, float]


def make_all_afresh() -> None:
    """Search for the zoo's bundles too."""
    _STATE["afresh"] = True


@cache
def case_named(name: str) -> Case:
    """A model with its data."""
    say(f"{name}: reading the model and its data")
    return all_cases()[name]()


@cache
def case_folder(name: str) -> Path:
    """The model and its data on disk, as `parts.write_case` has them."""
    folder = _workplace() / "cases" / name
    write_case(case_named(name), folder)
    return folder


@cache
def bundle_of(name: str) -> MadeBundle:
    """The committed bundle, or else one that is made now."""
    committed = case_named(name).committed
    if committed is not None and not _STATE["afresh"]:
        return MadeBundle(folder=committed, origin=COMMITTED, took_s=None)
    return fresh_bundle_of(name)


@cache
def fresh_bundle_of(name: str) -> MadeBundle:
    """A bundle that is searched in this run. Raises UnavailableError."""
    say(f"{name}: searching")
    folder = _workplace() / "bundles" / name
    folder.parent.mkdir(exist_ok=True)
    told = in_a_process("benchmarks.quantization.search_bundle", case_folder(name), folder, timeout_s=_SEARCH_TIMEOUT_S)
    say(f"{name}: searched in {told['took_s']:.0f} s, variants {', '.join(told['variants'])}")
    return MadeBundle(folder=folder, origin=FRESH, took_s=told["took_s"])


@cache
def choice_of(name: str, *, fresh: bool = False) -> DeviceChoice:
    """What a device on this machine chooses of the bundle, by the agent's own code in a process of its own."""
    bundle = fresh_bundle_of(name) if fresh else bundle_of(name)
    told = in_a_process("benchmarks.quantization.choose_on_device", bundle.folder, timeout_s=_CHOICE_TIMEOUT_S)
    say(f"{name}: the device chose {told['variant']}")
    return DeviceChoice(
        variant=told["variant"],
        file=bundle.folder / "files" / told["sha256"],
        candidates_us=told["p50_us"],
    )


def in_a_process(module: str, *arguments: str | Path, timeout_s: float) -> dict[str, Any]:
    """What a module of the benchmarks tells, as its last line of JSON, in a process with one thread. Raises
    UnavailableError."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **ONE_THREAD},
        check=False,
    )
    if done.returncode:
        raise UnavailableError(f"{module} {' '.join(map(str, arguments))} ended with {done.returncode}: see above")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def say(what: str) -> None:
    """A line of progress on standard error, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def is_small() -> bool:
    """Whether parts are small, to try a benchmark out: its figures then mean nothing."""
    return bool(os.environ.get(SMALL))


@cache
def _workplace() -> Path:
    folder = TemporaryDirectory(prefix="edgefleet-quantization-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def new_folder(name: str) -> Path:
    """An empty folder that goes with this process."""
    folder = _workplace() / name
    folder.mkdir(parents=True)
    return folder
