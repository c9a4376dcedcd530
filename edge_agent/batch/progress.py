"""What a batch run tells on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from edge_agent.batch.engine import BatchProgress

TERMINAL_EVERY_S = 0.1
PLAIN_EVERY_S = 5.0
_BAR_CHARS = 24


class ProgressLine:
    """Writes `BatchProgress` to `stream`, no more often than a reader can follow."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._is_terminal = stream.isatty()
        self._start = self._told_at = clock()
        self._shown = False

    def show(self, progress: BatchProgress) -> None:
        """Tell how far the run is, when it is time to."""
        now = self._clock()
        due = now - self._told_at >= (TERMINAL_EVERY_S if self._is_terminal else PLAIN_EVERY_S)
        if not due and not (progress.is_publishing and self._shown):
            return
        self._told_at, self._shown = now, True
        line = progress_line(progress, elapsed_s=now - self._start, bar=self._is_terminal)
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]}\033[K")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def end(self) -> None:
        """Take the terminal's line away."""
        if self._is_terminal and self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()


def progress_line(progress: BatchProgress, *, elapsed_s: float, bar: bool) -> str:
    """Rows, rows per second and the time left, with a bar for a terminal."""
    if progress.is_publishing:
        return f"{progress.rows:,} rows scored, writing them into place"
    per_s = (progress.rows - progress.resumed_rows) / elapsed_s if elapsed_s > 0 else 0.0
    total = progress.total_rows
    if not total:
        return f"{progress.rows:,} rows  {per_s:,.0f} rows/s"
    share = min(1.0, progress.rows / total)
    left = f"{duration((total - progress.rows) / per_s)} left" if per_s > 0 else ""
    filled = round(share * _BAR_CHARS)
    front = f"[{'#' * filled}{'.' * (_BAR_CHARS - filled)}] " if bar else ""
    return f"{front}{share:4.0%}  {progress.rows:,} of {total:,} rows  {per_s:,.0f} rows/s  {left}".rstrip()


def duration(seconds: float) -> str:
    """A duration as people say it: 8 s, 3 min 20 s, 5 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
