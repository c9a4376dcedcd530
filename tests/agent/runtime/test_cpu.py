"""CPU limits and signatures, from the files that a kernel would show."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edge_agent.runtime.cpu import (
    MIN_CORES,
    cgroup_limits,
    cpu_quota,
    cpu_signature,
    has_vnni,
    int8_saturates,
    int8_saturates_on,
    signature_of,
    usable_cores,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_tightest_limit_on_the_way_to_the_root_counts_in_version_2(tmp_path: Path) -> None:
    membership = write(tmp_path / "cgroup", "0::/pods/one\n")
    write(tmp_path / "fs/pods/cpu.max", "50000 100000\n")
    write(tmp_path / "fs/pods/one/cpu.max", "max 100000\n")
    write(tmp_path / "fs/cpu.max", "150000 100000\n")

    limits = cgroup_limits(self_cgroup=membership, root=tmp_path / "fs")

    assert sorted(limits) == [0.5, 1.5]
    assert usable_cores(affinity=8, limits=limits) == 0.5


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_a_quota_of_version_1_counts_under_every_name_of_its_mount(tmp_path: Path, folder: str) -> None:
    membership = write(tmp_path / "cgroup", f"5:devices:/\n4:{folder}:/job\n0::/\n")
    write(tmp_path / "fs" / folder / "job/cpu.cfs_quota_us", "120000\n")
    write(tmp_path / "fs" / folder / "job/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "fs" / folder / "cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "fs" / folder / "cpu.cfs_period_us", "100000\n")

    assert cgroup_limits(self_cgroup=membership, root=tmp_path / "fs") == [1.2]


def test_a_group_that_is_not_visible_from_inside_a_container_counts_by_its_visible_parents(tmp_path: Path) -> None:
    membership = write(tmp_path / "cgroup", "0::/../../hidden/elsewhere\n")
    write(tmp_path / "fs/cpu.max", "25000 100000\n")

    assert cgroup_limits(self_cgroup=membership, root=tmp_path / "fs") == [0.25]


@pytest.mark.parametrize("text", ["", "max", "max 100000", "x 100000", "5000", "0 100000", "100000 0", "1 2 3"])
def test_an_unlimited_or_unreadable_limit_is_no_limit(tmp_path: Path, text: str) -> None:
    membership = write(tmp_path / "cgroup", "0::/\nbroken line\n")
    write(tmp_path / "fs/cpu.max", text)

    assert cgroup_limits(self_cgroup=membership, root=tmp_path / "fs") == []


def test_no_cgroup_at_all_leaves_the_affinity_mask(tmp_path: Path) -> None:
    limits = cgroup_limits(self_cgroup=tmp_path / "none", root=tmp_path)

    assert usable_cores(affinity=3, limits=limits) == 3.0


def test_the_quota_is_never_zero() -> None:
    assert usable_cores(affinity=1, limits=[0.00001]) == MIN_CORES


def test_this_process_may_use_no_more_than_its_affinity_mask() -> None:
    assert 0 < cpu_quota() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("machine", "flags", "signature"),
    [
        ("x86_64", {"sse2", "fma", "avx2"}, "x86_64:avx2+fma"),
        ("x86_64", {"avx2", "fma", "avx512f", "avx512_vnni"}, "x86_64:avx2+fma+avx512+vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86_64:avx2+vnni"),
        ("aarch64", {"fp", "asimd", "asimddp"}, "aarch64:asimd+dot"),
        ("armv7l", {"neon"}, "armv7l:neon"),
        ("riscv64", set(), "riscv64"),
        ("", set(), "unknown"),
    ],
)
def test_a_signature_names_what_decides_a_kernels_speed(machine: str, flags: set[str], signature: str) -> None:
    assert signature_of(machine=machine, flags=frozenset(flags)) == signature


def test_this_machines_signature_is_short_and_the_same_every_time() -> None:
    assert cpu_signature() == cpu_signature()
    assert re.fullmatch(r"[a-z0-9_]+(:[a-z0-9+]+)?", cpu_signature())
    assert has_vnni() == (cpu_signature().startswith("x86_64") and "vnni" in cpu_signature())


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", {"avx2"}, True),
        ("AMD64", {"avx512f"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("aarch64", {"asimd"}, False),
    ],
)
def test_eight_bit_kernels_saturate_on_every_x86_without_vnni(machine: str, flags: set[str], saturates: bool) -> None:
    assert int8_saturates_on(machine=machine, flags=frozenset(flags)) == saturates


def test_a_cpu_with_vnni_does_not_saturate() -> None:
    assert not (has_vnni() and int8_saturates())
