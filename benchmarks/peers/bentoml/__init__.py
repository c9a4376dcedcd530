"""BentoML: a service class with a NumPy signature, `bentoml serve` (which serves for production by default)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.nested import nested_body
from benchmarks.peers.peer import Command, Launch, Peer, by_threads, ort_defaults

_FOLDER = Path(__file__).parent


def _command(launch: Launch) -> Command:
    return [
        launch.python.parent / "bentoml", "serve", "service:KeywordService",
        "--working-dir", _FOLDER, "--host", "127.0.0.1", "--port", str(launch.port),
    ]  # fmt: skip


BENTOML = Peer(
    name="BentoML",
    package="bentoml",
    requirements=_FOLDER / "requirements.txt",
    command=_command,
    path="/predict",
    body=nested_body,
    read_scores=lambda answer: answer[0],
    configurations=(
        by_threads("workers=1 (default)", workers=1),
        by_threads("workers=2", workers=2),
        ort_defaults("workers=1 (default)", workers=1),
    ),
)
