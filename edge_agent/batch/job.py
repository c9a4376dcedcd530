"""What one batch run is: its settings checked, its input opened, and what makes two runs the same job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.batch.extras import library
from edge_agent.batch.rows import TEXT, Column, Source
from edge_agent.batch.sizing import MAX_BATCH_ROWS
from edge_agent.errors import ConfigError, InvalidInputError
from edge_agent.runtime.session import Model
from edge_agent.runtime.session_settings import MAX_THREADS

INPUT_SUFFIXES = (".npz", ".csv", ".parquet")
OUTPUT_SUFFIXES = (".npz", ".csv", ".parquet")
SCALES = ("0..1", "0..255", "imagenet")
ROW_COLUMN = Column("row", "<i8")
_FORMAT = 1
_HASH_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Score `input_path` with `model_path` into `output_path`.

    `keep` names columns to copy beside the scores; `labels` the classes, which adds the columns class and label.
    `scale` and `size` (height, width) are for images. `batch_rows` fixes the rows of one run, None lets them be
    measured; `threads` is how many chunks are scored at once, None for one per usable core.
    """

    model_path: Path
    input_path: Path
    output_path: Path
    keep: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    scale: str | None = None
    size: tuple[int, int] | None = None
    batch_rows: int | None = None
    threads: int | None = None
    resume: bool = False

    @property
    def partial_folder(self) -> Path:
        """Where the run lives until it is finished."""
        return self.output_path.with_name(self.output_path.name + ".partial")

    @property
    def rejects_path(self) -> Path:
        """Where rows without scores are told: `scores.csv` → `scores.rejects.csv`."""
        return self.output_path.with_suffix(".rejects.csv")


def check_job(job: BatchJob) -> None:
    """Raise ConfigError unless the paths and settings can be; before anything is loaded or written."""
    source, target = job.input_path, job.output_path
    if not source.exists():
        raise ConfigError(f"there is no {source} to score")
    if not source.is_dir() and source.suffix not in INPUT_SUFFIXES:
        raise ConfigError(f"{source} is no {', '.join(INPUT_SUFFIXES)} file and no folder of images")
    if target.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"{target} must end in {', '.join(OUTPUT_SUFFIXES)}: that says what is written")
    if target.is_dir() or (target.exists() and target.samefile(source)):
        raise ConfigError(f"{target} is {'a folder' if target.is_dir() else 'the input itself'}: write elsewhere")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent} to write into")
    if job.rejects_path == source:
        raise ConfigError(f"{source} is where the rejects of {target} are told: write elsewhere")
    if job.batch_rows is not None and not 1 <= job.batch_rows <= MAX_BATCH_ROWS:
        raise ConfigError(f"the batch size is {job.batch_rows}: use 1 to {MAX_BATCH_ROWS}")
    if job.threads is not None and not 1 <= job.threads <= MAX_THREADS:
        raise ConfigError(f"threads is {job.threads}: use 1 to {MAX_THREADS}")
    if not source.is_dir() and (job.scale is not None or job.size is not None):
        raise ConfigError("--scale and --size are for a folder of images")
    if source.is_dir() and job.keep:
        raise ConfigError("--keep is for tables: of an image its path is always kept")
    if ".parquet" in (source.suffix, target.suffix):
        library("pyarrow.parquet")
    if job.scale not in (None, *SCALES):
        raise ConfigError(f"--scale {job.scale} is none of {', '.join(SCALES)}")


def open_source(job: BatchJob, model: Model, *, threads: int) -> Source:
    """The input, checked against the model. Raises ConfigError and InvalidInputError."""
    path, specs = job.input_path, model.inputs
    if any(not spec.shape or spec.shape[0] not in (-1, 1) for spec in specs):
        raise InvalidInputError(f"{job.model_path} has no free batch dimension: its rows cannot be scored one by one")
    if path.is_dir():
        from edge_agent.batch.images import ImageSource

        scale: Any = job.scale or "0..1"
        return ImageSource(path, specs, scale=scale, size=job.size, threads=threads)
    if path.suffix == ".npz":
        from edge_agent.batch.npz import NpzSource

        return NpzSource(path, specs, keep=job.keep)
    if path.suffix == ".csv":
        from edge_agent.batch.csv_rows import CsvSource

        return CsvSource(path, specs, keep=job.keep)
    from edge_agent.batch.parquet import ParquetSource

    return ParquetSource(path, specs, keep=job.keep)


def check_columns(names: list[str]) -> None:
    """Raise ConfigError for two columns of one name."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two columns would be called {name!r}: leave it out of --keep")


def empty_columns(kept: tuple[Column, ...], model: Model, labels: tuple[str, ...]) -> tuple[Column, ...]:
    """The columns of a run without a single scored row, as far as the model tells."""
    from edge_agent.runtime.tensors import NUMPY_TYPES

    classes = (Column("class", "<i8"), Column("label", TEXT)) if labels else ()
    outputs = (
        Column(
            spec.name,
            TEXT if spec.datatype == "BYTES" else NUMPY_TYPES[spec.datatype].str,
            tuple(max(size, 0) for size in spec.shape[1:]),
        )
        for spec in model.outputs
    )
    return (ROW_COLUMN, *kept, *classes, *outputs)


def identity(job: BatchJob) -> dict[str, Any]:
    """What has to be the same for a run to go on where another one ended, by the name that is told.

    Batch size and threads need not: they say how fast, not what.
    """
    return {
        "format": _FORMAT,
        "input": _input_identity(job.input_path),
        "model": f"sha256:{_digest(job.model_path)}",
        "keep": list(job.keep),
        "labels": list(job.labels),
        "scale": job.scale,
        "size": job.size and list(job.size),
    }


def _input_identity(path: Path) -> str:
    if path.is_dir():
        from edge_agent.batch.images import list_images

        listing = hashlib.sha256()
        names = list_images(path)
        for name in names:
            listing.update(f"{name}\0{_stamp(path / name)}\n".encode("utf-8", "surrogateescape"))
        return f"{len(names)} images, sha256:{listing.hexdigest()}"
    return f"{path.name}, {_stamp(path)}"


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns / 1e9:.6f}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
