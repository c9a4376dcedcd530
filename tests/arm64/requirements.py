"""What pip must bring to an ARM device: read from pyproject.toml, resolved by pip for another machine than this one.

pip's `--platform` chooses wheels for the target but judges environment markers (`; python_version < "3.12"`) by the
interpreter that runs pip. So the answer is checked here against the target's own environment, and what a marker hid
is asked for by name until nothing is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
GLIBC_MINORS = (28, 27, 26, 24, 17)
"""manylinux_2_28 is glibc 2.28: Debian 10, Ubuntu 20.04, Amazon Linux 2023 and later; pip wants older ones named."""
RESOLVE_TIMEOUT_S = 150.0
_MAX_ROUNDS = 4
_SHOWN_CHARS = 2_000
_TEST_TOOLS = frozenset({"hypothesis", "onnx", "pillow", "pyarrow", "pytest", "pytest-timeout"})
_TEST_EXTRAS = ("batch", "dev", "quantize")


class UnresolvedError(Exception):
    """pip found no set of wheels for the target; the message is pip's."""


class NoIndexError(Exception):
    """pip reached no package index, so nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that pip would install: its file's name, and what it requires in turn."""

    file: str
    requires: tuple[str, ...]

    @property
    def name(self) -> str:
        """The project, normalised."""
        return canonicalize_name(self.file.partition("-")[0])


def base_requirements() -> list[str]:
    """What the base install of edgefleet depends on."""
    return [str(one) for one in _project()["dependencies"]]


def build_requirements() -> list[str]:
    """What builds edgefleet's wheel."""
    return [str(one) for one in _pyproject()["build-system"]["requires"]]


def tools_of_tests() -> list[str]:
    """What the agent's tests need besides, in the versions that `make test` takes."""
    extras = _project()["optional-dependencies"]
    wanted = (Requirement(one) for extra in _TEST_EXTRAS for one in extras[extra])
    return sorted({str(one) for one in wanted if canonicalize_name(one.name) in _TEST_TOOLS} | {"urllib3"})


def _project() -> dict[str, Any]:
    project: dict[str, Any] = _pyproject()["project"]
    return project


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def target_options(python: str) -> list[str]:
    """pip's options for wheels alone, of a 64-bit ARM Linux with Python `python` ("3.12")."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS] + ["manylinux2014_aarch64"]
    platforms = [option for tag in tags for option in ("--platform", tag)]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def target_environment(python: str) -> dict[str, str]:
    """The markers' variables on that machine."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "aarch64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def missing_from(wheels: Iterable[Wheel], wanted: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """The requirements that hold in `environment` and that no wheel answers, sorted; extras are followed."""
    by_name = {wheel.name: wheel for wheel in wheels}
    missing: set[str] = set()
    waiting = [Requirement(one) for one in wanted]
    seen: set[str] = set()
    while waiting:
        one = waiting.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        wheel = by_name.get(canonicalize_name(one.name))
        if wheel is None or not one.specifier.contains(parse_wheel_filename(wheel.file)[1], prereleases=True):
            missing.add(str(one))
            continue
        for text in wheel.requires:
            needed = Requirement(text)
            contexts = [{**environment, "extra": extra} for extra in ("", *one.extras)]
            if needed.marker is None or any(needed.marker.evaluate(context) for context in contexts):
                needed.marker = None
                waiting.append(needed)
    return sorted(missing)


def resolve(wanted: Iterable[str], *, python: str, folder: Path) -> list[Wheel]:
    """The wheels that `pip install` of `wanted` takes on that ARM machine; nothing is installed.

    `folder` is for pip's report. Raises UnresolvedError when something has no wheel there, NoIndexError when no
    package index answers.
    """
    asked = list(wanted)
    environment = target_environment(python)
    hidden: list[str] = []
    for _ in range(_MAX_ROUNDS):
        wheels = _ask_pip([*asked, *hidden], python=python, folder=folder)
        missing = missing_from(wheels, asked, environment)
        if not missing:
            return wheels
        hidden += missing
    raise UnresolvedError(f"pip leaves out {', '.join(missing)} for Python {python}")


def _ask_pip(wanted: list[str], *, python: str, folder: Path) -> list[Wheel]:
    report = folder / f"report-{python}.json"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--target", str(folder / "never")]
    command = [sys.executable, "-m", "pip", "install", *options, *target_options(python), *wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NoIndexError(f"pip did not answer within {RESOLVE_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        if _is_unreachable(done.stderr):
            raise NoIndexError(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")
        raise UnresolvedError(done.stderr.strip()[-_SHOWN_CHARS:])
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [
        Wheel(
            file=one["download_info"]["url"].rpartition("/")[2].replace("%2B", "+"),
            requires=tuple(one["metadata"].get("requires_dist") or ()),
        )
        for one in installed
    ]


def _is_unreachable(stderr: str) -> bool:
    """Whether pip never got an answer from an index. With an answer pip names the versions it saw."""
    return "from versions: none" in stderr and any(
        word in stderr for word in ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError",
                                    "connection broken", "Max retries exceeded")
    )  # fmt: skip
