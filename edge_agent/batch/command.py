"""`edge-agent batch`: arguments to a job, progress to stderr, an interrupt to a run that can be gone on with.

Exit status: 0 finished (rejects are told, and are no failure), 1 failed while running, 2 wrong arguments, 130 stopped
by Ctrl-C or a stop signal, with everything so far kept.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.batch.job import BatchJob

EXIT_INTERRUPTED = 130
MAX_LABELS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `edge-agent batch`."""
    parser.add_argument("--model", required=True, metavar="NAME=FILE.onnx", help="the model that scores")
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="a .parquet, .csv or .npz file, or a folder of images"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a .parquet, .csv or .npz file")
    parser.add_argument("--keep", default="", metavar="COLUMNS", help="columns to copy beside the scores: id,name")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one per line: adds class and label")
    parser.add_argument("--scale", metavar="HOW", help="of images: 0..1 (unless said), 0..255 or imagenet")
    parser.add_argument("--size", metavar="HxW", help="of images, where the model takes any: height x width")
    parser.add_argument("--batch-size", type=int, metavar="ROWS", help="rows of one run; measured unless said")
    parser.add_argument("--threads", type=int, metavar="N", help="cores to use; all usable ones unless said")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run ended")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def job_of(options: argparse.Namespace, model_path: Path) -> BatchJob:
    """The job that the arguments describe. Raises ConfigError."""
    from edge_agent.batch.job import BatchJob

    return BatchJob(
        model_path=model_path,
        input_path=options.input,
        output_path=options.output,
        keep=tuple(name for part in options.keep.split(",") if (name := part.strip())),
        labels=_labels(options.labels) if options.labels else (),
        scale=options.scale,
        size=_size(options.size) if options.size else None,
        batch_rows=options.batch_size,
        threads=options.threads,
        resume=options.resume,
    )


def run(options: argparse.Namespace, model_path: Path) -> int:
    """Run the command; returns the exit status."""
    from edge_agent.batch.engine import score_file
    from edge_agent.batch.progress import ProgressLine

    job = job_of(options, model_path)

    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once, and loses little

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    line = None if options.quiet else ProgressLine(sys.stderr)
    try:
        report = score_file(job, is_stopping=lambda: bool(stopped), on_progress=line.show if line else lambda _: None)
    finally:
        if line:
            line.end()
    scored = f"{report.scored:,} rows scored"
    if not report.is_finished:
        print(f"edge-agent: stopped, {scored}: go on with the same command and --resume", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    if not options.quiet or report.rejected:
        rejected = f", {report.rejected:,} rejected: {report.rejects_path} says why" if report.rejected else ""
        print(f"{scored} into {job.output_path}{rejected}", file=sys.stderr)  # noqa: T201
    return 0


def _labels(path: Path) -> tuple[str, ...]:
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {path}: {getattr(error, 'strerror', None) or error}") from None
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ConfigError(f"--labels {path} holds {len(labels)} lines: write one class name on each")
    return labels


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if not match:
        raise ConfigError(f"--size {text!r} is not HEIGHTxWIDTH, for example 224x224")
    return int(match[1]), int(match[2])
