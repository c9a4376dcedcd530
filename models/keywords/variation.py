"""Each second a little otherwise every time training hears it, in the mel bands, where it costs next to nothing.

In this order, all of it a function of the bands and of `randomness`: the word is spoken faster or slower, earlier or
later; by a longer or shorter vocal tract (bands move along the frequency, N. Jaitly and G. Hinton, "Vocal Tract Length
Perturbation", 2013); into another microphone (a smooth tilt over the bands, and a gain); and most seconds hear another
noise beside their own, added in power.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.keywords.features import FLOOR, FRAMES, HIGHEST_HZ, LOWEST_HZ, MEL_BANDS, mel

Bands = NDArray[np.float32]

_TEMPO = (0.85, 1.18)
_MAX_SHIFT_FRAMES = 4.0
_VOCAL_TRACT = (0.87, 1.15)
_TILT = (0.5, 0.4, 0.3)
_GAIN_DB = (-8.0, 8.0)
_NOISY = 0.6
_SNR_DB = (2.0, 25.0)
_LOUD_FRAMES = 12


def varied(log_mels: Bands, noises: Bands, randomness: np.random.Generator) -> Bands:
    """Seconds `[n, 49, 40]` of logarithmic mel bands, varied; `noises` `[m, 49, 40]` are what may join them."""
    count = len(log_mels)
    tempo = randomness.uniform(*_TEMPO, size=(count, 1))
    shift = randomness.uniform(-_MAX_SHIFT_FRAMES, _MAX_SHIFT_FRAMES, size=(count, 1))
    middle = (FRAMES - 1) / 2
    moved = _taken(log_mels, (np.arange(FRAMES) - middle) * tempo + middle + shift, axis=1)
    spoken = _taken(moved, _warped_bands(randomness.uniform(*_VOCAL_TRACT, size=(count, 1))), axis=2)
    magnitudes = np.maximum(np.exp(spoken) - np.float32(FLOOR), 0) * np.exp(_microphones(count, randomness))
    others = np.exp(noises[randomness.integers(len(noises), size=count)]) - np.float32(FLOOR)
    others *= _noise_gains(magnitudes, others, randomness)
    mixed: Bands = np.log(np.sqrt(np.square(magnitudes) + np.square(others)) + np.float32(FLOOR))
    return mixed


def _taken(bands: Bands, places: NDArray[np.float64], *, axis: int) -> Bands:
    """The bands at fractional `places` `[n, size]` of one axis, in straight lines between neighbours, ends repeated."""
    size = bands.shape[axis]
    inside = np.clip(places, 0, size - 1)
    left = np.minimum(inside.astype(np.int64), size - 2)
    right_share = (inside - left).astype(np.float32)
    form = (slice(None), slice(None), None) if axis == 1 else (slice(None), None, slice(None))
    left, right_share = left[form], right_share[form]
    lower, upper = np.take_along_axis(bands, left, axis), np.take_along_axis(bands, left + 1, axis)
    taken: Bands = lower + right_share * (upper - lower)
    return taken


def _warped_bands(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each band of a vocal tract shorter by the factor `[n, 1]` was before: places `[n, 40]`."""
    low, high = float(mel(LOWEST_HZ)), float(mel(HIGHEST_HZ))
    step = (high - low) / (MEL_BANDS + 1)
    centres_hz = 700.0 * np.expm1((low + step * np.arange(1, MEL_BANDS + 1)) / 1127.0)
    return (mel(centres_hz * factors) - low) / step - 1.0


def _microphones(count: int, randomness: np.random.Generator) -> Bands:
    """Logarithms of a gain per band `[n, 1, 40]`: one for all, and slow waves over the bands."""
    gains = randomness.uniform(*_GAIN_DB, size=(count, 1)) * np.log(10) / 20
    waves = np.cos(np.pi * np.outer(np.arange(1, len(_TILT) + 1), np.arange(MEL_BANDS) + 0.5) / MEL_BANDS)
    heights = randomness.normal(scale=_TILT, size=(count, len(_TILT)))
    microphones: Bands = (gains + heights @ waves).astype(np.float32)[:, None, :]
    return microphones


def _noise_gains(words: Bands, noises: Bands, randomness: np.random.Generator) -> Bands:
    """What to multiply each noise by `[n, 1, 1]`: 0 for those that are not heard, and for those of digital silence."""
    count = len(words)
    loudness = np.sort(np.square(words).sum(axis=2), axis=1)[:, -_LOUD_FRAMES:].mean(axis=1)
    noise_loudness = np.square(noises).sum(axis=2).mean(axis=1)
    ratios = 10 ** (randomness.uniform(*_SNR_DB, size=count) / 10)
    heard = (randomness.uniform(size=count) < _NOISY) & (noise_loudness > FLOOR)
    gains = np.sqrt(loudness / (np.maximum(noise_loudness, FLOOR) * ratios)) * heard
    heard_at: Bands = gains.astype(np.float32)[:, None, None]
    return heard_at
