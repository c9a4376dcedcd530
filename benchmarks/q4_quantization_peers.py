"""Q4: our search beside NNCF's quantization with accuracy control and Microsoft Olive's search, on the same models.

All get the same file, calibration and selection samples, metric and allowed drop, and search one after the other, each
in its own process with one thread. What they made is timed in turns in the agent's runtime, and judged on the final
samples.
Invariants:
- the allowed drop holds for everybody on the final samples: whoever misses it, or found nothing, or made a file that
  the runtime does not load, counts as fp32 as given, which is what its user would have to run; our own search looks at
  the final samples too, and ships its fp32 instead of a variant that misses the drop there;
- a model's ratio is ours over the best peer's; the search time's is ours over the faster peer's that made a file.
Search times are from the model's file to the result's, with calibration, without imports and installation. Ours
goes on to measure for other architectures and to write a bundle, which is in its time. Trees are left out: no peer
quantizes them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.environments import environment, installed_versions
from benchmarks.quantization.bundles import (
    ONE_THREAD,
    case_folder,
    case_named,
    choice_of,
    fresh_bundle_of,
    new_folder,
    say,
)
from benchmarks.quantization.cases import all_cases
from benchmarks.quantization.measured import conditions, geometric_mean, quality_of, rounded
from benchmarks.quantization.parts import MODEL_FILE
from benchmarks.quantization.timing import p50_us
from benchmarks.result import Result
from fleet_server.errors import UnavailableError
from quantize.errors import QuantizeError

ID = "Q4"
TITLE = "our search / the best of NNCF and Olive at the same allowed drop: latency, and search time, geometric means"
TARGET = 1.0
LONG = True
"""Runs only when it is asked for by name."""
OURS, GIVEN = "edgefleet", "fp32 as given"
PROGRAMS = Path(__file__).parent / "quantization" / "programs"
_TIMEOUT_S = 3600.0
_ERROR_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A quantizer with a program and requirements in `programs`, `package` being what its version is of."""

    name: str
    package: str

    @property
    def program(self) -> Path:
        """What searches."""
        return PROGRAMS / f"{self.name}_search.py"

    @property
    def requirements(self) -> Path:
        """What its environment has."""
        return PROGRAMS / f"{self.name}.txt"


PEERS = (Peer(name="nncf", package="nncf"), Peer(name="olive", package="olive-ai"))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one search came to. `file` is None where there is none, and `error` says why.

    `keeps` is on the final samples, `p50_us` in the agent's runtime; both None where the file does not run.
    """

    took_s: float | None
    file: Path | None = None
    configuration: str = ""
    error: str = ""
    keeps: float | None = None
    p50_us: float | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model: what each search came to by name, fp32's p50, and the drop that was allowed."""

    found: Mapping[str, Found]
    given_us: float
    max_drop: float

    def is_usable(self, name: str) -> bool:
        """Whether the result runs and keeps to the drop."""
        keeps = self.found[name].keeps
        return keeps is not None and keeps >= 1 - self.max_drop

    def counted_us(self, name: str) -> float:
        """The p50 that counts: fp32's where the result is not usable."""
        p50 = self.found[name].p50_us
        return p50 if p50 is not None and self.is_usable(name) else self.given_us

    def latency_ratio(self) -> float:
        """Ours over the best peer's."""
        return self.counted_us(OURS) / min(self.counted_us(name) for name in self.found if name != OURS)

    def cautious_ratio(self) -> float:
        """The same where a user of any of them runs fp32 as given when the result is slower."""
        peers = [self.counted_us(name) for name in self.found if name != OURS]
        return min(self.counted_us(OURS), self.given_us) / min(*peers, self.given_us)

    def time_ratio(self) -> float | None:
        """Our search time over the faster peer's that made a file; None where none did, or we did not."""
        ours = self.found[OURS].took_s
        peers = [one.took_s for name, one in self.found.items() if name != OURS and one.file and one.took_s]
        return ours / min(peers) if ours and peers else None


def run() -> Result:
    """Install the peers, search with each, time what they made."""
    pythons = {peer.name: environment(peer.name, peer.requirements) for peer in PEERS}
    names = [name for name in all_cases() if case_named(name).settings.is_network]
    compared = {name: compare(name, pythons) for name in names}
    versions = {peer.name: installed_versions(pythons[peer.name]) for peer in PEERS}
    return judge(
        compared,
        {peer.name: [versions[peer.name][package] for package in (peer.package, "onnxruntime")] for peer in PEERS},
    )


