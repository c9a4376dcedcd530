"""How much memory this process holds, and giving back to the system what was freed.

Two measures, for two questions:
- `resident_bytes` is what the system sees (RSS). It takes in pages of shared libraries that happen to be touched for
  the first time, and the allocator's leftovers, so the difference around a load is off by megabytes for the first
  model and by hundreds of kilobytes for the others.
- `Footprint` is what answers for one model: the bytes that malloc handed out and has not got back, which ONNX
  Runtime's weights, its buffers and its arena all are. The same file gives the same figure within a few percent,
  and unloading takes away what loading added. It counts an arena's chunk whole, touched or not: never too little.
  What it cannot see are mapped weight files; the caller adds the size of the files as a floor.
Without glibc 2.33 or newer the footprint falls back to anonymous resident memory, and is as noisy as that.
A figure that cannot be had is 0, and `return_freed_memory` is a wish.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

_STATUS = Path("/proc/self/status")
_KB = 1024
# the least ONNX model there is, y = Identity(x), as the bytes of its protobuf
_IDENTITY_MODEL = (
    b'\x08\x08:+\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\t\n\x01x\x12\x04\n\x02\x08\x01b\t\n\x01y\x12\x04\n\x02\x08\x01B\x02\x10\x11"
)


class _MallocInfo(ctypes.Structure):
    # mallinfo2(3)
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


class Footprint(Struct, frozen=True, kw_only=True):
    """The memory in use at one moment. `allocated_bytes` is None where malloc does not tell."""

    allocated_bytes: int | None
    anonymous_bytes: int

    def growth_since(self, before: Footprint) -> int:
        """The bytes that came to stay since `before`, never negative."""
        if self.allocated_bytes is not None and before.allocated_bytes is not None:
            return max(0, self.allocated_bytes - before.allocated_bytes)
        return max(0, self.anonymous_bytes - before.anonymous_bytes)


def footprint() -> Footprint:
    """The memory in use now, after giving back what is free, so that two of them can be compared."""
    return_freed_memory()
    return Footprint(
        allocated_bytes=_allocated() if _allocated is not None else None, anonymous_bytes=_status_bytes("RssAnon:")
    )


def resident_bytes() -> int:
    """The resident memory (RSS) of this process as the system counts it."""
    return _status_bytes("VmRSS:")


def return_freed_memory() -> None:
    """Let malloc give its free pages back, of every arena: freed weights otherwise stay in this process's RSS."""
    if _trim is not None:
        _trim(0)


def _status_bytes(field: str) -> int:
    try:
        with _STATUS.open(encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) * _KB for line in lines if line.startswith(field)), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _function(name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, TypeError, AttributeError):  # musl, macOS and Windows have other allocators
        return None
    function.restype = result
    function.argtypes = arguments
    return function


def _allocated_reader() -> Callable[[], int] | None:
    read = _function("mallinfo2", _MallocInfo)
    if read is None:
        return None

    def allocated() -> int:
        info = read()
        # from malloc's heaps, and by mmap for each large block
        return int(info.uordblks) + int(info.hblkhd)

    return allocated


_trim = _function("malloc_trim", ctypes.c_int, ctypes.c_size_t)
_allocated = _allocated_reader()


def pay_first_session() -> None:
    """Let ONNX Runtime build its registries, which the first session of a process pays for: 1.4 MB, once.

    Before the first measured load, so that no model's size and load time include them.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    ort.InferenceSession(_IDENTITY_MODEL, options, providers=["CPUExecutionProvider"])
