"""The front end: 16 kHz audio to mel-frequency cepstral coefficients, with numpy alone. A device runs this very file.

It follows MLPerf Tiny's keyword benchmark, so that models of either side can be fed by it: frames of 30 ms every
20 ms, a periodic Hann window, the magnitude of a 512-point FFT, 40 mel bands from 20 to 4000 Hz, `log(mel + 1e-6)`,
and the first 10 coefficients of a DCT-II (formulas: TensorFlow's `tf.signal.linear_to_mel_weight_matrix` and
`tf.signal.mfccs_from_log_mel_spectrograms`). One second is 49 frames.

Invariants:
1. A frame depends on its own 480 samples alone: whole clips and any chunks of them give the same frames.
2. Nothing is scaled to the clip's loudness. Twice the amplitude adds 6.2 (8.94 ln 2) to coefficient 0 and changes no
   other, as long as the sound is well above the floor of 1e-6; loudness can therefore be watched. MLPerf Tiny's
   pipeline divides a clip by its maximum first: do so before this front end to feed its model.
3. It computes in float64, because a float32 FFT's rounding shows above that floor.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 480
STRIDE_SAMPLES = 320
FRAMES = 49
COEFFICIENTS = 10
MEL_BANDS = 40
LOWEST_HZ, HIGHEST_HZ = 20.0, 4000.0
FLOOR = 1e-6
"""What is added to a mel band before its logarithm."""
CLIP_SAMPLES = SAMPLE_RATE_HZ
"""The samples that a model hears at once: one second. The last 160 fill no frame."""

_FFT_SAMPLES = 512
_FULL_SCALE = 32_768.0

Frames = NDArray[np.float32]


def from_pcm16(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Samples of 16 bits as amplitudes from -1 to 1."""
    amplitudes: NDArray[np.float32] = (samples / _FULL_SCALE).astype(np.float32)
    return amplitudes


def frames_of(audio: ArrayLike) -> Frames:
    """The coefficients of every whole frame in `audio` `[samples]`: float32 `[frames, 10]`, `[0, 10]` when too short.

    Amplitudes are from -1 to 1. Raises ValueError for another number of dimensions.
    """
    return coefficients_of(log_mels_of(audio))


def log_mels_of(audio: ArrayLike) -> NDArray[np.float64]:
    """`log(mel + 1e-6)` of every whole frame in `audio` `[samples]`: float64 `[frames, 40]`. Raises ValueError."""
    amplitudes = np.asarray(audio, dtype=np.float64)
    if amplitudes.ndim != 1:
        raise ValueError(f"one channel of audio [samples] is needed, not {amplitudes.shape}: mix or pick a channel")
    if len(amplitudes) < WINDOW_SAMPLES:
        return np.empty((0, MEL_BANDS))
    windows = np.lib.stride_tricks.sliding_window_view(amplitudes, WINDOW_SAMPLES)[::STRIDE_SAMPLES]
    magnitudes = np.abs(np.fft.rfft(windows * _hann(), _FFT_SAMPLES))
    log_mels: NDArray[np.float64] = np.log(magnitudes @ _mel_weights() + FLOOR)
    return log_mels


def coefficients_of(log_mels: NDArray[Any]) -> Frames:
    """The cepstral coefficients float32 `[..., 10]` of logarithmic mel bands `[..., 40]`."""
    coefficients: Frames = (log_mels @ _cosines()).astype(np.float32)
    return coefficients


def features_of(clips: ArrayLike) -> NDArray[np.float32]:
    """The model's input for `clips` `[n, 16000]`: float32 `[n, 1, 49, 10]`. Raises ValueError for another length."""
    table = np.asarray(clips)
    if table.ndim != 2 or table.shape[1] != CLIP_SAMPLES:
        raise ValueError(f"clips of one second [n, {CLIP_SAMPLES}] are needed, not {table.shape}: cut or pad them")
    features = np.empty((len(table), 1, FRAMES, COEFFICIENTS), dtype=np.float32)
    for place, clip in enumerate(table):
        features[place, 0] = frames_of(clip)
    return features


class Ear:
    """Audio in chunks of any size to the model's input for the latest second. It keeps a second, not more."""

    def __init__(self) -> None:
        self._rest = np.empty(0, dtype=np.float64)
        self._frames: Frames = np.empty((0, COEFFICIENTS), dtype=np.float32)

    def hear(self, audio: ArrayLike) -> int:
        """Take the next samples `[samples]`, amplitudes from -1 to 1. Returns how many frames they completed."""
        self._rest = np.concatenate([self._rest, np.asarray(audio, dtype=np.float64)])
        fresh = frames_of(self._rest)
        self._rest = self._rest[len(fresh) * STRIDE_SAMPLES :]
        self._frames = np.concatenate([self._frames, fresh])[-FRAMES:]
        return len(fresh)

    def features(self) -> NDArray[np.float32] | None:
        """The model's input for the latest second, float32 `[1, 1, 49, 10]`; None before the first second is full."""
        return self._frames[None, None].copy() if len(self._frames) == FRAMES else None


@cache
def _hann() -> NDArray[np.float64]:
    """Periodic, as a spectrogram's: 0.5 - 0.5 cos(2 pi n / N)."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    return window


@cache
def _mel_weights() -> NDArray[np.float64]:
    """Triangles on the mel scale, 1127 ln(1 + f / 700), `[257, 40]`; the FFT's first bin counts in none."""
    bins = mel(np.linspace(0, SAMPLE_RATE_HZ / 2, _FFT_SAMPLES // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), MEL_BANDS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    return weights


def mel(frequency_hz: ArrayLike) -> NDArray[np.float64]:
    """The pitch in mel of a frequency in Hz."""
    pitch: NDArray[np.float64] = 1127.0 * np.log1p(np.asarray(frequency_hz) / 700.0)
    return pitch


@cache
def _cosines() -> NDArray[np.float64]:
    """The DCT-II as a matrix `[40, 10]`: 2 cos(pi k (2 n + 1) / 2N) / sqrt(2 N)."""
    angles = np.pi * np.outer(2 * np.arange(MEL_BANDS) + 1, np.arange(COEFFICIENTS)) / (2 * MEL_BANDS)
    cosines: NDArray[np.float64] = 2.0 * np.cos(angles) / np.sqrt(2.0 * MEL_BANDS)
    return cosines
