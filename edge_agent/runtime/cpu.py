"""What this machine's CPU is, and how much of it this process may use.

ONNX Runtime counts the host's cores and ignores a container's limit, so threads are sized from here.
Invariants: `cpu_quota` is the least of the affinity mask and of every cgroup limit from this process's
own group up to the root, never above what the kernel would grant and never zero; `cpu_signature` is the
same string on every start on the same machine, because measured variant choices are keyed by it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

MIN_CORES = 0.01
"""The least share of a core `cpu_quota` answers, so that nobody divides by zero."""

_CPUINFO = Path("/proc/cpuinfo")
_SELF_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_VNNI = ("avx512_vnni", "avx_vnni")
_MAX_SIGNATURE_CHARS = 64

# Only what makes a quantized kernel faster or slower, in this order; several flags may mean one name.
_RELEVANT_FLAGS = (
    ("avx2", ("avx2",)),
    ("fma", ("fma",)),
    ("avx512", ("avx512f",)),
    ("vnni", _VNNI),
    ("amx", ("amx_int8",)),
    ("neon", ("neon",)),
    ("asimd", ("asimd",)),
    ("dot", ("asimddp",)),
    ("i8mm", ("i8mm",)),
    ("bf16", ("bf16", "avx512_bf16")),
    ("sve", ("sve",)),
)


class MachineFacts(Struct, frozen=True, kw_only=True):
    """What the choice of a session's settings needs to know. `quota` in cores; `host_cores` is the whole machine."""

    signature: str
    quota: float
    host_cores: int
    int8_saturates: bool
    model_name: str = ""


def machine_facts() -> MachineFacts:
    """This machine, now: the quota may change while a process runs."""
    return MachineFacts(
        signature=cpu_signature(),
        quota=cpu_quota(),
        host_cores=os.cpu_count() or 1,
        int8_saturates=int8_saturates(),
        model_name=cpu_model_name(),
    )


def cpu_quota() -> float:
    """The cores this process may use: 1.5 is one and a half. Never zero."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return usable_cores(affinity=cores, limits=cgroup_limits(self_cgroup=_SELF_CGROUP, root=_CGROUP_ROOT))


def usable_cores(*, affinity: int, limits: Iterable[float]) -> float:
    """The least of the affinity mask's cores and the cgroup limits, at least MIN_CORES."""
    return max(MIN_CORES, min([float(affinity), *limits]))


def cgroup_limits(*, self_cgroup: Path, root: Path) -> list[float]:
    """Every CPU limit, in cores, from this process's cgroup up to the mounted root; v2 and v1.

    `self_cgroup` is /proc/self/cgroup, `root` the mount of the hierarchies. A group that is not
    visible from here (inside a container the path may be the host's) counts by its visible parents.
    """
    limits: list[float] = []
    for line in _read(self_cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            groups = group_lineage(root, group)
            limits += [limit for at in groups if (limit := _v2_limit(_read(at / "cpu.max"))) is not None]
        elif "cpu" in controllers.split(","):
            for folder in _V1_FOLDERS:
                groups = group_lineage(root / folder, group)
                limits += [limit for at in groups if (limit := _v1_limit(at)) is not None]
    return limits


def cpu_signature() -> str:
    """Architecture and the SIMD features that decide a kernel's speed, such as "x86_64:avx2+fma"."""
    return signature_of(machine=platform.machine(), flags=cpu_flags())


def signature_of(*, machine: str, flags: frozenset[str]) -> str:
    """The signature of a machine with these kernel-reported flags."""
    names = [name for name, any_of in _RELEVANT_FLAGS if not flags.isdisjoint(any_of)]
    arch = machine.lower() or "unknown"
    return f"{arch}:{'+'.join(names)}"[:_MAX_SIGNATURE_CHARS] if names else arch[:_MAX_SIGNATURE_CHARS]


def has_vnni() -> bool:
    """Whether this CPU is an x86 whose 8-bit dot products do not saturate: AVX-VNNI or AVX512-VNNI."""
    return _is_x86(platform.machine()) and not cpu_flags().isdisjoint(_VNNI)


def int8_saturates() -> bool:
    """Whether u8s8 kernels silently saturate on this CPU."""
    return int8_saturates_on(machine=platform.machine(), flags=cpu_flags())


def int8_saturates_on(*, machine: str, flags: frozenset[str]) -> bool:
    """Whether a machine with these flags adds 8-bit products in 16 bits that may not hold them: every x86 without VNNI.

    An ARM core without dot products overflows for two products of -128 and -128 alone, and no weight made here is -128.
    """
    return _is_x86(machine) and flags.isdisjoint(_VNNI)


def _is_x86(machine: str) -> bool:
    return machine.lower() in _X86


def cpu_model_name() -> str:
    """The processor's name as its kernel tells it, the architecture where it does not."""
    return _cpuinfo().get("model name") or _cpuinfo().get("Model") or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The features that the kernel reports for this CPU, in its own words."""
    return frozenset((_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split())


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """The first value of every field of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _read(_CPUINFO).splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def group_lineage(root: Path, group: str) -> list[Path]:
    """The folders of a cgroup and of its parents under the mount `root`, the innermost first."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _v2_limit(text: str) -> float | None:
    # https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files: "$MAX $PERIOD", or "max" for none
    fields = text.split()
    return _ratio(fields[0], fields[1]) if len(fields) == 2 else None


def _v1_limit(at: Path) -> float | None:
    # https://docs.kernel.org/scheduler/sched-bwc.html: a quota of -1 is no limit
    return _ratio(_read(at / "cpu.cfs_quota_us"), _read(at / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
