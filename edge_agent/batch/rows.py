"""What travels through batch scoring: chunks of rows, and the columns that are kept of them.

Row numbers count the input's rows from 0 (a CSV's header and empty lines excluded) and never change: what is
told of a row, in scores or rejects, is told under this number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_NAME_BYTES = 512
"""Of a column's name: files bound it, and nobody reads a longer one."""

TEXT = "text"
"""The `dtype` of a column of text of any length, or of nothing."""


class Column(msgspec.Struct, frozen=True):
    """One column of scores. `dtype` is numpy's, or TEXT; `arrow` an Arrow schema, in base64, that text came from."""

    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()
    arrow: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether its values are `str` or None, not numbers."""
        return self.dtype == TEXT

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of a text, of its length only."""
        return 4 if self.is_text else int(np.prod(self.row_shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows of the input, in order.

    `rows` are the numbers of those that could be read, `inputs` and `kept` hold them with axis 0 = rows;
    `rejects` are the others, with why. `cursor` is where reading goes on after this chunk, as plain JSON data,
    `read_fraction` how much of the input that is, None when unknown.
    """

    rows: NDArray[np.int64]
    inputs: dict[str, NDArray[Any]]
    kept: dict[str, NDArray[Any]] = field(default_factory=dict)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    cursor: dict[str, Any]
    read_fraction: float | None = None


class Source(Protocol):
    """An input, opened and checked. `row_bytes` is about what one row takes in memory."""

    kept: tuple[Column, ...]
    total_rows: int | None
    row_bytes: int

    def chunks(self, cursor: Mapping[str, Any] | None, chunk_rows: Callable[[], int]) -> Iterator[Chunk]:
        """The rows from `cursor` on, `chunk_rows()` of them at a time. Raises InvalidInputError."""
        ...


def row_numbers(first: int, count: int) -> NDArray[np.int64]:
    """`count` consecutive row numbers."""
    return np.arange(first, first + count, dtype=np.int64)