def judge(compared: Mapping[str, Compared], versions: Mapping[str, Any]) -> Result:
    """Both geometric means must reach TARGET."""
    latency = rounded(geometric_mean(one.latency_ratio() for one in compared.values()))
    times = [ratio for one in compared.values() if (ratio := one.time_ratio()) is not None]
    time_ratio = rounded(geometric_mean(times)) if times else None
    contested = [
        one.latency_ratio()
        for one in compared.values()
        if any(one.is_usable(name) for name in one.found if name != OURS)
    ]
    return Result(
        id=ID,
        title=TITLE,
        ratio=latency,
        target=f"latency <= {TARGET}, search time <= {TARGET}",
        holds=latency <= TARGET and time_ratio is not None and time_ratio <= TARGET,
        figures={
            "search_time_ratio": time_ratio,
            "latency_ratio_where_slower_than_fp32_counts_as_fp32": rounded(
                geometric_mean(one.cautious_ratio() for one in compared.values())
            ),
            "latency_ratio_where_a_peer_was_usable": rounded(geometric_mean(contested)) if contested else None,
            "models": {name: _row(one) for name, one in compared.items()},
            "versions_and_their_onnxruntime": dict(versions),
            **conditions(),
        },
    )


def _row(one: Compared) -> dict[str, Any]:
    ratio = one.time_ratio()
    return {
        "latency_ratio": rounded(one.latency_ratio()),
        "search_time_ratio": None if ratio is None else rounded(ratio),
        "fp32_p50_us": round(one.given_us, 2),
        "max_drop": one.max_drop,
        "searches": {
            name: {
                "counts_as": name if one.is_usable(name) else GIVEN,
                "p50_us": None if found.p50_us is None else round(found.p50_us, 2),
                "keeps": None if found.keeps is None else round(found.keeps, 5),
                "took_s": None if found.took_s is None else round(found.took_s, 1),
                **({"configuration": found.configuration} if found.configuration else {}),
                **({"error": found.error} if found.error else {}),
            }
            for name, found in one.found.items()
        },
    }


def compare(name: str, pythons: Mapping[str, Path]) -> Compared:
    """One model: all search, then all that run take turns."""
    searched = {OURS: _ours(name), **{peer.name: _peers(peer, pythons[peer.name], name) for peer in PEERS}}
    judged = {which: _judged(name, found) for which, found in searched.items()}
    files = {which: found.file for which, found in judged.items() if found.file and found.keeps is not None}
    say(f"{name}: timing {', '.join(files)}")
    timed = p50_us(case_folder(name), {GIVEN: case_folder(name) / MODEL_FILE, **files})
    return Compared(
        found={which: replace(found, p50_us=timed.get(which)) for which, found in judged.items()},
        given_us=timed[GIVEN],
        max_drop=case_named(name).settings.max_drop,
    )


def _ours(name: str) -> Found:
    try:
        bundle, choice = fresh_bundle_of(name), choice_of(name, fresh=True)
    except UnavailableError as error:
        return Found(took_s=None, error=str(error))
    return Found(took_s=bundle.took_s, file=choice.file, configuration=f"defaults; the device chose {choice.variant}")


def _peers(peer: Peer, python: Path, name: str) -> Found:
    say(f"{name}: {peer.name} searches")
    folder = new_folder(f"peers/{name}/{peer.name}")
    out = folder / "result.onnx"
    try:
        done = subprocess.run(
            [python, peer.program, case_folder(name), out],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            cwd=folder,
            env={**os.environ, **ONE_THREAD},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Found(took_s=None, error=f"it took longer than {_TIMEOUT_S:.0f} s")
    if done.returncode or not out.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it wrote no file and no error"]
        say(f"{name}: {peer.name} failed: {lines[-1][:_ERROR_CHARS]}")
        return Found(took_s=None, error=lines[-1][:_ERROR_CHARS])
    told = json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: {peer.name} searched in {told['took_s']:.0f} s")
    return Found(took_s=told["took_s"], file=out, configuration=told["configuration"])


def _judged(name: str, found: Found) -> Found:
    """The same with what it keeps on the final samples, where its file runs."""
    if found.file is None:
        return found
    case = case_named(name)
    fp32 = quality_of(case, case_folder(name) / MODEL_FILE)
    try:
        return replace(found, keeps=case.metric.keeps(fp32=fp32, variant=quality_of(case, found.file)))
    except QuantizeError as error:
        return replace(found, error=f"the agent's runtime does not run it: {error}"[:_ERROR_CHARS])
