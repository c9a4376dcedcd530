"""Prints what /proc/cpuinfo of an emulated ARM CPU would hold: run under the emulator, with its QEMU_CPU.

QEMU shows its programs the host's file, so an agent would see an x86. Features come from what the emulator itself
tells its programs (AT_HWCAP, AT_HWCAP2), under the names and bits of Linux's arch/arm64/include/uapi/asm/hwcap.h.
Implementer and part are Arm's own numbers for the cores, 0 for QEMU's invented `max`.
"""

from __future__ import annotations

import ctypes
import os
import sys

_AT_HWCAP, _AT_HWCAP2 = 16, 26
HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh rng bti mte"
)
PARTS = {"cortex-a53": (0x41, 0xD03), "cortex-a72": (0x41, 0xD08), "cortex-a76": (0x41, 0xD0B), "max": (0, 0)}


def features(hwcap: int, hwcap2: int) -> list[str]:
    """The kernel's names of the bits that are set, in its order."""
    pairs = [(HWCAP, hwcap), (HWCAP2, hwcap2)]
    return [name for names, bits in pairs for place, name in enumerate(names.split()) if bits >> place & 1]


def describe(*, cpu: str, cores: int, hwcap: int, hwcap2: int) -> str:
    """The file's text for `cores` equal cores of the CPU that QEMU calls `cpu`. Raises KeyError for an unknown one."""
    implementer, part = PARTS[cpu]
    core = (
        "processor\t: {number}\n"
        "BogoMIPS\t: 100.00\n"
        f"Features\t: {' '.join(features(hwcap, hwcap2))}\n"
        f"CPU implementer\t: {implementer:#04x}\n"
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: {part:#05x}\n"
        "CPU revision\t: 0\n"
    )
    return "\n".join(core.format(number=number) for number in range(cores))


def main() -> None:
    """Describe the CPU that this very process runs on."""
    libc = ctypes.CDLL(None)
    libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    sys.stdout.write(
        describe(
            cpu=os.environ["QEMU_CPU"],
            cores=os.cpu_count() or 1,
            hwcap=libc.getauxval(_AT_HWCAP),
            hwcap2=libc.getauxval(_AT_HWCAP2),
        )
    )


if __name__ == "__main__":
    main()
