"""What a test needs of the machine: skipped with its reason where it is missing, failed where it must be there.

With EDGEFLEET_REQUIRE_REAL_PARTS=1 nothing may be missing. What was skipped, and what a passing test could
not cover (`note_unverified`), is listed at the end of the run by tests/conftest.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import NoReturn

import pytest

REQUIRE = "EDGEFLEET_REQUIRE_REAL_PARTS"
_PREFIX = "real part missing: "
_PROPERTY = "unverified"
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_program(name: str) -> str | None:
    """The path of a program, also where it lies outside an ordinary user's PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS]))


def require_program(name: str) -> str:
    """The path of a program. Skips the test without it, fails it when real parts are required."""
    path = find_program(name)
    if path is None:
        missing(name, f"no {name} on the PATH: install it with the system's package manager")
    return path


def missing(part: str, reason: str) -> NoReturn:
    """End the test: a real part is not here. Skipped, or failed when real parts are required."""
    __tracebackhide__ = True
    text = f"{_PREFIX}{part}: {reason}"
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{text} ({REQUIRE}=1)", pytrace=False)
    pytest.skip(text)


def note_unverified(node: pytest.Item, part: str, reason: str) -> None:
    """Tell the closing summary about something that a test cannot cover on this machine, though it may pass."""
    node.user_properties.append((_PROPERTY, f"{part}: {reason}"))


def unverified(reports: Iterable[pytest.TestReport]) -> list[str]:
    """One line per missing part, from the reports of a run (also of parallel workers)."""
    lines = set()
    for report in reports:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason.startswith(_PREFIX):
                lines.add(reason.removeprefix(_PREFIX))
        lines.update(str(value) for name, value in report.user_properties if name == _PROPERTY)
    return sorted(lines)
