"""The pure parts of batch scoring: checksums and archives, the search for a batch size, the progress line."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.batch.archive import HEAD_ROOM_BYTES, ArchiveWriter, join_crc
from edge_agent.batch.engine import BatchProgress
from edge_agent.batch.progress import ProgressLine, duration, progress_line
from edge_agent.batch.sizing import BatchSizeSearch, largest_chunk, next_chunk_rows

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: "/" not in name and "\0" not in name)


@given(first=st.binary(max_size=300), second=st.binary(max_size=3000))
def test_checksums_of_two_parts_join_to_that_of_the_whole(first: bytes, second: bytes) -> None:
    assert join_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(
    rows=st.integers(0, 50),
    width=st.integers(1, 5),
    names=st.lists(NAMES, min_size=1, max_size=3, unique=True),
)
def test_an_archive_around_a_file_is_one_that_numpy_and_zip_read(rows: int, width: int, names: list[str]) -> None:
    arrays = [np.arange(rows * width, dtype=np.float32).reshape(rows, width) + number for number in range(len(names))]
    content = arrays[0].tobytes()
    file = io.BytesIO(bytes(HEAD_ROOM_BYTES) + content)
    archive = ArchiveWriter(file)

    archive.adopt(names[0], dtype="<f4", shape=(rows, width), crc=zlib.crc32(content), data_bytes=len(content))
    for name, array in zip(names[1:], arrays[1:], strict=True):
        archive.append(name, dtype="<f4", shape=(rows, width), blocks=[array[:7].tobytes(), array[7:].tobytes()])
    archive.finish()

    with zipfile.ZipFile(file) as read:
        assert read.testzip() is None
        assert len(read.namelist()) == len(names)
        for info, array in zip(read.infolist(), arrays, strict=True):
            np.testing.assert_array_equal(np.lib.format.read_array(read.open(info)), array)


def searched(cost_of: Callable[[int], float], *, limit: int = 1024) -> tuple[int, int]:
    """The size that a search ends with, and the largest that it tried."""
    search, largest = BatchSizeSearch(limit=limit), 0
    for _ in range(200):
        size = search.next(100_000)
        largest = max(largest, size)
        search.record(size, cost_of(size))
    return search.best, largest


def test_the_cheapest_size_per_row_is_found() -> None:
    assert searched(lambda rows: 15e-6 + 2e-6 * rows)[0] == 512  # more is less than 3 % cheaper
    assert searched(lambda rows: 15e-6 + 2e-6 * rows, limit=64)[0] == 64


def test_a_model_that_gains_nothing_keeps_small_batches_and_large_ones_are_not_tried_for_long() -> None:
    best, largest = searched(lambda rows: 50e-6 * rows * (1 if rows <= 4 else 2))

    assert best == 1
    assert largest <= 16


def test_a_search_that_finds_a_dip_in_the_middle_stays_there() -> None:
    assert searched(lambda rows: rows * 1e-6 * {1: 9, 2: 6, 4: 4, 8: 3, 16: 2, 32: 1, 64: 1.5}.get(rows, 2))[0] == 32


def test_no_more_rows_are_asked_for_than_there_are() -> None:
    assert BatchSizeSearch().next(1) == 1
    assert BatchSizeSearch(fixed=100).next(7) == 7
    search = BatchSizeSearch()
    for _ in range(100):
        size = search.next(3)
        assert size <= 3
        search.record(size, 1e-6)


@given(rows=st.integers(1, 16_384), took_s=st.floats(0, 100), limit=st.integers(1, 16_384))
def test_a_chunk_stays_within_its_bounds(rows: int, took_s: float, limit: int) -> None:
    assert 1 <= next_chunk_rows(min(rows, limit), took_s=took_s, limit=limit) <= limit


def test_chunks_grow_while_they_are_quick_and_shrink_when_they_are_slow() -> None:
    assert next_chunk_rows(64, took_s=0.01, limit=1000) == 128
    assert next_chunk_rows(64, took_s=0.3, limit=1000) == 64
    assert next_chunk_rows(64, took_s=2.0, limit=1000) == 32
    assert next_chunk_rows(1, took_s=2.0, limit=1000) == 1


@pytest.mark.parametrize(("row_bytes", "rows"), [(2560, 1024), (100 * 1024 * 1024, 1), (1, 16_384), (0, 16_384)])
def test_a_chunk_is_as_many_rows_as_fit_its_bytes(row_bytes: int, rows: int) -> None:
    assert largest_chunk(row_bytes) == rows


def test_the_line_tells_share_speed_and_the_time_left() -> None:
    progress = BatchProgress(rows=3_000, resumed_rows=1_000, total_rows=5_000)

    assert progress_line(progress, elapsed_s=2.0, bar=False) == " 60%  3,000 of 5,000 rows  1,000 rows/s  2 s left"
    assert progress_line(progress, elapsed_s=2.0, bar=True).startswith("[##############..........]  60%")
    unknown = BatchProgress(rows=10, resumed_rows=0, total_rows=None)
    assert progress_line(unknown, elapsed_s=2.0, bar=True) == "10 rows  5 rows/s"
    assert progress_line(unknown, elapsed_s=0.0, bar=False) == "10 rows  0 rows/s"
    assert [duration(seconds) for seconds in (0.4, 61, 3700)] == ["0 s", "1 min 1 s", "1 h 1 min"]


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(("is_terminal", "lines"), [(True, 30), (False, 3)])
def test_progress_is_told_as_often_as_its_reader_can_follow(is_terminal: bool, lines: int) -> None:
    now = [0.0]
    stream = Terminal(is_terminal)
    line = ProgressLine(stream, clock=lambda: now[0])
    for step in range(30):
        now[0] += 0.5
        line.show(BatchProgress(rows=step, resumed_rows=0, total_rows=30))
    line.end()

    written = stream.getvalue()
    assert written.count("\r" if is_terminal else "\n") - is_terminal == lines
    assert written.endswith("\r\033[K") is is_terminal
