"""edgefleet and every peer under the same load, in turns, one running at a time.

Order: install everybody -> try each peer's documented configurations briefly, keep the best of each for the load in
question -> rounds, in each of which every contender starts, warms up, is measured and ends, the order turning by one
from round to round -> medians over rounds. Ours has one configuration, its default; only the peers are tuned.

What cannot be installed, started or measured is in the figures with its error; whoever misses a round is out of
the comparison and named there, never measured on fewer rounds than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from subprocess import SubprocessError
from typing import Any

import numpy as np

from benchmarks.load import LoadFigures, lone_client, require_wrk, wrk
from benchmarks.peers.bentoml import BENTOML
from benchmarks.peers.edgefleet import EDGEFLEET
from benchmarks.peers.fastapi import FASTAPI
from benchmarks.peers.litserve import LITSERVE
from benchmarks.peers.mlserver import MLSERVER
from benchmarks.peers.peer import Configuration, Peer
from benchmarks.peers.ray_serve import RAY_SERVE
from benchmarks.peers.running import Running, install, running
from fleet_server.errors import UnavailableError

PEERS = (MLSERVER, LITSERVE, BENTOML, FASTAPI, RAY_SERVE)
LONE, CROWD = 1, 16
WARM_UP_S = 1
TRIAL_S = 3
LONE_CLIENT_S = 1.5
_FAILURES = (UnavailableError, OSError, SubprocessError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One contender's measurement in one round. `lone_p50_us` is the raw-socket client's, None under a crowd."""

    load: LoadFigures
    lone_p50_us: float | None
    start_s: float
    pss_kb: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short try of one configuration gave, for a lone client and for a crowd."""

    configuration: Configuration
    loads: dict[int, LoadFigures]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who takes part, and how it is configured."""

    peer: Peer
    python: Path
    version: str
    configuration: Configuration


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The turns of everybody who was measured in every round, in order; and who was not, with the reason."""

    turns: dict[str, list[Turn]]
    contenders: dict[str, Contender]
    failed: dict[str, str]
    trials: dict[str, Any]

    @property
    def peers(self) -> list[str]:
        """The names of the peers that were measured."""
        return [name for name in self.turns if name != EDGEFLEET.name]

    def describe(self, name: str) -> dict[str, Any]:
        """One server's raw figures."""
        turns, contender = self.turns[name], self.contenders[name]
        lone = [turn.lone_p50_us for turn in turns if turn.lone_p50_us is not None]
        return {
            "version": contender.version,
            "configuration": contender.configuration.name,
            "p50_us": median(turn.load.p50_us for turn in turns),
            "p50_us_by_round": [turn.load.p50_us for turn in turns],
            "p99_us": median(turn.load.p99_us for turn in turns),
            "requests_per_s": median(turn.load.requests_per_s for turn in turns),
            "requests_per_s_by_round": [turn.load.requests_per_s for turn in turns],
            **({"raw_socket_client_p50_us": round(median(lone), 1)} if lone else {}),
            "failures": sum(turn.load.failures for turn in turns),
            "start_s": median(turn.start_s for turn in turns),
            "pss_mb": round(median(turn.pss_kb for turn in turns) / 1000, 1),
            "processes": max(turn.processes for turn in turns),
        }


def compare(*, connections: int, rounds: int, duration_s: int) -> Comparison:
    """Measure everybody with `connections` (LONE or CROWD). Raises UnavailableError without wrk or without us."""
    require_wrk()
    python, version = install(EDGEFLEET)
    ours = Contender(peer=EDGEFLEET, python=python, version=version, configuration=EDGEFLEET.configurations[0])
    contenders, failed, trials = {EDGEFLEET.name: ours}, {}, {}
    for peer in PEERS:
        contender, told = _tuned(peer, connections)
        trials[peer.name] = told
        if contender is None:
            failed[peer.name] = told if isinstance(told, str) else f"no configuration works: {told}"
        else:
            contenders[peer.name] = contender
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(rounds):
        for contender in turning(list(contenders.values()), number):
            name = contender.peer.name
            if name in failed:
                continue
            try:
                turns[name].append(_turn(contender, connections, duration_s))
            except _FAILURES as error:
                failed[name] = f"round {number + 1}: {type(error).__name__}: {error}"
                turns.pop(name)
    if EDGEFLEET.name in failed:
        raise UnavailableError(f"{EDGEFLEET.name} could not be measured: {failed[EDGEFLEET.name]}")
    return Comparison(turns=turns, contenders=contenders, failed=failed, trials=trials)


def turning(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of round `number`: nobody is always first, or always after the same neighbour's warmth."""
    start = number % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def best_configuration(trials: Sequence[Trial], connections: int) -> Configuration:
    """The configuration with the lowest median latency for a lone client, or the most requests from a crowd.

    One that failed requests loses to any that did not.
    """

    def merit(trial: Trial) -> tuple[bool, float]:
        load = trial.loads[connections]
        return load.failures == 0, -load.p50_us if connections == LONE else load.requests_per_s

    return max(trials, key=merit).configuration


def _tuned(peer: Peer, connections: int) -> tuple[Contender | None, Any]:
    try:
        python, version = install(peer)
    except UnavailableError as error:
        return None, str(error)
    trials, errors = _trials(peer)
    told = {
        trial.configuration.name: {
            "p50_us": trial.loads[LONE].p50_us,
            "requests_per_s": trial.loads[CROWD].requests_per_s,
        }
        for trial in trials
    }
    if not trials:
        return None, {**told, **errors}
    best = best_configuration(trials, connections)
    return Contender(peer=peer, python=python, version=version, configuration=best), {**told, **errors}


@cache  # R2 and R3 of one run choose from the same trials
def _trials(peer: Peer) -> tuple[list[Trial], dict[str, str]]:
    python, _ = install(peer)
    trials, errors = [], {}
    for configuration in peer.configurations:
        try:
            with running(peer, python, configuration) as server:
                loads = {connections: _load(server, connections, TRIAL_S) for connections in (LONE, CROWD)}
            trials.append(Trial(configuration=configuration, loads=loads))
        except _FAILURES as error:
            errors[configuration.name] = f"{type(error).__name__}: {error}"
    return trials, errors


def _load(server: Running, connections: int, duration_s: int) -> LoadFigures:
    wrk(server.port, server.request, connections=connections, duration_s=WARM_UP_S, folder=server.folder)
    return wrk(server.port, server.request, connections=connections, duration_s=duration_s, folder=server.folder)


def _turn(contender: Contender, connections: int, duration_s: int) -> Turn:
    with running(contender.peer, contender.python, contender.configuration) as server:
        load = _load(server, connections, duration_s)
        lone = None
        if connections == LONE:
            lone = float(np.median(lone_client(server.port, server.request, duration_s=LONE_CLIENT_S))) / 1000
        return Turn(load=load, lone_p50_us=lone, start_s=server.start_s, **server.memory())
