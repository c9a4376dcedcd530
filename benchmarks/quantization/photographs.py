"""Real photographs for the two vision models, cut to samples whose truth is what fp32 itself is sure of.

There is no labelled test set here, so the truth of a cut is the class that the fp32 model gives it, and the metric is
agreement with fp32. On most random cuts fp32 is unsure, and what it then says is no truth: only cuts that it gives a
probability of at least SURE take part, chosen before anything is quantized and the same for every candidate and peer.

Invariants:
- a photograph belongs to one part alone, so no two parts share a region;
- each part has a photograph of a person, and no class is more than MAX_CLASS_SHARE of a part;
- the same seed gives the same cuts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.environments import environment
from benchmarks.quantization.parts import PARTS
from fleet_server.errors import UnavailableError

SURE = 0.9
MAX_CLASS_SHARE = 0.5
PHOTOGRAPHS_OF = {
    "calibration": ("camera", "coffee", "rocket", "grass", "coins"),
    "selection": ("hopper", "motorcycle", "brick", "gravel"),
    "final": ("astronaut", "chelsea", "china", "flower"),
}
_PROGRAM = Path(__file__).parent / "programs" / "read_photographs.py"
_MIN_SIDE_SHARE = 0.2
_CUTS_A_TURN = 100
_MAX_CUTS_A_SAMPLE = 200
_READ_TIMEOUT_S = 120.0

Photograph = NDArray[np.uint8]
Cuts = NDArray[np.float32]
Classify = Callable[[Cuts], NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class SureCuts:
    """Cuts float32 `[n, size, size, 3]` of values 0 to 255 and the classes int64 `[n]` that fp32 is sure of.

    `looked_at` is how many cuts were made to find them.
    """

    cuts: Cuts
    classes: NDArray[np.int64]
    looked_at: int


@cache
def photographs() -> Mapping[str, Photograph]:
    """The photographs by name. Raises UnavailableError when the packages they lie in cannot be installed."""
    python = environment("photographs", _PROGRAM.with_name("photographs.txt"))
    with TemporaryDirectory(prefix="edgefleet-photographs-") as folder:
        out = Path(folder, "photographs.npz")
        command = [python, _PROGRAM, out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_READ_TIMEOUT_S, check=False)
        if done.returncode:
            raise UnavailableError(f"cannot read the photographs: {done.stderr.strip()[-300:]}")
        with np.load(out, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def sure_cuts(classify: Classify, *, part: str, count: int, size: int) -> SureCuts:
    """`count` cuts of the photographs of `part` that `classify` (cuts to probabilities `[n, classes]`) is sure of."""
    sources = [photographs()[name] for name in PHOTOGRAPHS_OF[part]]
    return chosen_cuts(_turns(sources, size=size, seed=PARTS.index(part)), classify, count=count)


def chosen_cuts(turns: Iterator[Cuts], classify: Classify, *, count: int) -> SureCuts:
    """The first `count` cuts of `turns` that are sure and whose class is not full yet.

    Raises UnavailableError when too many would have to be looked at.
    """
    quota = ceil(MAX_CLASS_SHARE * count)
    cuts: list[Cuts] = []
    classes: list[int] = []
    looked_at = 0
    for turn in turns:
        looked_at += len(turn)
        for cut, scores in zip(turn, classify(turn), strict=True):
            winner = int(scores.argmax())
            if scores[winner] >= SURE and classes.count(winner) < quota:
                cuts.append(cut)
                classes.append(winner)
            if len(cuts) == count:
                return SureCuts(cuts=np.stack(cuts), classes=np.array(classes, dtype=np.int64), looked_at=looked_at)
        if looked_at >= _MAX_CUTS_A_SAMPLE * count:
            break
    raise UnavailableError(f"of {looked_at} cuts fp32 is sure of {len(cuts)} in allowed classes, {count} are needed")


def _turns(sources: Sequence[Photograph], *, size: int, seed: int) -> Iterator[Cuts]:
    """Cuts of each photograph in turn, without end."""
    generator = np.random.default_rng(seed)
    while True:
        for photograph in sources:
            yield np.stack([cut(photograph, size=size, generator=generator) for _ in range(_CUTS_A_TURN)])


def cut(photograph: Photograph, *, size: int, generator: np.random.Generator) -> Cuts:
    """A square at a random place, of a fifth to all of the shorter side, flipped half of the time: `[size, size, 3]`
    of values 0 to 255."""
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    side = int(shorter * np.exp(generator.uniform(np.log(_MIN_SIDE_SHARE), 0.0)))
    left, top = int(generator.integers(0, width - side + 1)), int(generator.integers(0, height - side + 1))
    region = Image.fromarray(photograph[top : top + side, left : left + side])
    pixels: Cuts = np.asarray(region.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
    return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels
