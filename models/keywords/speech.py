"""Speech from `espeak-ng`, and the rooms and noises it is heard in. The same arguments give the same samples.

What a device would hear in a second is made in this order: a word is spoken, trimmed and placed; the room answers;
noise joins at a signal-to-noise ratio; the whole is scaled to a peak and rounded to 16 bits.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.keywords.features import CLIP_SAMPLES, SAMPLE_RATE_HZ, from_pcm16

ESPEAK = "espeak-ng"
ESPEAK_RATE_HZ = 22_050
NOISES = ("white", "pink", "hum", "babble")

_WAV_HEADER_BYTES = 44
_SPEAK_TIMEOUT_S = 20.0
_RESAMPLE_BLOCK = 441  # 22,050 : 16,000 = 441 : 320
_TRIM = 0.02
_SILENT = 1e-3
_BABBLERS = 6
_PEAK_PCM = 32_767

Audio = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A text and how it is said: `voice` is espeak-ng's name, `rate` words a minute, `pitch` 0 to 99.

    `stretch` plays it slower by that factor, which lowers pitch and formants alike: another vocal tract.
    """

    text: str
    voice: str
    rate: int
    pitch: int
    stretch: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Room:
    """An exponentially decaying echo: its time to fall by 60 dB, and its energy beside the direct sound's."""

    decay_s: float
    echo_db: float


def espeak_version() -> str | None:
    """The version of `espeak-ng`, "1.51"; None where it is not installed."""
    if shutil.which(ESPEAK) is None:
        return None
    told = subprocess.run([ESPEAK, "--version"], capture_output=True, text=True, check=True, timeout=_SPEAK_TIMEOUT_S)
    return told.stdout.partition(":")[2].split()[0]


def speak(utterance: Utterance) -> Audio:
    """The word without the silence around it, 16 kHz, peak 1, `[samples]`; empty when the voice says nothing.

    Raises RuntimeError when espeak-ng is missing or fails.
    """
    command = [ESPEAK, "-v", utterance.voice, "-s", str(utterance.rate), "-p", str(utterance.pitch), "--stdout"]
    try:
        spoken = subprocess.run(
            [*command, "--", utterance.text], capture_output=True, check=True, timeout=_SPEAK_TIMEOUT_S
        )
    except FileNotFoundError:
        raise RuntimeError("espeak-ng makes the speech and is not installed: apt-get install espeak-ng") from None
    except subprocess.SubprocessError as error:
        raise RuntimeError(f"espeak-ng could not say {utterance.text!r} as {utterance.voice}: {error}") from error
    pcm = np.frombuffer(spoken.stdout[_WAV_HEADER_BYTES:], dtype="<i2")
    return _trimmed(_resampled(from_pcm16(pcm).astype(np.float64), utterance.stretch))


def placed(word: Audio, start: float) -> Audio:
    """A second that holds `word`, cut to a second, `start` (0 to 1) of the way into the room that it leaves."""
    clip, said = np.zeros(CLIP_SAMPLES), word[:CLIP_SAMPLES]
    first = int(start * (CLIP_SAMPLES - len(said)))
    clip[first : first + len(said)] = said
    return clip


