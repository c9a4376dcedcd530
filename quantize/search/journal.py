"""The search's journal: what was tried and found, so that an interrupted search goes on where it was.

```
FOLDER/journal.jsonl          one line: the key of the search; then `began` and `ended` lines by candidate
FOLDER/calibration.npz        the calibration's statistics
FOLDER/candidates/<sha256>    files of measured candidates
```
Invariants: a line is appended and flushed to the disk before the next step begins; a torn last line is dropped; a
journal with another key (other model, data, options, ONNX Runtime or CPU) is thrown away as a whole. A candidate that
began twice and never ended killed the process: it is not tried a third time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct

from quantize.errors import InvalidOptionError
from quantize.search_report import CandidateResult

MAX_BEGINNINGS = 2
_JOURNAL, _CALIBRATION, _CANDIDATES = "journal.jsonl", "calibration.npz", "candidates"


class _Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: the search's key, or a candidate that began, was left on request, or ended."""

    search: str = ""
    began: str = ""
    left: str = ""
    ended: str = ""
    result: CandidateResult | None = None
    sha256: str = ""


class Journal:
    """The journal at `folder` of the search with that `key`; what an earlier search with the same key found.

    Raises InvalidOptionError when nothing can be written there.
    """

    def __init__(self, folder: Path, *, key: str) -> None:
        self._folder = folder
        self._results: dict[str, tuple[CandidateResult, str]] = {}
        self._beginnings: dict[str, int] = {}
        lines = _read(folder / _JOURNAL)
        self.is_resumed = bool(lines) and lines[0].search == key
        if self.is_resumed:
            for line in lines[1:]:
                self._take(line)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            (folder / _CANDIDATES).mkdir(parents=True, exist_ok=True)
            self._file = (folder / _JOURNAL).open("ab")
        except OSError as error:
            raise InvalidOptionError(
                f"cannot write to {folder.parent}: {error.strerror}; choose another --out"
            ) from None
        if self.is_resumed:
            self._drop_torn_line()
        else:
            self._append(_Line(search=key))

    def result(self, candidate: str) -> CandidateResult | None:
        """What is known of a candidate (by its scheme's key); None when it was not finished."""
        found = self._results.get(candidate)
        return None if found is None else found[0]

    def content(self, candidate: str) -> bytes | None:
        """The file of a finished candidate; None when it has none, or it is damaged."""
        sha256 = self._results[candidate][1] if candidate in self._results else ""
        try:
            content = (self._folder / _CANDIDATES / sha256).read_bytes() if sha256 else b""
        except OSError:
            return None
        return content if sha256 and hashlib.sha256(content).hexdigest() == sha256 else None

    def killed_the_process(self, candidate: str) -> bool:
        """Whether the candidate began as often as it may and never ended."""
        return self._beginnings.get(candidate, 0) >= MAX_BEGINNINGS

    def was_interrupted(self, candidate: str) -> bool:
        """Whether the candidate began in an earlier run and did not end."""
        return self._beginnings.get(candidate, 0) > 0

    def begin(self, candidate: str) -> None:
        """Write down that a candidate is being tried."""
        self._append(_Line(began=candidate))

    def leave(self, candidate: str) -> None:
        """Write down that a candidate was left unfinished on request: it is not to blame."""
        self._append(_Line(left=candidate))

    def end(self, candidate: str, result: CandidateResult, content: bytes | None) -> None:
        """Write down what was found, and keep the candidate's file."""
        sha256 = ""
        if content is not None:
            sha256 = hashlib.sha256(content).hexdigest()
            (self._folder / _CANDIDATES / sha256).write_bytes(content)
        line = _Line(ended=candidate, result=result, sha256=sha256)
        self._append(line)
        self._take(line)

    def calibration(self) -> bytes | None:
        """The statistics of an earlier calibration."""
        try:
            return (self._folder / _CALIBRATION).read_bytes()
        except OSError:
            return None

    def keep_calibration(self, content: bytes) -> None:
        """Keep the calibration's statistics; the file is there whole or not at all."""
        part = self._folder / f"{_CALIBRATION}.part"
        part.write_bytes(content)
        part.replace(self._folder / _CALIBRATION)

    def close(self) -> None:
        """Close the file; what was found stays for the next run."""
        self._file.close()

    def remove(self) -> None:
        """Close and remove everything: the search is over and its result is in the bundle."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _append(self, line: _Line) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take(self, line: _Line) -> None:
        if line.began:
            self._beginnings[line.began] = self._beginnings.get(line.began, 0) + 1
        if line.left:
            self._beginnings[line.left] = 1  # still one that did not end, never one that killed
        if line.ended and line.result is not None:
            self._results[line.ended] = (line.result, line.sha256)
            self._beginnings.pop(line.ended, None)

    def _drop_torn_line(self) -> None:
        # what is appended after a torn line must not become part of it
        if not (self._folder / _JOURNAL).read_bytes().endswith(b"\n"):
            self._file.write(b"\n")


def _read(path: Path) -> list[_Line]:
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    lines = []
    for text in raw.splitlines():
        try:
            lines.append(msgspec.json.decode(text, type=_Line))
        except msgspec.MsgspecError:
            continue
    return lines
