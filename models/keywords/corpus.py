"""The scenes of a part: what is said in each second, by whom and in which noise; and how it sounds, made in parallel.

Invariants:
1. A scene is drawn from (SEED, part, place) alone: a part may be made in any order, by any number of processes, and a
   shorter part is the beginning of a longer one.
2. Classes are equally frequent; voices and unknown words are those that `voices.py` gives the part.
3. A part is made by the same code for training and for measuring; only the ratios of speech to noise differ: any in
   training, EVAL_SNRS_DB elsewhere, so that scores can be told by noise.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.keywords.features import log_mels_of
from models.keywords.speech import NOISES, Audio, Room, Utterance, in_room, mixed, noise, placed, recorded, speak
from models.keywords.voices import (
    ACCENTS,
    HELD_OUT_WORDS,
    LABELS,
    SILENCE,
    UNKNOWN,
    VARIANTS,
    Part,
    unknown_words,
)

CACHE_VARIABLE = "EDGEFLEET_KEYWORDS_CACHE"
CLEAN_DB = 100
"""The ratio of speech to noise that stands for no noise."""
EVAL_SNRS_DB = (CLEAN_DB, 20, 10, 5, 0)

_SEED = 20_260
_PROCESSES = 2
_CHUNK = 100
_TRAIN_SNR_DB = (0.0, 25.0)
_TRAIN_CLEAN = 0.25
_ECHOES = 0.4
_NOTHING_AT_ALL = 0.1
_BABBLE_WORDS = 48


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One second to be heard. `utterance` None is the class `silence`; `peak_db` None is digital silence."""

    label: int
    utterance: Utterance | None
    start: float
    room: Room | None
    noise: str
    snr_db: float
    peak_db: float | None

    @property
    def held_out(self) -> bool:
        """Whether it is an unknown word that training never heard."""
        return self.utterance is not None and self.utterance.text in HELD_OUT_WORDS


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Logarithmic mel bands float32 `[n, 49, 40]` (`features.log_mels_of`), class numbers uint8 `[n]`, the ratio of
    speech to noise in whole dB int8 `[n]` (CLEAN_DB: none), and which are unknown words that training never heard,
    bool `[n]`.
    """

    log_mels: NDArray[np.float32]
    labels: NDArray[np.uint8]
    snr_db: NDArray[np.int8]
    held_out: NDArray[np.bool_]


def draw(part: Part, place: int, *, clean: bool = False) -> Scene:
    """The scene at `place` of a part; `clean` is the word alone, or for `silence` the noise, at full scale."""
    randomness = _randomness(part, place)
    label = place % len(LABELS)
    scene = Scene(
        label=label,
        utterance=None if label == SILENCE else _utterance(part, label, randomness),
        start=float(randomness.uniform()),
        room=_room(randomness) if randomness.uniform() < _ECHOES else None,
        noise=NOISES[int(randomness.integers(len(NOISES)))],
        snr_db=_snr_db(part, place, randomness),
        peak_db=_peak_db(label, randomness),
    )
    if not clean:
        return scene
    return replace(scene, room=None, snr_db=CLEAN_DB, peak_db=0.0)


def hear(part: Part, place: int, *, clean: bool = False) -> NDArray[np.float32]:
    """What the scene at `place` sounds like: amplitudes `[16000]`. Raises RuntimeError without espeak-ng."""
    scene = draw(part, place, clean=clean)
    randomness = np.random.default_rng([_SEED, list(Part).index(part), place, 1])
    background = noise(scene.noise, randomness, _babble(part) if scene.noise == "babble" else ())
    if scene.utterance is None:
        silence = np.zeros_like(background) if scene.peak_db is None else background
        return recorded(silence, peak_db=scene.peak_db or 0.0)
    word = speak(scene.utterance)
    if not len(word):
        raise RuntimeError(f"espeak-ng says nothing for {scene.utterance}: take the voice out of voices.py")
    clip = placed(word, scene.start)
    power = float(np.square(clip).sum() / min(len(word), len(clip)))
    if scene.room is not None:
        clip = in_room(clip, scene.room, randomness)
    if scene.snr_db < CLEAN_DB:
        clip = mixed(clip, background, word_power=power, snr_db=scene.snr_db)
    return recorded(clip, peak_db=scene.peak_db or 0.0)


def heard(part: Part, count: int, *, clean: bool = False) -> Heard:
    """The first `count` scenes of a part, from the cache where they were made before. Raises RuntimeError."""
    scenes = [draw(part, place, clean=clean) for place in range(count)]
    return Heard(
        log_mels=_log_mels(part, count, clean),
        labels=np.array([scene.label for scene in scenes], dtype=np.uint8),
        snr_db=np.array([round(scene.snr_db) for scene in scenes], dtype=np.int8),
        held_out=np.array([scene.held_out for scene in scenes], dtype=np.bool_),
    )


def _log_mels(part: Part, count: int, clean: bool) -> NDArray[np.float32]:
    path = _cached_at(part, count, clean)
    if path.exists():
        stored: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return stored
    jobs = [(part, start, min(start + _CHUNK, count), clean) for start in range(0, count, _CHUNK)]
    with ProcessPoolExecutor(_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        log_mels = np.concatenate(list(pool.map(_chunk, jobs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        np.save(temporary, log_mels)
    Path(temporary.name).replace(path)
    return log_mels


def _chunk(job: tuple[Part, int, int, bool]) -> NDArray[np.float32]:
    part, start, stop, clean = job
    return np.stack([log_mels_of(hear(part, place, clean=clean)) for place in range(start, stop)], dtype=np.float32)


def _cached_at(part: Part, count: int, clean: bool) -> Path:
    """Named by the code that makes it: a change there makes the part again."""
    here = Path(__file__).parent
    made_by = b"".join((here / name).read_bytes() for name in ("corpus.py", "features.py", "speech.py", "voices.py"))
    digest = hashlib.sha256(made_by).hexdigest()[:12]
    folder = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edgefleet" / "keywords"
    return Path(folder) / f"{part}{'-clean' if clean else ''}-{count}-{digest}.npy"


def _randomness(part: Part, place: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, list(Part).index(part), place])


def _utterance(part: Part, label: int, randomness: np.random.Generator) -> Utterance:
    text = _one_of(unknown_words(part), randomness) if label == UNKNOWN else LABELS[label]
    return Utterance(
        text=text,
        voice=f"{_one_of(ACCENTS, randomness)}+{_one_of(VARIANTS[part], randomness)}",
        rate=int(randomness.integers(110, 200)),
        pitch=int(randomness.integers(20, 85)),
        stretch=float(randomness.uniform(0.93, 1.08)),
    )


def _room(randomness: np.random.Generator) -> Room:
    return Room(decay_s=float(randomness.uniform(0.1, 0.6)), echo_db=float(randomness.uniform(-15.0, -3.0)))


def _snr_db(part: Part, place: int, randomness: np.random.Generator) -> float:
    if part is not Part.TRAIN:
        return EVAL_SNRS_DB[place // len(LABELS) % len(EVAL_SNRS_DB)]  # each class equally often in each noise
    return CLEAN_DB if randomness.uniform() < _TRAIN_CLEAN else float(randomness.uniform(*_TRAIN_SNR_DB))


def _peak_db(label: int, randomness: np.random.Generator) -> float | None:
    if label != SILENCE:
        return float(randomness.uniform(-30.0, 0.0))
    return None if randomness.uniform() < _NOTHING_AT_ALL else float(randomness.uniform(-60.0, -6.0))


@cache
def _babble(part: Part) -> list[Audio]:
    """Words by the part's own voices, none of them a keyword."""
    randomness = np.random.default_rng([_SEED, list(Part).index(part), 0, 2])
    return [speak(_utterance(part, UNKNOWN, randomness)) for _ in range(_BABBLE_WORDS)]


def _one_of(names: Sequence[str], randomness: np.random.Generator) -> str:
    return names[int(randomness.integers(len(names)))]
