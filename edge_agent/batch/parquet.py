"""The rows of a Parquet file. Needs pyarrow, of the extra `batch`.

An input is the column of its name: numbers or text where a row is one value, else (nested, fixed-size or not) lists of
the row's shape, or one flat list of all its elements. A model with a single input may instead have one numeric
column per element, in the file's order, beside those that are kept. A row with a null, or with a list of another
length, is a reject.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.extras import library
from edge_agent.batch.rows import TEXT, Chunk, Column
from edge_agent.batch.sizing import largest_chunk
from edge_agent.errors import ConfigError, InvalidInputError
from fleet_protocol.manifest import TensorSpec

_READ_AHEAD_BYTES = 1024 * 1024
_MAX_SHOWN_COLUMNS = 20


class ParquetSource:
    """A Parquet file, read in batches of rows: never a whole row group at once."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], *, keep: Sequence[str] = ()) -> None:
        self._pa, self._path, self._specs = library("pyarrow"), path, specs
        self._parquet = library("pyarrow.parquet")
        with self._open() as file:
            self._schema = file.schema_arrow
            metadata = file.metadata
            self.total_rows: int | None = metadata.num_rows
            self._group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            names = list(self._schema.names)
            have = ", ".join(names[:_MAX_SHOWN_COLUMNS]) + (", …" if len(names) > _MAX_SHOWN_COLUMNS else "")
            for name in keep:
                if name not in names:
                    raise ConfigError(f"--keep {name}: {path} has no such column: it has {have}")
            self.kept = tuple(self._kept_column(name) for name in keep)
        self._columns = self._columns_of_inputs(names, keep, have)
        self.row_bytes = sum(8 * math.prod(max(size, 1) for size in spec.shape[1:]) for spec in specs)

    def _open(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=_READ_AHEAD_BYTES)
        except (OSError, self._pa.ArrowException) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InvalidInputError:
        return InvalidInputError(f"cannot read {self._path} as a Parquet file: {' '.join(str(error).split())}")

    def _columns_of_inputs(self, names: list[str], keep: Sequence[str], have: str) -> dict[str, list[str]]:
        if all(spec.name in names for spec in self._specs):
            return {spec.name: [spec.name] for spec in self._specs}
        spec = self._specs[0]
        rest = [name for name in names if name not in keep]
        numeric = [name for name in rest if self._is_number(self._schema.field(name).type)]
        width = math.prod(spec.shape[1:])
        if len(self._specs) != 1 or -1 in spec.shape[1:] or len(rest) != width or len(numeric) != width:
            wanted = ", ".join(spec.name for spec in self._specs)
            raise InvalidInputError(
                f"{self._path} has neither the columns {wanted} nor {width} numeric ones beside those to --keep:"
                f" it has {have}"
            )
        return {spec.name: numeric}

    def _is_number(self, kind: Any) -> bool:
        types = self._pa.types
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    def _kept_column(self, name: str) -> Column:
        field = self._schema.field(name)
        if self._is_number(field.type) and not field.nullable:
            return Column(name, np.dtype(field.type.to_pandas_dtype()).str)
        schema = self._pa.schema([self._pa.field(name, field.type)])
        return Column(name, TEXT, arrow=base64.b64encode(schema.serialize().to_pybytes()).decode())

    def chunks(self, cursor: Mapping[str, Any] | None, chunk_rows: Callable[[], int]) -> Iterator[Chunk]:
        """The rows from `cursor` on; row groups before it are not read."""
        first = int(cursor["row"]) if cursor else 0
        group, skip = 0, first
        while group < len(self._group_rows) and skip >= self._group_rows[group]:
            skip -= self._group_rows[group]
            group += 1
        wanted = [*dict.fromkeys([*(name for names in self._columns.values() for name in names), *self._kept_names()])]
        read_rows = largest_chunk(self.row_bytes)
        with self._open() as file:
            try:
                groups = list(range(group, len(self._group_rows)))
                for batch in file.iter_batches(read_rows, row_groups=groups, columns=wanted, use_threads=False):
                    at, skip = min(skip, batch.num_rows), max(0, skip - batch.num_rows)
                    while at < batch.num_rows:
                        part = batch.slice(at, chunk_rows())
                        yield self._chunk(first, part)
                        at, first = at + part.num_rows, first + part.num_rows
            except (OSError, self._pa.ArrowException) as error:
                raise self._unreadable(error) from None

    def _kept_names(self) -> list[str]:
        return [column.name for column in self.kept]

    def _chunk(self, first: int, batch: Any) -> Chunk:
        count = batch.num_rows
        inputs, faults = {}, {}
        for spec in self._specs:
            columns = [batch.column(name) for name in self._columns[spec.name]]
            inputs[spec.name], wrong = self._input(spec, columns, count)
            faults.update(wrong)
        good = np.array([index for index in range(count) if index not in faults], dtype=np.int64)
        if faults:
            inputs = {name: array[good] for name, array in inputs.items()}
        kept = {column.name: self._keep(column, batch.column(column.name))[good] for column in self.kept}
        return Chunk(
            rows=good + first,
            inputs=inputs,
            kept=kept,
            rejects=[(first + index, reason) for index, reason in sorted(faults.items())],
            cursor={"row": first + count},
            read_fraction=(first + count) / max(1, self.total_rows or 1),
        )

    def _keep(self, column: Column, array: Any) -> NDArray[Any]:
        if not column.is_text:
            return np.asarray(array.to_numpy(zero_copy_only=False))
        try:
            return np.array([*array.cast(self._pa.string()).to_pylist(), None], dtype=object)[:-1]
        except self._pa.ArrowException:
            raise ConfigError(f"--keep {column.name}: a column of {array.type} cannot be kept") from None

    def _input(self, spec: TensorSpec, columns: list[Any], count: int) -> tuple[NDArray[Any], dict[int, str]]:
        """The input's array, and by row why it is not to be used."""
        shape = spec.shape[1:]
        if len(columns) > 1 or (len(columns) == 1 and not self._is_list(columns[0].type)):
            parts = [self._values(column) for column in columns]
            faults = {
                int(index): f"column {column_name!r} is null"
                for column_name, column in zip(self._columns[spec.name], columns, strict=True)
                if column.null_count
                for index in np.flatnonzero(~np.asarray(column.is_valid().to_numpy(zero_copy_only=False)))
            }
            stacked = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
            if math.prod(max(size, 1) for size in shape) != len(parts):
                raise InvalidInputError(f"column {spec.name!r} holds one value a row, the model takes {shape}")
            return stacked.reshape(count, *(max(size, 1) for size in shape)), faults
        whole = self._flat(columns[0])
        if whole is not None and whole[1] and (row_shape := _row_shape(shape, whole[1])) is not None:
            return whole[0].reshape(count, *row_shape), {}
        return self._row_by_row(spec, columns[0].to_pylist())

    def _is_list(self, kind: Any) -> bool:
        types = self._pa.types
        return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))

    def _values(self, array: Any) -> NDArray[Any]:
        types = self._pa.types
        if types.is_string(array.type) or types.is_large_string(array.type):
            return np.array([value or "" for value in array.to_pylist()] + [None], dtype=object)[:-1]
        if not self._is_number(array.type):
            raise InvalidInputError(f"a column of {array.type} cannot be a model's input")
        return np.asarray(array.fill_null(0).to_numpy(zero_copy_only=False))

    def _flat(self, array: Any) -> tuple[NDArray[Any], tuple[int, ...]] | None:
        """All values in a row, and the lists' lengths by level; None unless every list is as long as the others."""
        lengths: list[int] = []
        while self._is_list(array.type):
            if array.null_count or not len(array):
                return None
            if self._pa.types.is_fixed_size_list(array.type):
                lengths.append(array.type.list_size)
            else:
                sizes = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False))
                if (sizes != sizes[0]).any():
                    return None
                lengths.append(int(sizes[0]))
            array = array.flatten()
        if array.null_count or not self._is_number(array.type):
            return None
        return np.asarray(array.to_numpy(zero_copy_only=False)), tuple(lengths)

    def _row_by_row(self, spec: TensorSpec, values: list[Any]) -> tuple[NDArray[Any], dict[int, str]]:
        shape, faults, arrays = spec.shape[1:], {}, {}
        for index, value in enumerate(values):
            found = _one_row(value, shape, is_text=spec.datatype == "BYTES")
            if isinstance(found, str):
                faults[index] = f"column {spec.name!r} {found}"
            else:
                arrays[index] = found
        sample = next(iter(arrays.values()), np.zeros([max(size, 1) for size in shape]))
        whole = np.zeros((len(values), *sample.shape), dtype=sample.dtype)
        for index, array in arrays.items():
            if array.shape == sample.shape:
                whole[index] = array
            else:
                faults[index] = f"column {spec.name!r} has another shape than the rows before it: {list(array.shape)}"
        return whole, faults


def _one_row(value: Any, shape: Sequence[int], *, is_text: bool) -> NDArray[Any] | str:
    if value is None:
        return "is null"
    try:
        array = np.array(value, dtype=object if is_text else np.float64)
    except (ValueError, TypeError):
        return "holds a null, text or lists of different lengths"
    if not is_text and np.isnan(array).any() and _has_null(value):
        return "holds a null"
    row_shape = _row_shape(shape, array.shape)
    return (
        f"has shape {list(array.shape)}, the model takes {list(shape)}"
        if row_shape is None
        else array.reshape(row_shape)
    )


def _has_null(value: Any) -> bool:
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _row_shape(wanted: Sequence[int], found: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that a row takes: as it is where that fits, or unfolded from one flat list."""
    if len(wanted) == len(found) and all(want in (-1, have) for want, have in zip(wanted, found, strict=True)):
        return tuple(found)
    if len(found) == 1 and -1 not in wanted and math.prod(wanted) == found[0]:
        return tuple(wanted)
    return None
