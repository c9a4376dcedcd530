"""The models that are quantized: MLPerf Tiny's four and the zoo's, each with the data there is for it.

| model | data | truth |
|---|---|---|
| kws | synthetic speech of models/keywords | the word that was spoken, of seconds that fp32 is sure about |
| ic, vww | cuts of real photographs | what fp32 is sure about: agreement with fp32 |
| ad | windows of one real recording, up to GAIN_DB louder or softer | the input itself (reconstruction) |
| the zoo | each model's own | its own labels |

"Sure" is a probability of at least `photographs.SURE`, asked of fp32 before anything is quantized. MLPerf Tiny's own
test sets are not here: these are measurements of what quantization changes, not of how good the models are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quantization.parts import CALIBRATION, FINAL, PARTS, SELECTION, Case, Settings
from benchmarks.quantization.photographs import PHOTOGRAPHS_OF, SURE, Classify, sure_cuts
from benchmarks.real_models import mlperf_tiny_file
from models import bearing, digits, keywords, tabular, tiny_transformer
from models.recipe import VersionRecipe
from quantize.data import Samples, concatenated
from quantize.evaluation import loaded, run_all
from quantize.metrics import scores
from quantize.pipeline import Request

INPUT = "input_1"
MAX_DROP = 0.005
GAIN_DB = 1.0
SMALL = "EDGEFLEET_BENCH_SMALL"
"""An environment variable: when it is set, parts are a tenth as large, to try a benchmark out."""
_COUNTS = {CALIBRATION: 300, SELECTION: 500, FINAL: 1000}
_SMALL_SHARE = 10
_WINDOW_FRAMES = 5
_DIGITS_VERSION = "1.1.0"
"""The newest that is not broken on purpose."""


@dataclass(frozen=True, kw_only=True)
class _Vision:
    size: int
    scale: float


_VISION = {"ic": _Vision(size=32, scale=1.0), "vww": _Vision(size=96, scale=1 / 255)}


def all_cases() -> dict[str, Callable[[], Case]]:
    """Every model by name; its data is made when it is called for."""
    return {
        "kws": _kws,
        "ic": lambda: _vision("ic"),
        "vww": lambda: _vision("vww"),
        "ad": _ad,
        "digits": _digits,
        "keywords": _keywords,
        "bearing": _bearing,
        "tiny-transformer": _tiny_transformer,
        "tabular": _tabular,
    }


def count_of(part: str) -> int:
    """How many samples a part should have."""
    return _COUNTS[part] // (_SMALL_SHARE if os.environ.get(SMALL) else 1)


@cache
def _kws() -> Case:
    from models.keywords.data import part

    fp32 = mlperf_tiny_file("kws.onnx").read_bytes()
    heard = {name: _for_mlperf(part(name)) for name in ("calibration", "reference", "selection", "clean", "final")}
    return Case(
        settings=Settings(
            name="kws",
            metric="accuracy",
            max_drop=MAX_DROP,
            task="classification",
            truth=f"the synthetic word that was spoken, in seconds of which fp32 is at least {SURE} sure; "
            "calibration takes any second",
        ),
        fp32=fp32,
        calibration=heard["calibration"],
        selection=_sure(fp32, concatenated(heard["selection"], heard["reference"])),
        final=_sure(fp32, concatenated(heard["final"], heard["clean"])),
    )


def _for_mlperf(samples: Samples) -> Samples:
    [features] = samples.inputs.values()
    return Samples(inputs={INPUT: features.reshape(-1, 49, 10, 1)}, labels=samples.labels)


def _sure(fp32: bytes, samples: Samples) -> Samples:
    with loaded(fp32) as model:
        table = scores(run_all(model, samples.inputs))
    return samples.take(np.flatnonzero(table.max(axis=1) >= SURE).astype(np.int64))


@cache
def _vision(name: str) -> Case:
    fp32 = mlperf_tiny_file(f"{name}.onnx").read_bytes()
    vision = _VISION[name]
    parts: dict[str, Samples] = {}
    looked_at = 0
    with loaded(fp32) as model:

        def classify(cuts: NDArray[np.float32]) -> NDArray[np.floating]:
            return scores(run_all(model, {INPUT: cuts * np.float32(vision.scale)}))

        sure: Classify = classify
        for part in PARTS:
            found = sure_cuts(sure, part=part, count=count_of(part), size=vision.size)
            parts[part] = Samples(inputs={INPUT: found.cuts * np.float32(vision.scale)}, labels=found.classes)
            looked_at += found.looked_at
    kept = sum(map(len, parts.values()))
    return Case(
        settings=Settings(
            name=name,
            metric="accuracy",
            max_drop=MAX_DROP,
            task="classification",
            truth=f"agreement with fp32, on the {kept} of {looked_at} cuts of {sum(map(len, PHOTOGRAPHS_OF.values()))} "
            f"photographs that fp32 is at least {SURE} sure of, no class more than half",
        ),
        fp32=fp32,
        calibration=parts[CALIBRATION],
        selection=parts[SELECTION],
        final=parts[FINAL],
    )


@cache
def _ad() -> Case:
    windows = np.load(mlperf_tiny_file("ad_inputs.npy")).astype(np.float32)
    parts = {
        part: Samples(inputs={INPUT: louder_and_softer(region, count=count_of(part), seed=number)})
        for number, (part, region) in enumerate(zip(PARTS, regions(windows), strict=True))
    }
    return Case(
        settings=Settings(
            name="ad",
            metric="mse",
            max_drop=MAX_DROP,
            task="anomaly",
            truth=f"the input (reconstruction error), of {len(windows)} windows of one normal recording, each part a "
            f"third of its time, up to {GAIN_DB} dB louder or softer; keeps is fp32's error over the variant's",
        ),
        fp32=mlperf_tiny_file("ad.onnx").read_bytes(),
        calibration=parts[CALIBRATION],
        selection=parts[SELECTION],
        final=parts[FINAL],
    )


def regions(windows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Overlapping windows `[n, values]` in as many parts as there are, cut in time so that no two share a frame."""
    return [part[: len(part) - _WINDOW_FRAMES + 1] for part in np.array_split(windows, len(PARTS))]


