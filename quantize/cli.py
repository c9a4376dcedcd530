"""`edge-quantize`: an fp32 ONNX file to an accuracy-gated bundle, and a bundle to a table.

Exit status: 0 the bundle was made, also when int8 was refused and fp32 kept (the report says so); 1 it failed
for a reason that no option mends; 2 the command, the model or the data is wrong. Errors are one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edge_agent.errors import BundleRefusedError
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.errors import InvalidName, MalformedMessage, UnsupportedSchema
from fleet_protocol.manifest import Manifest
from fleet_protocol.names import check_name
from quantize.data import Samples, halves, load_samples
from quantize.errors import InvalidOptionError, QuantizeError, UserError
from quantize.evaluation import loaded
from quantize.gate import parse_max_drop
from quantize.metrics import METRICS, metric_named
from quantize.pipeline import Report, Request, quantize_to_bundle
from quantize.static_int8 import opset_of

MAX_MODEL_BYTES = 2 * 1024**3
_USAGE = 2
_EXAMPLES = """\
examples:
  edge-quantize run digits.onnx --calibration samples.npz --model digits --version 1.1.0 --out bundle/
  edge-quantize run digits.onnx --calibration calibration.npz --labels selection.npz:labels \\
      --model digits --version 1.1.0 --metric accuracy --max-drop 0.5% --out bundle/ --json
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
    sys.stdout.write((json.dumps(plain, indent=2) if options.json else "\n".join(lines)) + "\n")
    return 0


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_fail(f"{message}; see {self.prog} --help", _USAGE))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="edge-quantize",
        description="Quantize an fp32 ONNX model to int8, ship it only if it stays accurate, and make a bundle.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|report", parser_class=_OneLineParser)
    run = commands.add_parser("run", help="quantize, measure, judge and write a bundle")
    run.add_argument("onnx", type=Path, metavar="MODEL.onnx", help="the fp32 model")
    run.add_argument(
        "--calibration", type=Path, required=True, metavar="FILE.npz", help="samples named after the model's inputs"
    )
    run.add_argument(
        "--labels",
        metavar="FILE.npz:ARRAY",
        help="labelled samples to measure with (default: `labels` in the calibration file); when it is the "
        "calibration file, one half calibrates and the other measures",
    )
    run.add_argument("--model", required=True, metavar="NAME", help="the model's name in the fleet")
    run.add_argument("--version", required=True, metavar="X.Y.Z", help="the new version, SemVer")
    run.add_argument(
        "--metric",
        default="accuracy",
        metavar="|".join([*METRICS, "FILE.py:FUNCTION"]),
        help="what must hold (default: %(default)s)",
    )
    run.add_argument(
        "--max-drop",
        default="0.5%",
        metavar="FRACTION",
        help="how much of fp32's metric int8 may lose, as 0.5%% or 0.005 (default: 0.5%%)",
    )
    run.add_argument("--keep-fp32", action="store_true", help="ship fp32 beside int8; the device measures and chooses")
    run.add_argument("--class-names", metavar="A,B,…", help="the classes' names (default: their numbers)")
    run.add_argument("--licence", default="", metavar="SPDX", help="the model's licence")
    run.add_argument("--description", default="", metavar="TEXT", help="one sentence for the operator")
    run.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the bundle's folder, new or empty")
    run.add_argument("--json", action="store_true", help="print JSON")
    report = commands.add_parser("report", help="show what a bundle holds and check its files' digests")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="a bundle's folder")
    report.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    check_name("model", options.model)
    check_name("version", options.version)
    max_drop = parse_max_drop(options.max_drop)
    fp32 = _read_model(options.onnx)
    calibration, selection = _samples(options, fp32)
    report = quantize_to_bundle(
        Request(
            source=str(options.onnx),
            fp32=fp32,
            model=options.model,
            version=options.version,
            created_at_ns=time.time_ns(),
            calibration=calibration,
            selection=selection,
            metric=metric_named(options.metric),
            max_drop=max_drop,
            keep_fp32=options.keep_fp32,
            labels=options.class_names.split(",") if options.class_names else (),
            licence=options.licence,
            description=options.description,
        ),
        options.out,
    )
    return _run_table(report, options.out), {**report.as_json(), "folder": str(options.out)}


def _read_model(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise InvalidOptionError(f"{path} is larger than {MAX_MODEL_BYTES:,} bytes, the most that ONNX can hold")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidOptionError(f"cannot read {path}: {error.strerror}") from None
    opset_of(content, str(path))
    return content


def _samples(options: argparse.Namespace, fp32: bytes) -> tuple[Samples, Samples]:
    with loaded(fp32) as model:
        specs = model.inputs
    text = options.labels if options.labels is not None else f"{options.calibration}:labels"
    file, _, array = text.rpartition(":")
    if not file or not array:
        raise InvalidOptionError(f"--labels {text!r} is not FILE.npz:ARRAY: write, for example, samples.npz:labels")
    labelled = load_samples(Path(file), specs, labels=array)
    if Path(file).resolve() == options.calibration.resolve():
        return halves(labelled)
    return load_samples(options.calibration, specs), labelled


def _run_table(report: Report, folder: Path) -> list[str]:
    rows = [["variant", report.metric, "p50 µs", "p90 µs", "size", "ships"]]
    for name, measured in report.measurements.items():
        rows.append(
            [
                name,
                f"{measured.metrics[report.metric]:.4f}",
                f"{measured.p50_us:.0f}",
                f"{measured.p90_us:.0f}",
                f"{measured.size_bytes:,} B",
                "yes" if name in report.shipped else "no",
            ]
        )
    samples = next(iter(report.measurements.values())).samples
    return [*_table(rows), "", f"measured on {samples} samples: {report.reason}", f"bundle (unsigned): {folder}"]


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
