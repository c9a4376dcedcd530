"""The rows of an .npz file, read piece by piece without unpacking the rest.

An array that is stored plainly is read from its place in the file, its checksum followed on the way and compared at
the end; a deflated one is inflated as it is read. Arrays that cannot be the model's input are refused at once.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge_agent.batch.rows import Chunk, Column, row_numbers
from edge_agent.errors import ConfigError, InvalidInputError
from fleet_protocol.manifest import TensorSpec

_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1


class NpzSource:
    """An .npz whose arrays are named as the inputs, axis 0 = rows; further arrays may be kept, or are left alone."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], *, keep: Sequence[str] = ()) -> None:
        self._path = path
        self._specs = specs
        self._inputs = [spec.name for spec in specs]
        try:
            with zipfile.ZipFile(path) as archive:
                members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
                self._check_names(members, keep)
                self._arrays = {name: _Array(archive, members[name]) for name in [*self._inputs, *keep]}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
            raise _unreadable(path, error) from None
        counts = {name: array.rows for name, array in self._arrays.items()}
        if len(set(counts.values())) != 1:
            raise InvalidInputError(f"the arrays of {path} have different numbers of rows: {counts}")
        self._check_shapes()
        self.total_rows: int | None = next(iter(counts.values()))
        self.row_bytes = sum(array.row_bytes for array in self._arrays.values())
        self.kept = tuple(
            Column(name, self._arrays[name].dtype.str, tuple(self._arrays[name].row_shape)) for name in keep
        )

    def _check_names(self, members: Mapping[str, Any], keep: Sequence[str]) -> None:
        have = ", ".join(sorted(members)) or "none"
        if not set(self._inputs) <= set(members):
            take = ", ".join(sorted(self._inputs))
            raise InvalidInputError(f"{self._path} holds the arrays {have}, the model takes {take}")
        for name in keep:
            if name not in members or name in self._inputs:
                raise ConfigError(f"--keep {name}: {self._path} has no such array beside the inputs: it holds {have}")

    def _check_shapes(self) -> None:
        for spec in self._specs:
            array = self._arrays[spec.name]
            have, want = array.row_shape, spec.shape[1:]
            if len(have) != len(want) or any(size not in (-1, found) for size, found in zip(want, have, strict=True)):
                raise InvalidInputError(
                    f"array {spec.name} of {self._path} has rows of shape {list(have)}, the model takes {want}"
                )

    def chunks(self, cursor: Mapping[str, Any] | None, chunk_rows: Callable[[], int]) -> Iterator[Chunk]:
        """The rows from `cursor` on. Raises InvalidInputError for a file that is cut short or damaged."""
        first = int(cursor["row"]) if cursor else 0
        total = self.total_rows or 0
        try:
            with zipfile.ZipFile(self._path) as archive, self._path.open("rb", buffering=0) as file:
                crcs = cursor["crc"] if cursor else {}
                readers = {
                    name: array.reader(archive, file, first_row=first, crc=crcs.get(name, 0))
                    for name, array in self._arrays.items()
                }
                while first < total:
                    count = min(chunk_rows(), total - first)
                    arrays = {name: reader.take(count) for name, reader in readers.items()}
                    rows = row_numbers(first, count)
                    first += count
                    if first == total:
                        for reader in readers.values():
                            reader.check()
                    yield Chunk(
                        rows=rows,
                        inputs={name: arrays[name] for name in self._inputs},
                        kept={column.name: arrays[column.name] for column in self.kept},
                        cursor={"row": first, "crc": {name: reader.crc for name, reader in readers.items()}},
                        read_fraction=first / total,
                    )
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise _unreadable(self._path, error) from None


class _Array:
    """Where one array lies in its archive, and its rows' type."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._info = info
        with archive.open(info) as member:
            version = npy.read_magic(member)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, self.dtype = read_header(member)
            self._header_bytes = member.tell()
        if not shape or self.dtype.hasobject or (is_fortran and len(shape) > 1):
            raise ValueError(
                f"array {info.filename} must have rows of plain numbers in C order: np.ascontiguousarray makes it so"
            )
        self.rows, self.row_shape = int(shape[0]), tuple(int(size) for size in shape[1:])
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        if self._header_bytes + self.rows * self.row_bytes > info.file_size:
            raise EOFError("it is cut short")

    def reader(self, archive: zipfile.ZipFile, file: IO[bytes], *, first_row: int, crc: int) -> _Reader:
        """The array's bytes from `first_row` on; `crc` is the checksum of those before it."""
        offset = self._header_bytes + first_row * self.row_bytes
        if self._info.compress_type == zipfile.ZIP_STORED and not self._info.flag_bits & _ENCRYPTED:
            at = _data_offset(file, self._info)
            if not first_row:
                file.seek(at)
                crc = zlib.crc32(file.read(self._header_bytes))
            return _Reader(self, file=file, at=at + offset, crc=crc, expected=self._info.CRC)
        member = archive.open(self._info)
        member.seek(offset)
        return _Reader(self, member=member)


class _Reader:
    """Rows of one array in order."""

    def __init__(
        self,
        array: _Array,
        *,
        file: IO[bytes] | None = None,
        member: IO[bytes] | None = None,
        at: int = 0,
        crc: int = 0,
        expected: int = 0,
    ) -> None:
        self._array, self._file, self._member, self._at, self._expected = array, file, member, at, expected
        self.crc = crc

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        array = np.empty((count, *self._array.row_shape), dtype=self._array.dtype)
        buffer = memoryview(array.reshape(-1).view(np.uint8).data) if array.nbytes else memoryview(b"")
        filled = 0
        if self._file is not None:
            self._file.seek(self._at)
        source: Any = self._file or self._member
        while filled < len(buffer):
            got = source.readinto(buffer[filled:])
            if not got:
                raise EOFError("it is cut short")
            filled += got
        self._at += filled
        if self._file is not None:
            self.crc = zlib.crc32(buffer, self.crc)
        return array

    def check(self) -> None:
        """Raise unless what was read has the checksum that the archive tells of it."""
        if self._member is not None:
            self._member.read()  # zipfile compares at the end
        elif self.crc != self._expected:
            raise ValueError("its checksum is wrong: the file is damaged")


def _data_offset(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    head = file.read(_LOCAL_HEADER_BYTES)
    if len(head) != _LOCAL_HEADER_BYTES:
        raise EOFError("it is cut short")
    name_bytes, extra_bytes = struct.unpack_from("<HH", head, 26)
    return int(info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes)


def _unreadable(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"cannot read {path} as an .npz file: {error}")
