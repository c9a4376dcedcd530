"""A chunk of rows through the model: in batches where it takes them, and a bad row costs itself only.

A batch that fails is halved until the rows that made it fail stand alone: each of them is a reject with its reason,
the others are scored. May be called from several threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.rows import Chunk
from edge_agent.batch.sizing import BatchSizeSearch
from edge_agent.errors import InferenceError, InvalidInputError
from edge_agent.runtime.session import Model


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Some rows of a chunk: where they stand in it, and their columns with axis 0 = rows."""

    first: int
    count: int
    columns: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """A chunk, the scores of its rows in order, every row without them with why, and how long that took."""

    chunk: Chunk
    scores: list[Scores]
    rejects: list[tuple[int, str]]
    took_s: float


class Scorer:
    """Runs chunks of rows through a model. `labels` name the classes of its first output."""

    def __init__(self, model: Model, *, search: BatchSizeSearch, labels: Sequence[str] = ()) -> None:
        self._model, self._search = model, search
        self._labels = np.array(labels) if labels else None

    def score(self, chunk: Chunk) -> ScoredChunk:
        """The scores of every row that has them."""
        start = time.perf_counter()
        scores: list[Scores] = []
        rejects = list(chunk.rejects)
        at, count = 0, len(chunk.rows)
        while at < count:
            size = self._search.next(count - at)
            for part in self._score(chunk.inputs, at, size):
                if isinstance(part, Scores):
                    scores.append(part)
                else:
                    rejects.append((int(chunk.rows[part[0]]), part[1]))
            at += size
        rejects.sort(key=lambda reject: reject[0])
        return ScoredChunk(chunk=chunk, scores=scores, rejects=rejects, took_s=time.perf_counter() - start)

    def _score(self, inputs: Mapping[str, NDArray[Any]], first: int, count: int) -> Iterator[Scores | tuple[int, str]]:
        part = {name: array[first : first + count] for name, array in inputs.items()}
        try:
            before = time.thread_time()
            outputs = self._rows_of(self._model.run(part), count)
            self._search.record(count, time.thread_time() - before)
        except (InvalidInputError, InferenceError) as error:
            if count == 1:
                yield first, str(error)
                return
            half = count // 2
            yield from self._score(inputs, first, half)
            yield from self._score(inputs, first + half, count - half)
        else:
            yield Scores(first=first, count=count, columns=self._classes(outputs) | outputs)

    def _rows_of(self, outputs: dict[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
        if count == 1:
            return {name: array if array.shape[:1] == (1,) else array[None] for name, array in outputs.items()}
        if any(array.shape[:1] != (count,) for array in outputs.values()):
            raise InferenceError(f"{self._model.path.name} does not answer each row of a batch")
        return outputs

    def _classes(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._labels is None:
            return {}
        scores = next(iter(outputs.values()))
        if scores.ndim != 2 or scores.shape[1] != len(self._labels):
            raise InvalidInputError(
                f"the model answers {list(scores.shape[1:])} scores a row, and there are {len(self._labels)} labels"
            )
        winners = scores.argmax(axis=1)
        return {"class": winners, "label": self._labels[winners]}
