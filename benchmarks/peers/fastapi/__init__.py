"""FastAPI with ONNX Runtime, as people write it: a pydantic body, np.array, session.run, tolist."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.nested import nested_body, nested_scores
from benchmarks.peers.peer import Command, Launch, Peer, by_threads, ort_defaults

_FOLDER = Path(__file__).parent
_INLINE = {"BENCH_ASYNC": "1"}


def _command(launch: Launch) -> Command:
    return [
        launch.python, "-m", "uvicorn", "app:app", "--app-dir", _FOLDER, "--host", "127.0.0.1",
        "--port", str(launch.port), "--workers", str(launch.configuration.workers),
        "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip


FASTAPI = Peer(
    name="FastAPI",
    package="fastapi",
    requirements=_FOLDER / "requirements.txt",
    command=_command,
    path="/predict",
    body=nested_body,
    read_scores=nested_scores,
    configurations=(
        by_threads("workers=1, def", workers=1),
        by_threads("workers=1, async def", workers=1, environment=_INLINE),
        by_threads("workers=2, async def", workers=2, environment=_INLINE),
        ort_defaults("workers=1, async def", workers=1, environment=_INLINE),
    ),
)
