"""edgefleet installed on the emulated ARM, from wheels alone and without a network, as a device would have it.

Order: the wheels that pip takes for that machine are fetched here (again only when pyproject.toml asks for others) →
edgefleet's own wheel is built → inside, /opt/edgefleet holds the base install and nothing else, /opt/tests what tests
need besides. The tests import the installed packages: beside them lie only tests/ and what tests read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from packaging.utils import parse_wheel_filename

from tests.arm64 import requirements
from tests.arm64.root import PYTHON, on_this_machine, step

DEVICE, TESTS = "/opt/edgefleet", "/opt/tests"
DOWNLOAD_S, INSTALL_S = 900.0, 900.0
_READ_BY_TESTS = ("tests", "models", "benchmarks", "docs", "examples", "README.md", "pyproject.toml")
_NEVER_COPIED = ("__pycache__", ".*", "*.partial", "node_modules")


def fetch_wheels(folder: Path, *, log: Path) -> list[str]:
    """Every wheel of the device and of its tests into `folder`; their names.

    Raises StepFailedError, UnresolvedError, NoIndexError.
    """
    wanted = [*requirements.base_requirements(), *requirements.build_requirements(), *requirements.tools_of_tests()]
    stamp = folder / f"{hashlib.sha256(' '.join([PYTHON, *wanted]).encode()).hexdigest()[:16]}.complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        exact = [_exactly(wheel.file) for wheel in requirements.resolve(wanted, python=PYTHON, folder=folder)]
        options = ["--no-deps", "--quiet", "--dest", str(folder), *requirements.target_options(PYTHON)]
        command = [sys.executable, "-m", "pip", "download", *options, *exact]
        on_this_machine(command, timeout_s=DOWNLOAD_S, what="downloading wheels for ARM", log=log)
        stamp.touch()
    return sorted(path.name for path in folder.glob("*.whl"))


def _exactly(wheel: str) -> str:
    name, version, *_ = parse_wheel_filename(wheel)
    return f"{name}=={version}"


def share(shared: Path, *, log: Path) -> None:
    """Put edgefleet's wheel, built anew, and what tests read (also the MLPerf Tiny models, if here) into `shared`."""
    for name in ("dist", "source", "mlperf_tiny"):
        shutil.rmtree(shared / name, ignore_errors=True)
    offline = ["--no-deps", "--no-index", "--find-links", str(shared / "wheels")]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(shared / "dist")]
    on_this_machine([*build, str(requirements.ROOT)], timeout_s=INSTALL_S, what="building edgefleet's wheel", log=log)
    for name in _READ_BY_TESTS:
        source, target = requirements.ROOT / name, shared / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NEVER_COPIED))
        elif source.exists():
            shutil.copy(source, target)
    mlperf_tiny = Path(os.environ.get("EDGEFLEET_MLPERF_TINY") or requirements.ROOT.parent / "shared" / "mlperf_tiny")
    if mlperf_tiny.is_dir():
        shutil.copytree(mlperf_tiny, shared / "mlperf_tiny")
    shutil.copy(Path(__file__).with_name("describe_cpu.py"), shared)


def install(root: Path, shared: Path, *, wheels: list[str], cpu: str, log: Path) -> None:
    """Install what changed since the last time; the base install is complete by itself. Raises StepFailedError."""
    stamp = root / "opt" / f"installed-{hashlib.sha256(' '.join(wheels).encode()).hexdigest()[:16]}"
    (edgefleet,) = (shared / "dist").glob("edgefleet-*.whl")

    def inside(what: str, *command: str) -> None:
        step(root, command, cpu=cpu, shared=shared, timeout_s=INSTALL_S, what=what, log=log)

    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/mnt/wheels")
    if stamp.exists():
        again = ("--no-deps", "--force-reinstall", f"/mnt/dist/{edgefleet.name}")
        inside("installing edgefleet on ARM", f"{DEVICE}/bin/python", *pip, *again)
    else:
        for old in [*root.glob("opt/installed-*")]:
            old.unlink()
        inside("making a virtual environment on ARM", "python3", "-m", "venv", "--clear", DEVICE)
        inside("installing edgefleet on ARM", f"{DEVICE}/bin/python", *pip, f"/mnt/dist/{edgefleet.name}")
        inside("making the tests' environment on ARM", "python3", "-m", "venv", "--clear", TESTS)
        packages = f"lib/python{PYTHON}/site-packages"
        (root / f"{TESTS[1:]}/{packages}/edgefleet.pth").write_text(f"{DEVICE}/{packages}\n")
        inside("installing the tests' tools on ARM", f"{TESTS}/bin/python", *pip, *requirements.tools_of_tests())
    inside("checking the base install on ARM", f"{DEVICE}/bin/python", "-m", "pip", "check")
    inside("starting the agent on ARM", f"{DEVICE}/bin/edge-agent", "doctor")
    stamp.touch()
