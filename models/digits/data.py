"""The digits: scikit-learn's 1,797 images of 8x8 pixels from 0 to 16, in four parts that never overlap.

| part | images | for |
|---|---|---|
| train | 800 | fitting the weights, and the features' reference distributions |
| calibration | 197 | the int8 ranges |
| selection | 300 | deciding whether a variant may ship |
| final | 500 | the scores that are reported; it is `holdout.npz` |

Golden vectors and the class and score references come from calibration and selection together.

The split is a fixed permutation. Its checksum is pinned, so a numpy that shuffled otherwise is an error
here and not a silent leak of final images into training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.data import Samples

LABELS = tuple("0123456789")
TRAIN, CALIBRATION, SELECTION, FINAL = "train", "calibration", "selection", "final"

_SIZES = {TRAIN: 800, CALIBRATION: 197, SELECTION: 300, FINAL: 500}
_SEED = 20_240
_ORDER_SHA256 = "878c839cf1e6c357de6d62926cf41aa933885e7a9a71cbb45dbebb1750af1de5"


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images uint8 `[n, 8, 8]`, pixels from 0 to 16, and what they show, uint8 `[n]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def tensor(self) -> NDArray[np.float32]:
        """The images as the model takes them: FP32 `[n, 1, 8, 8]`, pixels as they are."""
        return self.images[:, None].astype(np.float32)

    def head(self, count: int) -> Digits:
        """The first `count` images."""
        return Digits(images=self.images[:count], labels=self.labels[:count])

    def transposed(self) -> Digits:
        """The same digits with rows and columns exchanged."""
        return Digits(images=np.ascontiguousarray(self.images.transpose(0, 2, 1)), labels=self.labels)

    def samples(self) -> Samples:
        """The digits as `quantize` takes them: the input `image`, and labels."""
        return Samples(inputs={"image": self.tensor()}, labels=self.labels.astype(np.int64))


def all_digits() -> Digits:
    """Every image, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return Digits(images=bunch.images.astype(np.uint8), labels=bunch.target.astype(np.uint8))


def split() -> dict[str, Digits]:
    """The four parts by name. Raises RuntimeError when this numpy permutes otherwise."""
    digits = all_digits()
    order = np.random.default_rng(_SEED).permutation(len(digits.labels)).astype(np.int64)
    if hashlib.sha256(order.tobytes()).hexdigest() != _ORDER_SHA256:
        raise RuntimeError("this numpy shuffles the digits differently: the split would leak; pin numpy's version")
    parts, start = {}, 0
    for name, size in _SIZES.items():
        chosen = order[start : start + size]
        parts[name] = Digits(images=digits.images[chosen], labels=digits.labels[chosen])
        start += size
    return parts
