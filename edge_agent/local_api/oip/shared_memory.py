"""System shared memory: tensors that a caller on this machine leaves in /dev/shm, and outputs left there for it.

Invariants:
- a key is the name of one regular file directly in /dev/shm: no folders, no links, no semaphores;
- a caller reaches no file through the agent that file permissions do not open to the agent's user, even where
  the agent's privileges would: other users' files must allow it by their mode;
- a region is read and written through its descriptor and never mapped. Its owner may truncate it at any time,
  which would kill a process that touches a mapping (SIGBUS); a read of what is gone is an InvalidInputError;
- the descriptor closes when the last call that holds its region ends, so a region that is unregistered
  meanwhile is never another file;
- regions belong to the process, whatever serves in it; there are at most MAX_REGIONS.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import Any

from edge_agent.errors import InvalidInputError

FOLDER = "/dev/shm"  # noqa: S108 - POSIX shared memory on Linux is this file system
MAX_REGIONS = 256
MAX_NAME_CHARS = 255
_SEMAPHORES = "sem."


class Region:
    """A registered part of a shared memory file: `byte_size` bytes from `offset`."""

    __slots__ = ("_file", "byte_size", "key", "name", "offset")

    def __init__(self, *, name: str, key: str, offset: int, byte_size: int) -> None:
        self._file = -1
        self.name, self.key, self.offset, self.byte_size = name, key, offset, byte_size
        self._file = _open(key)
        size = os.fstat(self._file).st_size
        if offset + byte_size > size:
            raise InvalidInputError(
                f"shared memory {key[:80]!r} has {size} bytes: {byte_size} from {offset} on are more"
            )

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, byte_size: int) -> bytes:
        """A copy of a part of the region. Raises InvalidInputError."""
        self._check(offset, byte_size)
        content = os.pread(self._file, byte_size, self.offset + offset)
        if len(content) != byte_size:
            raise InvalidInputError(f"shared memory region {self.name!r} has become smaller than it was registered")
        return content

    def write(self, offset: int, byte_size: int, content: bytes) -> None:
        """Leave `content` in a part of the region that has room for it. Raises InvalidInputError."""
        self._check(offset, byte_size)
        if len(content) > byte_size:
            raise InvalidInputError(f"an output of {len(content)} bytes does not fit the {byte_size} set aside for it")
        start = self.offset + offset
        if os.fstat(self._file).st_size < start + len(content):
            raise InvalidInputError(f"shared memory region {self.name!r} has become smaller than it was registered")
        try:
            written = os.pwrite(self._file, content, start)
        except OSError as error:
            raise InvalidInputError(f"shared memory region {self.name!r}: {error.strerror}") from None
        if written != len(content):
            raise InvalidInputError(f"shared memory region {self.name!r} has no room left")

    def describe(self) -> dict[str, Any]:
        """The region as the protocol's status shows it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}

    def _check(self, offset: int, byte_size: int) -> None:
        if offset + byte_size > self.byte_size:
            raise InvalidInputError(
                f"shared memory region {self.name!r} has {self.byte_size} bytes: {byte_size} from {offset} on are more"
            )


class Regions:
    """The registered regions by name."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}
        self._changing = threading.Lock()

    def register(self, *, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region. Raises InvalidInputError."""
        if len(name) > MAX_NAME_CHARS:
            raise InvalidInputError(f"a region's name has at most {MAX_NAME_CHARS} characters")
        with self._changing:
            if name in self._regions:
                raise InvalidInputError(f"shared memory region {name!r} is registered already: unregister it first")
            if len(self._regions) >= MAX_REGIONS:
                raise InvalidInputError(f"{MAX_REGIONS} shared memory regions are registered: unregister some")
            self._regions[name] = Region(name=name, key=key, offset=offset, byte_size=byte_size)

    def unregister(self, name: str | None) -> None:
        """Forget a region, or with None all; one that is not there is a normal return."""
        with self._changing:
            if name is None:
                self._regions.clear()
            else:
                self._regions.pop(name, None)

    def find(self, name: str) -> Region | None:
        """A region, None when it is not registered."""
        return self._regions.get(name)

    def get(self, name: str) -> Region:
        """A region. Raises InvalidInputError."""
        region = self._regions.get(name)
        if region is None:
            raise InvalidInputError(f"no shared memory region {name[:80]!r} is registered")
        return region

    def status(self) -> list[dict[str, Any]]:
        """Every region, sorted by name."""
        with self._changing:
            return [region.describe() for _, region in sorted(self._regions.items())]


REGIONS = Regions()


def _open(key: str) -> int:
    name = key.lstrip("/")  # as shm_open does
    if not name or "/" in name or "\0" in name or name in (".", "..") or name.startswith(_SEMAPHORES):
        raise InvalidInputError(f"shared memory key {key[:80]!r} is not /NAME")
    try:
        file = os.open(f"{FOLDER}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = "is a link" if getattr(error, "errno", 0) == errno.ELOOP else getattr(error, "strerror", "is no name")
        raise InvalidInputError(f"shared memory {key[:80]!r}: {reason}") from None
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode) or not _is_open_to_us(facts):
        os.close(file)
        raise InvalidInputError(f"shared memory {key[:80]!r} is not a file that the agent's user may read and write")
    return file


def _is_open_to_us(facts: os.stat_result) -> bool:
    if facts.st_uid == os.geteuid():
        return True
    needed = stat.S_IROTH | stat.S_IWOTH
    if facts.st_gid == os.getegid() or facts.st_gid in os.getgroups():
        needed = stat.S_IRGRP | stat.S_IWGRP
    return facts.st_mode & needed == needed