def in_room(clip: Audio, room: Room, randomness: np.random.Generator) -> Audio:
    """The clip with the room's echo, the same length."""
    times_s = np.arange(int(room.decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    response = randomness.standard_normal(len(times_s)) * 10 ** (-3 * times_s / room.decay_s)
    response *= 10 ** (room.echo_db / 20) / np.sqrt(np.square(response).sum())
    response[0] += 1.0
    size = 1 << (len(clip) + len(response) - 2).bit_length()
    echoed: Audio = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(response, size), size)[: len(clip)]
    return echoed


def noise(kind: str, randomness: np.random.Generator, babble: Sequence[Audio]) -> Audio:
    """A second of noise of mean power 1. `babble` are the words that many voices say at once."""
    sound = _SOUNDS[kind](randomness, babble)
    power = np.square(sound).mean()
    steady: Audio = sound / np.sqrt(power) if power > 0 else sound
    return steady


def mixed(clip: Audio, noise_clip: Audio, *, word_power: float, snr_db: float) -> Audio:
    """The clip and noise of mean power 1, `snr_db` below the power of the word while it is spoken."""
    heard: Audio = clip + noise_clip * np.sqrt(word_power) * 10 ** (-snr_db / 20)
    return heard


def recorded(clip: Audio, *, peak_db: float) -> NDArray[np.float32]:
    """The clip with its peak `peak_db` below full scale, rounded to 16 bits, amplitudes from -1 to 1."""
    peak = np.abs(clip).max()
    scaled = clip * (10 ** (peak_db / 20) / peak) if peak > 0 else clip
    return from_pcm16(np.round(scaled * _PEAK_PCM).astype(np.int16))


def _resampled(audio: Audio, stretch: float) -> Audio:
    """Exact band-limited resampling of the whole clip in the frequency domain."""
    blocks = -(-len(audio) // _RESAMPLE_BLOCK)
    size = blocks * _RESAMPLE_BLOCK
    target = 2 * round(blocks * (SAMPLE_RATE_HZ * _RESAMPLE_BLOCK / ESPEAK_RATE_HZ) * stretch / 2)
    if not target:
        return np.zeros(0)
    spectrum = np.fft.rfft(np.pad(audio, (0, size - len(audio))))
    resampled: Audio = np.fft.irfft(spectrum[: target // 2 + 1], target) * (target / size)
    return resampled


def _trimmed(audio: Audio) -> Audio:
    peak = np.abs(audio).max(initial=0.0)
    if peak < _SILENT:
        return np.zeros(0)
    loud = np.flatnonzero(np.abs(audio) > _TRIM * peak)
    word: Audio = audio[loud[0] : loud[-1] + 1] / peak
    return word


def _white(randomness: np.random.Generator, _: Sequence[Audio]) -> Audio:
    return randomness.standard_normal(CLIP_SAMPLES)


def _pink(randomness: np.random.Generator, _: Sequence[Audio]) -> Audio:
    """Power falls with the frequency: 3 dB an octave."""
    spectrum = np.fft.rfft(randomness.standard_normal(CLIP_SAMPLES))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0.0
    pink: Audio = np.fft.irfft(spectrum, CLIP_SAMPLES)
    return pink


def _hum(randomness: np.random.Generator, _: Sequence[Audio]) -> Audio:
    """A mains hum of 50 or 60 Hz with its overtones, over a little white noise."""
    times_s, mains_hz = np.arange(CLIP_SAMPLES) / SAMPLE_RATE_HZ, randomness.choice([50.0, 60.0])
    hum = 0.05 * randomness.standard_normal(CLIP_SAMPLES)
    for overtone in range(1, 21):
        amplitude, phase = randomness.uniform(0.2, 1.0) / overtone, randomness.uniform(0, 2 * np.pi)
        hum += amplitude * np.sin(2 * np.pi * overtone * mains_hz * times_s + phase)
    return hum


def _babble(randomness: np.random.Generator, words: Sequence[Audio]) -> Audio:
    """Six voices that talk at once, at any moment of what they say."""
    sound = np.zeros(CLIP_SAMPLES)
    for _ in range(_BABBLERS):
        said = [words[place] for place in randomness.integers(len(words), size=8)]
        stream = np.concatenate(said)
        while len(stream) < CLIP_SAMPLES + 1:
            stream = np.concatenate([stream, stream])
        first = int(randomness.integers(len(stream) - CLIP_SAMPLES))
        sound += randomness.uniform(0.5, 1.0) * stream[first : first + CLIP_SAMPLES]
    return sound


_SOUNDS: dict[str, Callable[[np.random.Generator, Sequence[Audio]], Audio]] = {
    "white": _white,
    "pink": _pink,
    "hum": _hum,
    "babble": _babble,
}
