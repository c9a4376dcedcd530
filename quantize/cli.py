"""`edge-quantize`: an fp32 ONNX file to a bundle of measured, accuracy-gated variants, and a bundle to its report.

Exit status: 0 the bundle was made, also when only the float file ships (the report says why); 1 it failed for a reason
that no option mends; 2 the command, the model or the data is wrong; 130 it was interrupted, and the same command goes
on. Errors are one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import msgspec

from edge_agent.errors import BundleRefusedError
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.errors import InvalidName, MalformedMessage, UnsupportedSchema
from fleet_protocol.manifest import Manifest, Task
from fleet_protocol.names import check_name
from quantize.data import Samples, arrays_of, load_samples, split
from quantize.errors import InvalidOptionError, QuantizeError, UserError
from quantize.evaluation import loaded
from quantize.gate import parse_max_drop
from quantize.metrics import METRICS, metric_named
from quantize.pipeline import ARCHITECTURES, PLACEMENT_S, Request, quantize_to_bundle
from quantize.preparation import fix_shapes, read_model
from quantize.progress import ProgressBar
from quantize.report import summary_lines

_USAGE = 2
_INTERRUPTED = 130
_EXAMPLES = """\
examples:
  edge-quantize run digits.onnx --calibration samples.npz --out bundle/
  edge-quantize run digits.onnx --calibration calibration.npz --labels measured.npz:labels \\
      --model digits --version 1.1.0 --metric accuracy --max-drop 0.5% --out bundle/ --json
  edge-quantize run detector.onnx --calibration normal.npz --labels mixed.npz:is_fault --task anomaly --metric auc \\
      --shape spectrum=1,512 --out bundle/
  edge-quantize report bundle/
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (without the program's name) and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        lines, plain = _run(options) if options.command == "run" else _report(options)
    except (UserError, BundleRefusedError, InvalidName, MalformedMessage, UnsupportedSchema) as error:
        return _fail(str(error), _USAGE)
    except (QuantizeError, OSError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted: the same command goes on from here", _INTERRUPTED)
    sys.stdout.write((json.dumps(plain, indent=2) if options.json else "\n".join(lines)) + "\n")
    return 0


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_fail(f"{message}; see {self.prog} --help", _USAGE))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="edge-quantize",
        description="Find the fastest variants of an fp32 ONNX model that stay accurate, and make a bundle.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|report", parser_class=_OneLineParser)
    run = commands.add_parser("run", help="search, measure, judge and write a bundle")
    _add_run_options(run)
    report = commands.add_parser("report", help="show what a bundle holds and check its files' digests")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="a bundle's folder")
    report.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_run_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("onnx", type=Path, metavar="MODEL.onnx", help="the fp32 model")
    add("--calibration", type=Path, required=True, metavar="FILE.npz", help="samples named after the model's inputs")
    add(
        "--labels",
        metavar="FILE.npz:ARRAY",
        help="samples with their truth to measure with (default: `labels` in the calibration file). One half chooses,"
        " the other judges; when it is the calibration file, a third each calibrates, chooses and judges",
    )
    add("--final", metavar="FILE.npz:ARRAY", help="samples to judge with; all of --labels then chooses")
    add("--model", metavar="NAME", help="the model's name in the fleet (default: the file's)")
    add("--version", default="1.0.0", metavar="X.Y.Z", help="the new version, SemVer (default: %(default)s)")
    add("--task", choices=get_args(Task), default="classification", help="what answers are (default: %(default)s)")
    add(
        "--metric",
        default="accuracy",
        metavar="|".join([*METRICS, "FILE.py:FUNCTION"]),
        help="what must hold (default: %(default)s)",
    )
    add(
        "--max-drop",
        default="0.5%",
        metavar="FRACTION",
        help="how much of fp32's metric a variant may lose, as 0.5%% or 0.005 (default: 0.5%%)",
    )
    add(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=1,3,224,224",
        help="sizes for an input's dynamic dimensions; -1 keeps one (may be given again)",
    )
    add(
        "--architectures",
        default=",".join(ARCHITECTURES),
        metavar="A,B",
        help="machines to ship variants for (default: %(default)s)",
    )
    add(
        "--placement-seconds",
        type=float,
        default=PLACEMENT_S,
        metavar="S",
        help="how long to look for layers that are faster in float (default: %(default)g)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of every random choice (default: %(default)s)")
    add("--class-names", metavar="A,B,…", help="the classes' names (default: their numbers)")
    add("--card", type=Path, metavar="FILE.md", help="the model card's text, to which the facts are added")
    add("--licence", default="", metavar="SPDX", help="the model's licence")
    add("--description", default="", metavar="TEXT", help="one sentence for the operator")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the bundle's folder, new or empty")
    add("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    name = options.model if options.model is not None else _name_of(options.onnx)
    check_name("model", name)
    check_name("version", options.version)
    max_drop, metric, shapes = parse_max_drop(options.max_drop), metric_named(options.metric), _shapes(options.shape)
    fp32 = fix_shapes(_read_model(options.onnx), shapes, source=str(options.onnx))
    calibration, selection, final = _samples(options, fp32)
    request = Request(
        source=str(options.onnx),
        fp32=fp32,
        model=name,
        version=options.version,
        created_at_ns=time.time_ns(),
        task=options.task,
        calibration=calibration,
        selection=selection,
        final=final,
        metric=metric,
        max_drop=max_drop,
        architectures=_architectures(options.architectures),
        placement_s=options.placement_seconds,
        labels=options.class_names.split(",") if options.class_names else (),
        licence=options.licence,
        description=options.description,
        card=_text(options.card),
        seed=options.seed,
    )
    with ProgressBar() as progress:
        report = quantize_to_bundle(request, options.out, progress=progress)
    plain = msgspec.to_builtins(report.search)
    return summary_lines(report.search, options.out), {**plain, "folder": str(options.out)}


def _read_model(path: Path) -> bytes:
    return read_model(path, source=str(path))


def _name_of(path: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "model"


def _shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = [int(size) for size in sizes.split(",")]
        except ValueError:
            name = ""
        if not name:
            raise InvalidOptionError(
                f"--shape {text!r} is not INPUT=SIZE,SIZE,…: write, for example, image=1,3,224,224"
            )
    return shapes


def _architectures(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise InvalidOptionError(
            f"--architectures {','.join(unknown)} is not known: choose of {', '.join(ARCHITECTURES)}"
        )
    return names


def _samples(options: argparse.Namespace, fp32: bytes) -> tuple[Samples, Samples, Samples]:
    """The calibration, selection and final samples."""
    with loaded(fp32) as model:
        specs = model.inputs
    if options.labels is None and "labels" not in arrays_of(options.calibration):
        # a metric of inputs and outputs alone needs no truth
        labelled, is_calibration = load_samples(options.calibration, specs), True
    else:
        file, array = _file_and_array("--labels", options.labels or f"{options.calibration}:labels")
        labelled = load_samples(file, specs, labels=array)
        is_calibration = file.resolve() == options.calibration.resolve()
    final = None
    if options.final is not None:
        file, array = _file_and_array("--final", options.final)
        final = load_samples(file, specs, labels=array)
    if is_calibration:
        parts = split(labelled, 2 if final is not None else 3, seed=options.seed)
        return parts[0], parts[1], final if final is not None else parts[2]
    calibration = load_samples(options.calibration, specs)
    if final is not None:
        return calibration, labelled, final
    selection, final = split(labelled, 2, seed=options.seed)
    return calibration, selection, final


def _file_and_array(option: str, text: str) -> tuple[Path, str]:
    file, _, array = text.rpartition(":")
    if not file or not array:
        raise InvalidOptionError(f"{option} {text!r} is not FILE.npz:ARRAY: write, for example, samples.npz:labels")
    return Path(file), array


def _text(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(f"cannot read {path}: {error}") from None


def _report(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    manifest = read_manifest(options.folder)
    for artifact in manifest.artifacts():
        path = file_path(options.folder, artifact.sha256)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != artifact.sha256:
            raise InvalidOptionError(f"{path} is missing or does not have its digest: make the bundle again")
    rows = [["variant", "expected", "size", "opset", "golden tolerance", "quantization"]]
    for variant in manifest.variants:
        expected = ", ".join(f"{name} {value:.4f}" for name, value in variant.expected.items())
        size = f"{variant.file.size_bytes:,} B"
        rows.append(
            [variant.name, expected, size, str(variant.opset), f"{variant.golden_tolerance:g}", variant.quantization]
        )
    features = ", ".join(feature.name for feature in manifest.features) or "none"
    head = f"{manifest.model} {manifest.version}" + (f": {manifest.description}" if manifest.description else "")
    return [head, *_table(rows), f"features watched: {features}"], _report_json(manifest)


def _report_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "model": manifest.model,
        "version": manifest.version,
        "variants": {
            variant.name: {
                "expected": variant.expected,
                "size_bytes": variant.file.size_bytes,
                "opset": variant.opset,
                "golden_tolerance": variant.golden_tolerance,
                "quantization": variant.quantization,
            }
            for variant in manifest.variants
        },
        "features": [feature.name for feature in manifest.features],
        "memory_bytes": manifest.memory_bytes,
    }


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"edge-quantize: {' '.join(message.split())}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
