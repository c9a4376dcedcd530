"""U6: how many bytes an update of an int8 model takes by delta, over the bytes of the whole file.

Three of the zoo's networks are trained further in this run (`benchmarks/deltas/train_on.py`): their last layer alone
for an epoch with all others frozen, all layers for an epoch, and from another seed, where everything moves. Each is
quantized as the first was: same scheme, same calibration samples, nothing told about what was frozen. The digits
versions as they are committed (retrained on more data, and on faulty data) come beside them. Every delta is rebuilt as
a device rebuilds it and must be the new file to the byte; what zstd, bsdiff and HDiffPatch make of the same pairs is in
the same row.

The ratio is the largest of the fine-tuned last layers', by what is shipped; all others are shown. CPU times are of the
process, on one thread.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.environments import environment
from benchmarks.result import Result
from edge_agent.control.delta import rebuild
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_server.registry.delta_encoding import write_delta
from quantize.calibration import calibrate
from quantize.data import Inputs
from quantize.preparation import prepare
from quantize.quantizers.building import build
from quantize.scheme import Form, Integer, Scheme

ID = "U6"
TITLE = "delta bytes / full bytes of an int8 model whose last layer was fine-tuned (the largest of the zoo's)"
TARGET = 0.2
LAST_LAYER, ALL_LAYERS, OTHER_SEED = "last-layer", "all-layers", "other-seed"
EPOCHS = {LAST_LAYER: 1, ALL_LAYERS: 1, OTHER_SEED: 8}
SEED = 3
OURS = "edgefleet"
_HERE = Path(__file__).parent / "deltas"
_MODELS = Path(__file__).parent.parent / "models"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_INT8 = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, per_channel=True)
_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A file that devices hold, and the one that replaces it. `loss` is on the training samples, before and after."""

    model: str
    change: str
    old: bytes
    new: bytes
    loss: tuple[float, float] | None = None


def run() -> Result:
    """Train, quantize, and make every delta."""
    with TemporaryDirectory(prefix="edgefleet-u6-") as name:
        folder = Path(name)
        pairs = [*_trained_pairs(folder), *_committed_pairs()]
        rows = [_row(pair, others, folder) for pair, others in zip(pairs, _others(pairs, folder), strict=True)]
    return judge(rows)


def judge(rows: list[dict[str, Any]]) -> Result:
    """The result of the measured rows."""
    ratio = max(row["ratios"][OURS] for row in rows if row["change"] == LAST_LAYER)
    return Result(
        id=ID, title=TITLE, ratio=ratio, target=f"<= {TARGET}", holds=ratio <= TARGET, figures={"pairs": rows}
    )


def _trained_pairs(folder: Path) -> Iterator[Pair]:
    python = environment("deltas-training", _HERE / "requirements-training.txt")
    for model, samples in {"digits": _digits, "keywords": _keywords, "bearing": _bearing}.items():
        source, inputs, labels, calibration = samples()
        known = {"inputs": inputs} if labels is None else {"inputs": inputs, "labels": labels}
        np.savez(folder / "samples.npz", **known)
        old = _quantized(source.read_bytes(), calibration)
        for change, epochs in EPOCHS.items():
            program = [python, _HERE / "train_on.py", source, folder / "samples.npz", folder / "new.onnx", change]
            said = _output(*program, str(epochs), str(SEED)).split()
            new = _quantized((folder / "new.onnx").read_bytes(), calibration)
            yield Pair(model=model, change=change, old=old, new=new, loss=(float(said[0]), float(said[1])))


def _digits() -> tuple[Path, Any, Any, Inputs]:
    from models.digits.data import CALIBRATION, TRAIN, split

    train = split()[TRAIN].samples()
    [inputs] = train.inputs.values()
    return _MODELS / "digits" / "fp32" / "1.1.0.onnx", inputs, train.labels, split()[CALIBRATION].samples().inputs


def _keywords() -> tuple[Path, Any, Any, Inputs]:
    from models.keywords.data import part

    train = part("reference")
    [inputs] = train.inputs.values()
    return _MODELS / "keywords" / "fp32" / "1.0.0.onnx", inputs, train.labels, part("calibration").inputs


def _bearing() -> tuple[Path, Any, Any, Inputs]:
    from models.bearing.recipe import request

    source = _MODELS / "bearing" / "fp32" / "1.0.0.onnx"
    asked = request(source.read_bytes())
    [inputs] = (asked.reference or {}).values()
    return source, inputs, None, asked.calibration.inputs


def _quantized(fp32: bytes, calibration: Inputs) -> bytes:
    prepared = prepare(fp32).model
    return build(prepared, _INT8, calibrate(prepared, calibration), excluded_nodes=(), inputs=calibration)


def _committed_pairs() -> Iterator[Pair]:
    bundles = [_MODELS / "digits" / "bundles" / version for version in ("1.0.0", "1.1.0", "1.2.0")]
    for old, new in itertools.pairwise(bundles):
        before, after = ({variant.name: variant for variant in read_manifest(one).variants} for one in (old, new))
        for name in sorted(before.keys() & after.keys()):
            yield Pair(
                model=f"digits {name}",
                change=f"committed {old.name} to {new.name}",
                old=file_path(old, before[name].file.sha256).read_bytes(),
                new=file_path(new, after[name].file.sha256).read_bytes(),
            )


def _others(pairs: list[Pair], folder: Path) -> list[dict[str, int]]:
    python = environment("deltas-codecs", _HERE / "requirements-codecs.txt")
    names: list[Path] = []
    for place, pair in enumerate(pairs):
        for kind, content in (("old", pair.old), ("new", pair.new)):
            names.append(folder / f"{place}.{kind}")
            names[-1].write_bytes(content)
    sizes: list[dict[str, int]] = json.loads(_output(python, _HERE / "codecs.py", *names))
    return sizes


def _row(pair: Pair, others: dict[str, int], folder: Path) -> dict[str, Any]:
    delta = bytearray()

    def encode() -> None:
        write_delta(memoryview(pair.old), memoryview(pair.new), max_bytes=2**40, write=delta.extend)

    encode_s = _cpu_s(encode)
    for name, content in (("delta", bytes(delta)), ("base", pair.old)):
        (folder / name).write_bytes(content)
    sizes = {"size_bytes": len(pair.new), "base_size_bytes": len(pair.old)}
    rebuild_s = _cpu_s(lambda: rebuild(folder / "delta", folder / "base", folder / "out", **sizes))
    if (folder / "out").read_bytes() != pair.new:
        raise AssertionError(f"{pair.model} {pair.change}: the rebuilt file is another")
    return {
        "model": pair.model,
        "change": pair.change,
        "full_bytes": len(pair.new),
        "ratios": {
            name: round(size_bytes / len(pair.new), 4) for name, size_bytes in {OURS: len(delta), **others}.items()
        },
        "computed_in_cpu_s": round(encode_s, 3),
        "rebuilt_in_cpu_s": round(rebuild_s, 3),
        "training_loss": pair.loss,
    }


def _cpu_s(do: Callable[[], object]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def _output(*command: str | Path) -> str:
    answer = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S, env={**os.environ, **_ONE_THREAD}
    )
    return answer.stdout
