"""The front end: two seconds of vibration and a shaft speed to the 512 numbers that the model takes.

The same code runs in training and on the device; numpy is all it needs. In this order:
1. loudness by order: 128 bands of the power spectrum, 0.25 to 16.125 times the shaft's speed, each 1/8 wide;
2. rhythm: twice 128 bands by order of the squared envelope's spectrum, of 1-3 kHz and of 3-7 kHz, relative to the
   envelope's mean, so that no gain shows;
3. loudness by frequency: 128 bands of the power spectrum, equal steps of the logarithm from 64 Hz to 8 kHz.

Spectra are means over three Hann frames of one second, half overlapped. A band is the decimal logarithm of its power,
in bels (of m^2/s^4 for loudness). Loudness counts half, because healthy machines differ more in how loud they are
than in rhythm. Values are held to +-8 and rounded to 1/256, so that a float16 holds them exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

RATE_HZ = 16_384
SAMPLES = 2 * RATE_HZ
BANDS = 512
MAX_SPEED_HZ = 100.0
SHAFT_1X, SHAFT_2X = 6, 14
"""The places of the shaft's first and second harmonic in the answer."""

_BLOCK = BANDS // 4
_ORDER_EDGES = 0.1875 + 0.125 * np.arange(_BLOCK + 1, dtype=np.float64)
_FREQUENCY_EDGES_HZ = np.geomspace(64.0, 8_000.0, _BLOCK + 1).astype(np.float64)
_ENVELOPE_BANDS_HZ = ((1_024, 3_072), (3_072, 7_168))
_LOUDNESS_WEIGHT = 0.5
_LOUDEST = 9.0
_SILENCE = 1e-30
_FLOOR = 1e-8
_LIMIT = 8.0
_STEPS = 256.0


def front_end(signal: ArrayLike, speed_hz: float) -> NDArray[np.float32]:
    """The model's input `[BANDS]` for `signal` `[SAMPLES]` in m/s^2 at RATE_HZ and the shaft's mean speed.

    Raises ValueError for another shape, a value that is not finite, or a speed that is not in (0, MAX_SPEED_HZ].
    """
    wave = np.asarray(signal, dtype=np.float64)
    if wave.shape != (SAMPLES,) or not np.isfinite(wave).all():
        raise ValueError(f"the signal must be {SAMPLES} finite numbers, two seconds at {RATE_HZ} Hz, not {wave.shape}")
    if not 0 < speed_hz <= MAX_SPEED_HZ:
        raise ValueError(f"the shaft's speed is {speed_hz} Hz: it must be above 0 and at most {MAX_SPEED_HZ:g}")
    orders_hz = _ORDER_EDGES * speed_hz
    power = _power(wave)
    rhythm = [_bels(_power(_relative_envelope(wave, *band)), orders_hz) for band in _ENVELOPE_BANDS_HZ]
    loudness = [_LOUDNESS_WEIGHT * _bels(power, edges_hz) for edges_hz in (orders_hz, _FREQUENCY_EDGES_HZ)]
    values = np.concatenate([loudness[0], *rhythm, loudness[1]])
    rounded = np.round(np.clip(values, -_LIMIT, _LIMIT) * _STEPS) / _STEPS
    spectrum: NDArray[np.float32] = rounded.astype(np.float32)
    return spectrum


def anomaly_score(reconstruction: ArrayLike, spectrum: ArrayLike) -> NDArray[np.float64]:
    """How unlike a healthy machine: the mean squared error `[n]` of the model's output `[n, BANDS]`."""
    difference = np.asarray(reconstruction, dtype=np.float64) - np.asarray(spectrum, dtype=np.float64)
    score: NDArray[np.float64] = (difference * difference).mean(axis=-1)
    return score


def _power(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """The one-sided power in each hertz, for a wave of two seconds at any rate: a sine of amplitude a has a^2/2."""
    frame = len(wave) // 2
    window = np.hanning(frame + 1)[:-1]
    frames = np.stack([wave[start : start + frame] for start in (0, frame // 2, frame)])
    spectra = np.fft.rfft(frames * window)
    power: NDArray[np.float64] = (spectra.real**2 + spectra.imag**2).mean(axis=0)
    power *= 2 / (frame * float(window @ window))
    return power


def _relative_envelope(wave: NDArray[np.float64], low_hz: int, high_hz: int) -> NDArray[np.float64]:
    """The squared envelope of a band, divided by its mean, at a rate of twice the band's width.

    The band's part of the one-sided spectrum, moved to zero and transformed back, is the analytic signal: its
    magnitude is the envelope (Randall and Antoni 2011). It is held to _LOUDEST, so that a single knock from
    elsewhere does not drown the rhythm.
    """
    seconds = SAMPLES // RATE_HZ
    width = high_hz - low_hz
    band = np.fft.rfft(wave)[low_hz * seconds : high_hz * seconds]
    analytic = np.fft.ifft(band, 2 * width * seconds)
    squared: NDArray[np.float64] = analytic.real**2 + analytic.imag**2
    relative: NDArray[np.float64] = np.minimum(squared / (squared.mean() + _SILENCE), _LOUDEST)
    return relative


def _bels(power: NDArray[np.float64], edges_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the power between each two edges; a bin of 1 Hz is shared by the bands that cut it."""
    bin_edges_hz = np.arange(len(power) + 1) - 0.5
    total = np.concatenate([[0.0], np.cumsum(power)])
    bels: NDArray[np.float64] = np.log10(np.diff(np.interp(edges_hz, bin_edges_hz, total)) + _FLOOR)
    return bels
