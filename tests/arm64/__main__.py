"""`make test-arm64`: make the ARM root once, install edgefleet in it, run its tests there, and sum up.

Numbered steps, each bounded: 1. the machine can do it; 2. the root; 3. wheels and sources; 4. the installation;
5. every bundle on each CPU of CPUS; 6. the agent's and the protocol's tests on the first of them.
Exit status: 0 when all passed, 1 when something failed, 2 when this machine cannot do it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arm64 import installation, requirements
from tests.arm64.root import NotPossibleError, StepFailedError, make_root, require_machine, run

CPUS = {
    "cortex-a76": "Raspberry Pi 5 and most of 2019 on: 8-bit dot products",
    "cortex-a72": "Raspberry Pi 4, older NXP and AWS: none",
    "max": "all that the emulator knows: also 8-bit matrix products, bfloat16, SVE",
}
BUNDLES_S, AGENT_S = 600.0, 2_000.0
TEST_S = 300
"""How long one test may take."""
AGENT_TESTS = ("tests/agent", "tests/protocol")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one run of pytest ended. `took_s` is wall time; `passed` counts tests, not runs."""

    title: str
    status: int
    passed: int
    failed: int
    skipped: int
    took_s: float

    def line(self) -> str:
        """For the summary."""
        verdict = "ok" if self.status == 0 else "FAILED"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{verdict:7} {self.title}: {counts}, {self.took_s:.0f} s"


def outcome_of(title: str, *, status: int, report: Path, took_s: float) -> Outcome:
    """From pytest's exit status and its JUnit report; a report that is not there counts nothing."""
    suite = ET.parse(report).getroot().find("testsuite") if report.exists() else None  # noqa: S314  # our own file
    tests, failures, errors, skipped = (
        int(suite.get(name, "0")) if suite is not None else 0 for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return Outcome(
        title=title, status=status, passed=tests - failed - skipped, failed=failed, skipped=skipped, took_s=took_s
    )


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def outcome_on(root: Path, shared: Path, *, cpu: str, title: str, tests: Sequence[str], timeout_s: float) -> Outcome:
    """Run `tests` on the emulated `cpu`. One that is still not done after `timeout_s` counts as failed."""
    report = shared / "report.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "tests.arm64.emulation", "-p", "no:cacheprovider", f"--timeout={TEST_S}", "--tb=short"]
    pytest = [f"{installation.TESTS}/bin/python", "-m", "pytest", *options, "--junitxml=/mnt/report.xml", *tests]
    say(f"== {title}")
    start = time.monotonic()
    try:
        command = ["sh", "-c", 'cd /mnt/source && exec "$@"', "sh", *pytest]
        status = run(root, command, cpu=cpu, shared=shared, timeout_s=timeout_s, what=title, log=None)
    except StepFailedError as error:
        say(str(error))
        status = 1
    return outcome_of(title, status=status, report=report, took_s=time.monotonic() - start)


def prepared(folder: Path) -> tuple[Path, Path]:
    """(root, shared) with edgefleet installed. Raises StepFailedError, UnresolvedError, NoIndexError."""
    shared, log = folder / "shared", folder / "install.log"
    log.unlink(missing_ok=True)
    say(f"== the ARM system in {folder} (made once, in minutes; remove the folder to make it anew)")
    root = make_root(folder)
    say("== installing edgefleet in it")
    wheels = installation.fetch_wheels(shared / "wheels", log=log)
    installation.share(shared, log=log)
    installation.install(root, shared, wheels=wheels, cpu=next(iter(CPUS)), log=log)
    return root, shared


def all_outcomes(folder: Path, tests: Sequence[str]) -> list[Outcome]:
    """Steps 2 to 6, with `tests` as the last. Raises what `prepared` raises."""
    root, shared = prepared(folder)
    outcomes = []
    for cpu, what in CPUS.items():
        title = f"bundles on {cpu} ({what})"
        outcomes.append(outcome_on(root, shared, cpu=cpu, title=title, tests=["tests/arm64"], timeout_s=BUNDLES_S))
    first = next(iter(CPUS))
    title = f"{' '.join(tests)} on {first}"
    return [*outcomes, outcome_on(root, shared, cpu=first, title=title, tests=tests, timeout_s=AGENT_S)]


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make test-arm64", description="edgefleet's tests on an emulated 64-bit ARM")
    parser.add_argument("--refresh", action="store_true", help="fetch the newest dependencies again")
    parser.add_argument("tests", nargs="*", help=f"these instead of {' '.join(AGENT_TESTS)}")
    asked = parser.parse_args(argv)
    folder = Path(os.environ.get("EDGEFLEET_ARM64_ROOT") or requirements.ROOT / ".arm64").resolve()
    start = time.monotonic()
    try:
        require_machine()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if asked.refresh:
                shutil.rmtree(folder / "shared", ignore_errors=True)
            outcomes = all_outcomes(folder, asked.tests or AGENT_TESTS)
    except NotPossibleError as error:
        say(f"cannot test on ARM here: {error}")
        return 2
    except BlockingIOError:
        say(f"cannot test on ARM here: another run uses {folder}")
        return 2
    except (StepFailedError, requirements.UnresolvedError, requirements.NoIndexError) as error:
        say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing is left mounted or running")
        return 130
    say(f"== on ARM, {time.monotonic() - start:.0f} s in all")
    for outcome in outcomes:
        say(outcome.line())
    return int(any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
