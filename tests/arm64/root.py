"""The aarch64 Debian that the tests run in: made once by debootstrap, entered through namespaces of its own.

```
FOLDER/root      the system; renamed to this name when it is whole
FOLDER/shared    what both sides see, /mnt inside
```
Invariants: nothing is mounted outside a private mount namespace, and no process outlives `run`, however that ends
(the kernel kills the namespaces' first process when its parent dies, and everything in them with it). Only the
kernel's registration of the emulator for ARM programs stays, as its package's installation would have left it.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.real_servers.requirements import find_program

SUITE, PYTHON = "bookworm", "3.11"
"""The Debian in the root, and the Python that it has."""
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
FIRST_STAGE_S, SECOND_STAGE_S = 900.0, 1_200.0
_INSIDE = Path(__file__).resolve().parent / "inside.sh"
_BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
_PROGRAMS = {
    "debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "setpriv": "util-linux",
    "unshare": "util-linux", "update-binfmts": "binfmt-support",
}  # fmt: skip


class NotPossibleError(Exception):
    """This machine cannot do it; the message says what is missing."""


class StepFailedError(Exception):
    """A step ended badly; the message says which, and how."""


def require_machine() -> None:
    """Raise NotPossibleError unless ARM programs can be run here; registers the emulator where its package has not."""
    if platform.machine().lower() in {"aarch64", "arm64"}:
        raise NotPossibleError("this machine is a 64-bit ARM: `make test` is the same, without emulation")
    packages = sorted({package for program, package in _PROGRAMS.items() if find_program(program) is None})
    if packages:
        raise NotPossibleError(f"missing: {' '.join(packages)} (apt-get install {' '.join(packages)})")
    if os.geteuid() != 0:
        raise NotPossibleError("it needs root, for chroot and mounts: sudo make test-arm64")
    if not _BINFMT.exists():
        done = subprocess.run(
            [_program("update-binfmts"), "--enable", "qemu-aarch64"], capture_output=True, check=False
        )
        if done.returncode != 0 or not _BINFMT.exists():
            raise NotPossibleError(
                "the kernel does not know the emulator for ARM programs: `update-binfmts --enable qemu-aarch64` failed"
            )


def make_root(folder: Path) -> Path:
    """The root in `folder`, made if it is not there yet. Raises StepFailedError."""
    root = folder / "root"
    if root.exists():
        return root
    partial, empty = folder / "root.partial", folder / "empty"
    shutil.rmtree(partial, ignore_errors=True)
    empty.mkdir(parents=True, exist_ok=True)
    options = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}"]
    bootstrap = [_program("debootstrap"), *options, SUITE, str(partial)]
    log = folder / "debootstrap.log"
    _run(bootstrap, timeout_s=FIRST_STAGE_S, what="fetching the ARM system", log=log)
    second = ["/debootstrap/debootstrap", "--second-stage"]
    _run(_entering(partial, second, cpu="max", shared=empty), timeout_s=SECOND_STAGE_S, what="setting it up", log=log)
    partial.rename(root)
    return root


def run(
    root: Path, command: Sequence[str], *, cpu: str, shared: Path, timeout_s: float, what: str, log: Path | None
) -> int:
    """Run `command` in the root on QEMU's `cpu`, `shared` as /mnt, output into `log` or, with None, to the terminal.

    Returns its exit status. Raises StepFailedError when it takes longer than `timeout_s`; nothing of it runs on.
    """
    return _finish(_entering(root, command, cpu=cpu, shared=shared), timeout_s=timeout_s, what=what, log=log)


def step(root: Path, command: Sequence[str], *, cpu: str, shared: Path, timeout_s: float, what: str, log: Path) -> None:
    """`run` for what must succeed. Raises StepFailedError."""
    _run(_entering(root, command, cpu=cpu, shared=shared), timeout_s=timeout_s, what=what, log=log)


def on_this_machine(command: Sequence[str], *, timeout_s: float, what: str, log: Path) -> None:
    """Run `command` outside the root. Raises StepFailedError."""
    _run(command, timeout_s=timeout_s, what=what, log=log)


def _entering(root: Path, command: Sequence[str], *, cpu: str, shared: Path) -> list[str]:
    namespaces = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private"]
    dies_with_us = [_program("setpriv"), "--pdeathsig", "KILL"]
    return [*dies_with_us, _program("unshare"), *namespaces, str(_INSIDE), str(root), cpu, str(shared), *command]


def _run(command: Sequence[str], *, timeout_s: float, what: str, log: Path) -> None:
    status = _finish(command, timeout_s=timeout_s, what=what, log=log)
    if status != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise StepFailedError(f"{what} failed with status {status}; {log} ends: {' | '.join(last)}")


def _finish(command: Sequence[str], *, timeout_s: float, what: str, log: Path | None) -> int:
    output = None if log is None else log.open("ab")
    try:
        # a session of its own: an interrupt reaches this process alone, which then ends all of the other's at once
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StepFailedError(f"{what} took more than {timeout_s:g} s and was ended") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    finally:
        if output is not None:
            output.close()


def _program(name: str) -> str:
    return find_program(name) or name
