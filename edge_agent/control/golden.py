"""Golden vectors: inputs with the outputs that a right device gives.

The file is an .npz (no pickles) with `input:<name>` `[k, ...]` and, per variant, `output:<variant>:<name>` `[k, ...]`.
"""

from __future__ import annotations

import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AgentError, GoldenMismatchError
from edge_agent.runtime.run_deadlines import RUN_DEADLINES
from edge_agent.runtime.session import WARM_LIMIT_S, Model
from fleet_protocol.manifest import Variant

_MAX_UNPACKED_BYTES = 64 * 1024 * 1024

# what zipfile, zlib and numpy raise for damaged, encrypted, oddly packed and monstrous archives
_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip

Tensors = dict[str, NDArray[np.generic]]


def load_golden(path: Path, variant: str) -> tuple[Tensors, Tensors]:
    """(inputs, expected outputs) by tensor name. Raises GoldenMismatchError when the file holds none for `variant`."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_UNPACKED_BYTES:
            raise GoldenMismatchError(f"golden vectors of {unpacked} bytes exceed the limit of {_MAX_UNPACKED_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            inputs = _named(arrays, "input:")
            outputs = _named(arrays, f"output:{variant}:")
    except _UNREADABLE as error:
        raise GoldenMismatchError(f"golden vectors cannot be read: {error}") from None
    if not inputs or not outputs:
        raise GoldenMismatchError(f"the bundle has no golden vectors for variant {variant}")
    return inputs, outputs


def check_golden(
    model: Model, inputs: Tensors, expected: Tensors, variant: Variant, *, limit_s: float = WARM_LIMIT_S
) -> None:
    """Raise GoldenMismatchError unless every output is within the variant's tolerance of the expected one.

    A run that takes longer than `limit_s` is cancelled, and as wrong as any.
    """
    options = model.new_run_options()
    watched = RUN_DEADLINES.watch(time.perf_counter() + limit_s, options)
    try:
        outputs = model.execute(model.prepare(inputs), options)
    except AgentError as error:
        if RUN_DEADLINES.forget(watched):
            raise GoldenMismatchError(
                f"variant {variant.name} hangs on its golden vectors: it took longer than {limit_s:g} s"
            ) from None
        raise GoldenMismatchError(f"variant {variant.name} fails on its golden vectors: {error}") from None
    finally:
        RUN_DEADLINES.forget(watched)
    for name, want in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != want.shape or not _are_numbers(got, want):
            raise GoldenMismatchError(f"variant {variant.name} gives no numbers {name} of shape {want.shape}")
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
        largest = float(difference.max()) if difference.size else 0.0
        if not largest <= variant.golden_tolerance:
            raise GoldenMismatchError(
                f"variant {variant.name} differs from its golden output {name} by {largest:.4g}, "
                f"{variant.golden_tolerance:.4g} is allowed"
            )


def _are_numbers(*arrays: NDArray[np.generic]) -> bool:
    return all(array.dtype.kind in "biuf" for array in arrays)


def _named(arrays: np.lib.npyio.NpzFile, prefix: str) -> Tensors:
    named = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
    if not all(isinstance(array, np.ndarray) for array in named.values()):
        raise ValueError("an entry is no array")  # numpy hands out the bare bytes
    return named
