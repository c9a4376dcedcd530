"""Virtual environments for the programs that edgefleet is measured beside, one for each, under .bench-envs/.

Invariants, in this order:
1. An environment's folder is named by the digest of its requirements and the Python version, so a changed
   requirement is a new environment and an old one is never half updated.
2. It counts only once its stamp is written, which is after pip ended well; without the stamp it is made again.
3. Two processes that want the same environment make it once: the second waits at the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from fleet_server.errors import UnavailableError

FOLDER = Path(__file__).parent.parent / ".bench-envs"
_STAMP = "complete"
_INSTALL_TIMEOUT_S = 900.0
_ERROR_LINES = 5
_VERSIONS = (
    "import importlib.metadata, json\n"
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in importlib.metadata.distributions()}))"
)


def environment(name: str, requirements: Path) -> Path:
    """The Python of the environment `name` with `requirements` installed, made now if there is none yet.

    Raises UnavailableError, with what pip said, when it cannot be made.
    """
    digest = hashlib.sha256(platform.python_version().encode() + b"\n" + requirements.read_bytes()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{digest}"
    python = folder / "bin" / "python"
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _STAMP).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", folder, doing=f"make the environment of {name}")
            _run(
                python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", requirements,
                doing=f"install {name}",
            )  # fmt: skip
            (folder / _STAMP).touch()
    return python


def installed_versions(python: Path) -> dict[str, str]:
    """The version of every distribution that this Python sees, by its name in lower case."""
    answer = subprocess.run([python, "-c", _VERSIONS], check=True, capture_output=True, text=True, timeout=60)
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def _run(*command: str | Path, doing: str) -> None:
    print(f"{doing}: once, it is kept in {FOLDER.name}/", file=sys.stderr)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"cannot {doing}: it took longer than {_INSTALL_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = " | ".join(error.stderr.strip().splitlines()[-_ERROR_LINES:])
        raise UnavailableError(f"cannot {doing}: {said}") from None
