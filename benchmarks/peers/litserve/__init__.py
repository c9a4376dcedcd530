"""LitServe (Lightning AI): a LitAPI. Its documentation: on CPU one worker per core; fast_queue over 100 requests/s."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.nested import nested_body, nested_scores
from benchmarks.peers.peer import Command, Launch, Peer, by_threads, ort_defaults

_FOLDER = Path(__file__).parent


def _command(launch: Launch) -> Command:
    return [launch.python, _FOLDER / "server.py", str(launch.port), str(launch.configuration.workers), launch.model]


LITSERVE = Peer(
    name="LitServe",
    package="litserve",
    requirements=_FOLDER / "requirements.txt",
    command=_command,
    path="/predict",
    body=nested_body,
    read_scores=nested_scores,
    configurations=(
        by_threads("workers_per_device=1 (default)", workers=1),
        by_threads("workers_per_device=2", workers=2),
        by_threads("workers_per_device=1, fast_queue", workers=1, environment={"BENCH_FAST_QUEUE": "1"}),
        by_threads("workers_per_device=2, fast_queue", workers=2, environment={"BENCH_FAST_QUEUE": "1"}),
        ort_defaults("workers_per_device=1, fast_queue", workers=1, environment={"BENCH_FAST_QUEUE": "1"}),
    ),
)
