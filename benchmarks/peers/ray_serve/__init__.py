"""Ray Serve: one deployment, started by `serve run`; with its high-throughput settings where that is better."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.nested import nested_body, nested_scores
from benchmarks.peers.peer import Command, Launch, Peer, by_threads, ort_defaults

_FOLDER = Path(__file__).parent
_FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_PROXIED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}


def _command(launch: Launch) -> Command:
    return [launch.python, _FOLDER / "server.py", str(launch.port), str(launch.configuration.workers), launch.model]


RAY_SERVE = Peer(
    name="Ray Serve",
    package="ray",
    requirements=_FOLDER / "requirements.txt",
    command=_command,
    path="/",
    body=nested_body,
    read_scores=nested_scores,
    configurations=(
        by_threads("num_replicas=1 (default)", workers=1),
        by_threads("num_replicas=1, throughput optimized", workers=1, environment=_FAST),
        by_threads("num_replicas=1, throughput optimized, HAProxy", workers=1, environment=_PROXIED),
        by_threads("num_replicas=2, throughput optimized", workers=2, environment=_FAST),
        ort_defaults("num_replicas=1, throughput optimized", workers=1, environment=_FAST),
    ),
)