def louder_and_softer(windows: NDArray[np.float32], *, count: int, seed: int) -> NDArray[np.float32]:
    """`count` of the log-mel windows `[n, values]`, each with a random gain of up to GAIN_DB added."""
    generator = np.random.default_rng(seed)
    gains_db = generator.uniform(-GAIN_DB, GAIN_DB, (count, 1)).astype(np.float32)
    louder: NDArray[np.float32] = windows[np.arange(count) % len(windows)] + gains_db
    return louder


@cache
def _digits() -> Case:
    from models.digits.data import split

    folder = Path(digits.__path__[0])
    parts = {name: part.samples() for name, part in split().items()}
    return Case(
        settings=Settings(
            name="digits", metric="accuracy", max_drop=0.01, task="classification", truth="the digit that was written"
        ),
        fp32=(folder / "fp32" / f"{_DIGITS_VERSION}.onnx").read_bytes(),
        calibration=parts[CALIBRATION],
        selection=parts[SELECTION],
        final=parts[FINAL],
        committed=_existing(folder / "bundles" / _DIGITS_VERSION),
    )


@cache
def _keywords() -> Case:
    from models.keywords.recipe import VERSION

    return _of_recipe("keywords", VERSION, keywords.__path__[0], "the synthetic word that was spoken")


@cache
def _bearing() -> Case:
    from models.bearing.recipe import RECIPE

    return _of_recipe("bearing", RECIPE, bearing.__path__[0], "the simulated fault")


@cache
def _tiny_transformer() -> Case:
    from models.tiny_transformer.recipe import RECIPE

    return _of_recipe("tiny-transformer", RECIPE, tiny_transformer.__path__[0], "the language of the phrase")


@cache
def _tabular() -> Case:
    from models.tabular.recipe import RECIPE

    case = _of_recipe("tabular", RECIPE, tabular.__path__[0], "the diagnosis")
    return replace(case, settings=_as_trees(case.settings))


def _as_trees(settings: Settings) -> Settings:
    from msgspec.structs import replace as with_changed

    return with_changed(settings, is_network=False)


def _of_recipe(name: str, recipe: VersionRecipe, folder: str, truth: str) -> Case:
    request: Request = recipe.request(recipe.fp32.read_bytes())
    final = request.final or request.selection
    return Case(
        settings=Settings(
            name=name,
            metric=request.metric.name,
            max_drop=request.max_drop,
            task=request.task,
            truth=truth,
        ),
        fp32=request.fp32,
        calibration=request.calibration,
        selection=request.selection,
        final=final,
        committed=_existing(Path(folder) / "bundles" / recipe.version),
    )


def _existing(bundle: Path) -> Path | None:
    return bundle if (bundle / "manifest.json").is_file() else None
