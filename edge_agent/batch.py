"""Offline scoring of a file: rows in, scores out, what could not be scored beside them.

Order: check the names before any work; read a chunk, run it as one batch where the model's first dimension
is variable, and row by row where it is not or where the batch fails, so that one bad row costs itself only.
The rejects are in place before the scores are: scores that exist have their rejects told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch_files import Chunk, CsvScores, NpzScores, Rejects, read_csv, read_npz
from edge_agent.errors import ConfigError, InferenceError, InvalidInputError, UnknownModelError
from edge_agent.local_api.service import InferenceService, ModelDescription

DEFAULT_CHUNK_ROWS = 256
MAX_CHUNK_ROWS = 65_536

_READERS = {".npz": read_npz, ".csv": read_csv}
_WRITERS: dict[str, Callable[[Path], CsvScores | NpzScores]] = {".npz": NpzScores, ".csv": CsvScores}


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """How a file was scored. `rejects_path` is None when every row was."""

    scored: int
    rejected: int
    rejects_path: Path | None


def score_file(
    service: InferenceService,
    model: str,
    input_path: Path,
    output_path: Path,
    *,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
) -> BatchReport:
    """Score the rows of a .npz or .csv file into a .npz or .csv file.

    The .npz holds one array per input, axis 0 = rows; the CSV one column per element of the single input.
    Rejected rows go to OUTPUT.rejects.csv (`scores.csv` → `scores.rejects.csv`) with their reason. Raises
    ConfigError for wrong paths, InvalidInputError for an unreadable file, UnknownModelError.
    """
    description = _description(service, model)
    reader, writer = _READERS.get(input_path.suffix), _WRITERS.get(output_path.suffix)
    if reader is None or writer is None:
        wrong = input_path if reader is None else output_path
        raise ConfigError(f"{wrong} is neither .npz nor .csv: batch scoring reads and writes these")
    if not input_path.is_file():
        raise ConfigError(f"there is no file {input_path} to score")
    if output_path.exists() and output_path.samefile(input_path):
        raise ConfigError(f"{output_path} is the input itself: write the scores elsewhere")
    if not 1 <= chunk_rows <= MAX_CHUNK_ROWS:
        raise ConfigError(f"chunk_rows is {chunk_rows}: use 1 to {MAX_CHUNK_ROWS}")
    at_once = chunk_rows if _takes_batches(description) else 1
    rejects_path = output_path.with_suffix(".rejects.csv")
    scored = 0
    with ExitStack() as opened:
        try:
            scores = writer(output_path)
            opened.enter_context(scores)
            rejects = opened.enter_context(Rejects(rejects_path))
        except OSError as error:
            raise ConfigError(f"cannot write {output_path}: {error.strerror or error}") from None
        for chunk in reader(input_path, description.inputs, chunk_rows=at_once):
            for row, reason in chunk.rejects:
                rejects.add(row, reason)
            for rows, outcome in _score_chunk(service, model, chunk):
                if isinstance(outcome, str):
                    rejects.add(rows[0], outcome)
                else:
                    scored += len(rows)
                    scores.add(rows, {**_classes(description, outcome), **outcome})
        if rejects.count:
            rejects.finish()
        else:
            rejects_path.unlink(missing_ok=True)  # an earlier run's would tell of rows that were scored now
        scores.finish()
    return BatchReport(scored=scored, rejected=rejects.count, rejects_path=rejects_path if rejects.count else None)


def _description(service: InferenceService, model: str) -> ModelDescription:
    for description in service.describe_models():
        if description.name == model:
            return description
    raise UnknownModelError(f"no model {model!r} is loaded here")


def _takes_batches(description: ModelDescription) -> bool:
    tensors = (*description.inputs, *description.outputs)
    if any(not spec.shape or spec.shape[0] not in (-1, 1) for spec in description.inputs):
        raise InvalidInputError(f"{description.name} has no free batch dimension: its rows cannot be scored one by one")
    return all(spec.shape and spec.shape[0] == -1 for spec in tensors)


def _score_chunk(
    service: InferenceService, model: str, chunk: Chunk
) -> Iterator[tuple[list[int], dict[str, NDArray[Any]] | str]]:
    """Rows with their outputs, axis 0 = rows; or one row with the reason why it has none."""
    count = len(chunk.rows)
    if not count:
        return
    try:
        outputs = _outputs(service, model, chunk.inputs, count)
    except (InvalidInputError, InferenceError) as error:
        if count == 1:
            yield chunk.rows, str(error)
            return
        for index, row in enumerate(chunk.rows):
            alone = {name: array[index : index + 1] for name, array in chunk.inputs.items()}
            yield from _score_chunk(service, model, Chunk(rows=[row], inputs=alone))
    else:
        yield chunk.rows, outputs


def _outputs(
    service: InferenceService, model: str, inputs: dict[str, NDArray[Any]], count: int
) -> dict[str, NDArray[Any]]:
    outputs = service.infer(model, inputs).outputs
    if count == 1:
        return {name: array if array.shape[:1] == (1,) else array[None] for name, array in outputs.items()}
    if any(array.shape[:1] != (count,) for array in outputs.values()):
        raise InferenceError(f"{model} does not answer each row of a batch")
    return outputs


def _classes(description: ModelDescription, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    scores = next(iter(outputs.values()))
    if not description.labels or scores.ndim != 2 or scores.shape[1] != len(description.labels):
        return {}
    winners = scores.argmax(axis=1)
    return {"class": winners, "label": np.array(description.labels)[winners]}
