"""One batch run: read ahead, score on every usable core, write in order, count what is durable, publish.

Order: check the job → load and warm the model → open the input and the journal → for every chunk, in the input's
order: its rejects and its scores are added; every `CHECKPOINT_S` they count → rejects in their place → scores in
their place → the journal goes. So scores that exist have their rejects told, and a run that ends anywhere before
can be gone on with.
Threads: one reads and decodes the next chunks, `threads` score one chunk each on the same one-thread session (measured
better than one run over several cores for every model here), the caller's writes. In memory are at most
`threads + 1 + READ_AHEAD` chunks and their scores.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent.batch import sizing
from edge_agent.batch.job import (
    ROW_COLUMN,
    BatchJob,
    check_columns,
    check_job,
    empty_columns,
    identity,
    open_source,
)
from edge_agent.batch.journal import Journal, Progress, published
from edge_agent.batch.publishing import PUBLISHERS
from edge_agent.batch.rows import TEXT, Chunk, Column, Source
from edge_agent.batch.scoring import ScoredChunk, Scorer
from edge_agent.durable_files import move_into_place
from edge_agent.errors import AgentError
from edge_agent.runtime.cpu import cpu_quota
from edge_agent.runtime.session import Model

CHECKPOINT_S = 1.0
"""A kill costs at most the work of this time."""
READ_AHEAD = 2
_WAIT_S = 0.1


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """How a run ended. `rejects_path` is None when every row was scored; `batch_rows` are those of one run.

    Without `is_finished` it was stopped on request, and goes on with `resume`.
    """

    scored: int
    rejected: int
    rejects_path: Path | None
    batch_rows: int
    is_finished: bool = True


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """Where a run stands. `resumed_rows` were done before it began; `total_rows` is an estimate for a CSV."""

    rows: int
    resumed_rows: int
    total_rows: int | None
    is_publishing: bool = False


def score_file(
    job: BatchJob,
    *,
    is_stopping: Callable[[], bool] = lambda: False,
    on_progress: Callable[[BatchProgress], None] = lambda _: None,
) -> BatchReport:
    """Run `job`. Raises ConfigError, ModelLoadError and InvalidInputError, and AgentError when a file fails."""
    check_job(job)
    folder = job.partial_folder
    if job.resume and job.output_path.is_file() and (before := published(folder)) is not None:
        shutil.rmtree(folder)
        return _report(job, before, batch_rows=job.batch_rows or 1)
    model = Model.load(job.model_path)
    model.warm()
    threads = job.threads or math.ceil(cpu_quota())
    source = open_source(job, model, threads=threads)
    check_columns(["row", *(column.name for column in source.kept), *(spec.name for spec in model.outputs)])
    try:
        with ExitStack() as opened:
            fresh = not folder.exists()
            journal = opened.enter_context(Journal.open(folder, identity(job), resume=job.resume))
            try:
                return _run(
                    job=job, model=model, source=source, journal=journal, threads=threads,
                    is_stopping=is_stopping, on_progress=on_progress,
                )  # fmt: skip
            except BaseException:
                if fresh and not journal.counts:
                    journal.remove()  # nothing is lost: nothing is left behind
                raise
    except OSError as error:
        where = error.filename or job.output_path
        raise AgentError(
            f"cannot write {where}: {error.strerror or error}: repair that and go on with --resume"
        ) from None


def _run(
    *,
    job: BatchJob,
    model: Model,
    source: Source,
    journal: Journal,
    threads: int,
    is_stopping: Callable[[], bool],
    on_progress: Callable[[BatchProgress], None],
) -> BatchReport:
    progress, resumed_rows = journal.progress, journal.progress.read
    limit = sizing.largest_chunk(source.row_bytes)
    search = sizing.BatchSizeSearch(
        limit=min(limit, sizing.MAX_BATCH_ROWS), fixed=job.batch_rows if model.is_batchable else 1
    )
    scorer = Scorer(model, search=search, labels=job.labels)
    pace = _Pace(rows=min(max(sizing.FIRST_CHUNK_ROWS, job.batch_rows or 1), limit), limit=limit)
    finished, counted_at = True, time.monotonic()
    with (
        _ahead(source.chunks(progress.cursor, lambda: pace.rows)) as chunks,
        closing(_scored(scorer, chunks, threads)) as done,
    ):
        for scored in done:
            _add(journal, scored, source.kept)
            pace.follow(scored)
            now = time.monotonic()
            if now - counted_at >= CHECKPOINT_S:
                journal.checkpoint()
                counted_at = now
            on_progress(
                BatchProgress(
                    rows=progress.read,
                    resumed_rows=resumed_rows,
                    total_rows=_total(source, progress.read, scored.chunk),
                )
            )
            if is_stopping():
                finished = False
                break
    if finished:
        journal.begin_empty(empty_columns(source.kept, model, job.labels))
    journal.checkpoint()
    if finished:
        on_progress(
            BatchProgress(rows=progress.read, resumed_rows=resumed_rows, total_rows=progress.read, is_publishing=True)
        )
        _publish(job, journal)
    return _report(job, progress, batch_rows=search.best, is_finished=finished)


def _report(job: BatchJob, progress: Progress, *, batch_rows: int, is_finished: bool = True) -> BatchReport:
    return BatchReport(
        scored=progress.scored,
        rejected=progress.rejected,
        rejects_path=job.rejects_path if progress.rejected and is_finished else None,
        batch_rows=batch_rows,
        is_finished=is_finished,
    )


class _Pace:
    """How many rows the reader takes at a time. One thread writes it, the reader reads it."""

    def __init__(self, *, rows: int, limit: int) -> None:
        self.rows, self._limit = rows, limit

    def follow(self, scored: ScoredChunk) -> None:
        if len(scored.chunk.rows) == self.rows:
            self.rows = sizing.next_chunk_rows(self.rows, took_s=scored.took_s, limit=self._limit)


def _scored(scorer: Scorer, chunks: Iterator[Chunk], threads: int) -> Generator[ScoredChunk, None, None]:
    """Every chunk scored, in order, `threads` of them at a time."""
    waiting: deque[Future[ScoredChunk]] = deque()
    with ThreadPoolExecutor(threads, "edgefleet-score") as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(scorer.score, chunk))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _ahead(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """`chunks`, read by a thread of their own, at most READ_AHEAD of them before they are wanted."""
    ready: queue.Queue[Chunk | BaseException | None] = queue.Queue(READ_AHEAD)
    stopping = threading.Event()

    def put(item: Chunk | BaseException | None) -> None:
        while not stopping.is_set():
            try:
                return ready.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for chunk in chunks:
                put(chunk)
                if stopping.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that takes the chunks
            put(error)

    def take() -> Iterator[Chunk]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    reader = threading.Thread(target=read, name="edgefleet-read", daemon=True)
    reader.start()
    try:
        yield take()
    finally:
        stopping.set()
        reader.join()


def _add(journal: Journal, scored: ScoredChunk, kept: tuple[Column, ...]) -> None:
    chunk, progress = scored.chunk, journal.progress
    for row, reason in scored.rejects:
        journal.reject(row, reason)
    for part in scored.scores:
        at = slice(part.first, part.first + part.count)
        columns = {"row": chunk.rows[at], **{name: array[at] for name, array in chunk.kept.items()}, **part.columns}
        journal.add(columns, types=() if progress.columns else _types(kept, part.columns))
        progress.scored += part.count
    progress.read += len(chunk.rows) + len(chunk.rejects)
    progress.cursor = chunk.cursor


def _types(kept: tuple[Column, ...], outputs: dict[str, NDArray[Any]]) -> tuple[Column, ...]:
    scores = (
        Column(
            name, TEXT if array.dtype.hasobject else array.dtype.str, () if array.dtype.hasobject else array.shape[1:]
        )
        for name, array in outputs.items()
    )
    return (ROW_COLUMN, *kept, *scores)


def _total(source: Source, read: int, chunk: Chunk) -> int | None:
    if source.total_rows is not None:
        return source.total_rows
    return round(read / chunk.read_fraction) if chunk.read_fraction else None


def _publish(job: BatchJob, journal: Journal) -> None:
    if journal.progress.rejected:
        copy = journal.folder / "rejects.copy"  # the journal stays whole until the scores are in place
        shutil.copyfile(journal.rejects_path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        move_into_place(copy, job.rejects_path)
    else:
        job.rejects_path.unlink(missing_ok=True)  # an earlier run's would tell of rows that were scored now
    PUBLISHERS[job.output_path.suffix](journal, job.output_path)
    journal.remove()
