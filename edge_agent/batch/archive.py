"""Writing an .npz around a column's own file: the bytes of the largest array are never copied.

A column's file begins with `HEAD_ROOM_BYTES` of room, into which the archive's first local header and numpy's header
are written when the number of rows is known; only its checksum has to be joined with that of the bytes behind.
Further arrays are appended, then the directory. Arrays are stored plainly, as numpy.savez does.

Formats: APPNOTE.TXT 6.3.10 of the ZIP file format (4.3.7 local header, 4.3.12 directory, 4.3.14-15 ZIP64 ends,
4.5.3 ZIP64 sizes); numpy's NEP 1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

HEAD_ROOM_BYTES = 2048
_ZIP64_VERSION = 45
_UTF8_NAMES = 0x800
_EARLIEST_DATE = 0x21  # 1 January 1980, the zero of the format's clock
_IN_ZIP64 = 0xFFFFFFFF
_CRC_POLYNOMIAL = 0xEDB88320  # reflected, as in zlib


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: bytes
    crc: int
    size_bytes: int
    offset: int


class ArchiveWriter:
    """Appends arrays to an open file, after an optional first one whose bytes are there already."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._members: list[_Member] = []

    def adopt(self, name: str, *, dtype: str, shape: tuple[int, ...], crc: int, data_bytes: int) -> None:
        """Make the file's first array of the `data_bytes` with checksum `crc` that lie behind its head room."""
        filename = f"{name}.npy".encode()
        local_bytes = len(_local_header(filename, crc=0, size_bytes=0))
        head = npy_head(dtype, shape, total_bytes=HEAD_ROOM_BYTES - local_bytes)
        whole = join_crc(zlib.crc32(head), crc, data_bytes)
        size_bytes = len(head) + data_bytes
        self._file.seek(0)
        self._file.write(_local_header(filename, crc=whole, size_bytes=size_bytes) + head)
        self._file.seek(HEAD_ROOM_BYTES + data_bytes)
        self._members.append(_Member(name=filename, crc=whole, size_bytes=size_bytes, offset=0))

    def append(self, name: str, *, dtype: str, shape: tuple[int, ...], blocks: Iterable[bytes]) -> None:
        """Add an array, its bytes in blocks."""
        filename = f"{name}.npy".encode()
        offset = self._file.tell()
        head = npy_head(dtype, shape)
        self._file.write(_local_header(filename, crc=0, size_bytes=0) + head)
        crc, size_bytes = zlib.crc32(head), len(head)
        for block in blocks:
            self._file.write(block)
            crc, size_bytes = zlib.crc32(block, crc), size_bytes + len(block)
        end = self._file.tell()
        self._file.seek(offset)
        self._file.write(_local_header(filename, crc=crc, size_bytes=size_bytes))
        self._file.seek(end)
        self._members.append(_Member(name=filename, crc=crc, size_bytes=size_bytes, offset=offset))

    def finish(self) -> None:
        """Write the directory. The file ends here."""
        start = self._file.tell()
        for member in self._members:
            self._file.write(_directory_entry(member))
        end = self._file.tell()
        count, size_bytes = len(self._members), end - start
        self._file.write(
            struct.pack(
                "<4sQHHIIQQQQ", b"PK\x06\x06", 44, _ZIP64_VERSION, _ZIP64_VERSION, 0, 0, count, count, size_bytes, start
            )
            + struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
            + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, _IN_ZIP64, _IN_ZIP64, 0)
        )
        self._file.truncate()


def npy_head(dtype: str, shape: tuple[int, ...], *, total_bytes: int | None = None) -> bytes:
    """numpy's header, version 1.0, of an array in C order; padded to `total_bytes`, or to the next 64."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode("ascii")
    unpadded = 10 + len(text) + 1
    total_bytes = total_bytes or -(-unpadded // 64) * 64
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", total_bytes - 10) + text.ljust(total_bytes - 11) + b"\n"


def join_crc(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two byte strings in a row, from the CRC-32 of each and the length of the second.

    Appending n zero bytes multiplies the remainder by x^8n modulo the polynomial: by repeated squaring.
    """
    power, square = 0x80000000, 0x00800000  # x^0 and x^8, the highest bit being x^0
    while second_bytes:
        if second_bytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        second_bytes >>= 1
    return _multiply(first, power) ^ second


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_CRC_POLYNOMIAL if b & 1 else 0)
    return product


def _local_header(name: bytes, *, crc: int, size_bytes: int) -> bytes:
    sizes = struct.pack("<HHQQ", 1, 16, size_bytes, size_bytes)
    return (
        struct.pack(
            "<4sHHHHHIIIHH",
            b"PK\x03\x04", _ZIP64_VERSION, _UTF8_NAMES, 0, 0, _EARLIEST_DATE, crc, _IN_ZIP64, _IN_ZIP64,
            len(name), len(sizes),
        )
        + name
        + sizes
    )  # fmt: skip


def _directory_entry(member: _Member) -> bytes:
    extra = struct.pack("<HHQQQ", 1, 24, member.size_bytes, member.size_bytes, member.offset)
    return (
        struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            b"PK\x01\x02", _ZIP64_VERSION, _ZIP64_VERSION, _UTF8_NAMES, 0, 0, _EARLIEST_DATE, member.crc,
            _IN_ZIP64, _IN_ZIP64, len(member.name), len(extra), 0, 0, 0, 0, _IN_ZIP64,
        )
        + member.name
        + extra
    )  # fmt: skip
