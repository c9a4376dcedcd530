"""Each foreign client in a virtual environment of its own, as its authors ship it, under .venv-conformance/.

Invariants: a folder is named by the digest of its requirements and this Python, so a changed requirement is a
new environment; it counts only once its stamp is written, after pip ended well; two test runs that want the
same one make it once. Where it cannot be made (no package index), the tests that need it say so.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.real_servers.requirements import missing

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv-conformance"
_STAMP = "complete"
_INSTALL_TIMEOUT_S = 170.0
_SHOWN_CHARS = 600


def environment(name: str) -> Path:
    """The folder of the programs of `name`'s environment, made now if there is none. Ends the test without it."""
    requirements = HERE / f"{name}.txt"
    digest = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{digest}"
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _STAMP).exists():
            for old in FOLDER.glob(f"{name}-*"):
                shutil.rmtree(old)
            failure = _install(folder, requirements)
            if failure is not None:
                missing(name, failure)
            (folder / _STAMP).touch()
    return folder / "bin"


def _install(folder: Path, requirements: Path) -> str | None:
    venv.create(folder, with_pip=True)
    command: list[str | Path] = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    try:
        ended = subprocess.run(
            [*command, "--requirement", requirements],
            check=False,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"pip did not install it within {_INSTALL_TIMEOUT_S:g} s"
    return None if ended.returncode == 0 else f"pip could not install it: {ended.stderr.strip()[-_SHOWN_CHARS:]}"
