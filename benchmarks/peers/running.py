"""One server of a comparison as a running process tree: started, verified, weighed, ended.

Order: an empty folder and a free port -> start -> wait for the right answer (class 5 of the one real utterance, so
that a server which answers something else is never measured) -> the caller's measurement -> end the whole tree.
A SIGTERM to the benchmark ends the tree as well: a peer's workers would outlive it and disturb what is measured next.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.environments import environment, installed_versions
from benchmarks.load import Request, read_answer
from benchmarks.peers.peer import Configuration, Launch, Peer
from fleet_server.demo.processes import ChildProcess, free_port
from fleet_server.errors import UnavailableError

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
EXPECTED_CLASS = 5
_LOOK_S = 0.05
_ANSWER_TIMEOUT_S = 10.0
_ROOT = Path(__file__).parent.parent.parent
# nobody measures a server that reports its use to somebody, or that looks for its newer version
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "BENTOML_DO_NOT_TRACK": "True",
    "LITSERVE_DISABLE_VERSION_CHECK": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers rightly."""

    port: int
    request: Request
    folder: Path
    start_s: float
    process: ChildProcess

    def memory(self) -> dict[str, int]:
        """PSS of all its processes together in kB, and how many there are."""
        sizes = [size for pid in _tree(self.process.pid) if (size := _smaps_kb(pid, "Pss")) is not None]
        return {"pss_kb": sum(sizes), "processes": len(sizes)}

    def own_memory(self) -> tuple[int, int]:
        """PSS of the first process in kB, and the part of it that is no file's (Pss_Anon)."""
        pss, anonymous = (_smaps_kb(self.process.pid, name) for name in ("Pss", "Pss_Anon"))
        if pss is None or anonymous is None:
            raise UnavailableError(f"the memory of process {self.process.pid} cannot be read")
        return pss, anonymous


def model_folder() -> Path:
    """Where the MLPerf Tiny models are. Raises UnavailableError when they are not there."""
    folder = Path(os.environ.get("EDGEFLEET_MLPERF_TINY", _ROOT.parent / "shared" / "mlperf_tiny")).resolve()
    if not (folder / "kws.onnx").is_file():
        raise UnavailableError(f"there is no {folder}/kws.onnx: set EDGEFLEET_MLPERF_TINY")
    return folder


def keyword_request(peer: Peer) -> Request:
    """The request for the one real utterance, in this server's form."""
    image = np.load(model_folder() / "kws_inputs.npy").astype(np.float32).reshape(1, 49, 10, 1)
    return Request(path=peer.path, body=peer.body(image))


def install(peer: Peer) -> tuple[Path, str]:
    """The Python that runs this server, and the server's version. Raises UnavailableError when pip fails."""
    python = Path(sys.executable) if peer.requirements is None else environment(peer.package, peer.requirements)
    return python, installed_versions(python).get(peer.package, "unknown")


@contextmanager
def running(peer: Peer, python: Path, configuration: Configuration, *, model: Path | None = None) -> Iterator[Running]:
    """The server, while the block runs. Raises UnavailableError when it does not start or answers wrongly."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-peer-", ignore_cleanup_errors=True) as name:
        launch = Launch(
            python=python,
            port=free_port(),
            folder=Path(name),
            model=model or model_folder() / "kws.onnx",
            configuration=configuration,
        )
        command = peer.command(launch)
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        started = time.monotonic()
        process = ChildProcess("server", command, folder=launch.folder, environment=_environment(launch))
        try:
            request = keyword_request(peer)
            _wait_for_the_right_answer(peer, process, launch.port, request)
            yield Running(
                port=launch.port,
                request=request,
                folder=launch.folder,
                start_s=round(time.monotonic() - started, 2),
                process=process,
            )
            process.require_running()
        finally:
            _end(process)
            signal.signal(signal.SIGTERM, before)


def _environment(launch: Launch) -> dict[str, str]:
    return {
        **os.environ,
        **_QUIET,
        "PATH": f"{launch.python.parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(_ROOT) if launch.python == Path(sys.executable) else "",
        "BENCH_MODEL": str(launch.model),
        "BENCH_WORKERS": str(launch.configuration.workers),
        **launch.configuration.environment,
    }


def _wait_for_the_right_answer(peer: Peer, process: ChildProcess, port: int, request: Request) -> None:
    deadline, last = time.monotonic() + READY_TIMEOUT_S, "nothing listened"
    while time.monotonic() < deadline:
        process.require_running()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_TIMEOUT_S) as connection:
                connection.sendall(request.raw(port))
                status, body = read_answer(connection)
        except OSError as error:
            last = str(error)
        else:
            last = f"{status} {body[:200]!r}"
            if status == 200:
                found = int(np.argmax(peer.read_scores(json.loads(body))))
                if found != EXPECTED_CLASS:
                    raise UnavailableError(f"{peer.name} answered class {found}, not {EXPECTED_CLASS}")
                return
        time.sleep(_LOOK_S)
    raise UnavailableError(f"{peer.name} did not answer within {READY_TIMEOUT_S:.0f} s: {last}; {_tail(process.log)}")


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:])


def _tree(pid: int) -> Sequence[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _smaps_kb(pid: int, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _end(process: ChildProcess) -> None:
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    process.stop()
    _, left = psutil.wait_procs(children, timeout=STOP_TIMEOUT_S if children else 0)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)
