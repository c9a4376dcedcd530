"""What a search is doing, for whoever waits: stages with steps, on a bar or nowhere."""

from __future__ import annotations

import sys
from typing import Protocol

from tqdm import tqdm

_WIDTH = 100
_MAX_STEP_CHARS = 60


class Progress(Protocol):
    """Hears of stages and steps."""

    def stage(self, title: str, steps: int = 0) -> None:
        """A new stage begins; it has `steps` steps, or nobody knows how many (0)."""

    def step(self, what: str) -> None:
        """The next step of the stage begins."""


class Silent:
    """Tells nobody."""

    def stage(self, title: str, steps: int = 0) -> None:
        """Ignore it."""

    def step(self, what: str) -> None:
        """Ignore it."""


SILENT = Silent()


class ProgressBar:
    """A bar for each stage on standard error; nothing where that is no terminal. A context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def stage(self, title: str, steps: int = 0) -> None:
        """Begin a new bar; the one before stays as it was."""
        self.__exit__()
        self._bar = tqdm(
            total=steps or None, desc=title, ncols=_WIDTH, unit="", file=sys.stderr, disable=None, leave=True
        )

    def step(self, what: str) -> None:
        """Move the bar on by one."""
        if self._bar is not None:
            self._bar.set_postfix_str(what[:_MAX_STEP_CHARS], refresh=False)
            self._bar.update(1)
