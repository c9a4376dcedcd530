"""An application on a device: it hears a WAV file and says which keywords were spoken, and when.

    espeak-ng -v en-us -w yes.wav yes
    python examples/keywords/hear.py yes.wav

It listens as it would to a microphone: a second of sound, moved on by STEP_S, through the front end that the model was
trained with and the agent's in-process API. A second may hold only a part of a word, so a keyword counts when its
score, averaged over the last AVERAGED steps, reaches `--threshold`; then nothing counts for PAUSE_S, in which the same
word leaves the second that is heard. Any sample rate of 16-bit PCM is read; channels are averaged.
"""

from __future__ import annotations

import argparse
import sys
import wave
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent import Agent
from fleet_protocol.bundle_folder import file_path, read_manifest
from models.keywords.features import CLIP_SAMPLES, SAMPLE_RATE_HZ, Ear, from_pcm16

MODEL = "keywords"
BUNDLE = Path(__file__).parents[2] / "models" / "keywords" / "bundles" / "1.0.0"
STEP_S = 0.1
AVERAGED = 5
PAUSE_S = 0.8
NOT_WORDS = ("silence", "unknown")
MAX_FILE_S = 600.0


def read_wav(path: Path) -> NDArray[np.float32]:
    """The file's sound as amplitudes from -1 to 1 at 16 kHz, `[samples]`. Raises SystemExit, one line."""
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() != 2 or file.getnframes() > MAX_FILE_S * file.getframerate():
                raise SystemExit(f"{path} must be 16-bit PCM of at most {MAX_FILE_S:.0f} s: convert it first")
            pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, file.getnchannels())
            rate_hz = file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise SystemExit(f"cannot read {path} as a WAV file: {error}") from None
    return resampled(from_pcm16(pcm).mean(axis=1), rate_hz)


def resampled(audio: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """The sound at 16 kHz, without what 16 kHz cannot hold."""
    size = len(audio) * SAMPLE_RATE_HZ // rate_hz
    if rate_hz == SAMPLE_RATE_HZ or not size:
        return audio
    return (np.fft.irfft(np.fft.rfft(audio)[: size // 2 + 1], size) * (size / len(audio))).astype(np.float32)


def heard(agent: Agent, audio: NDArray[np.float32]) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """For each step, the end of its second in s and the classes' scores, averaged over the last steps."""
    ear, step, latest = Ear(), int(STEP_S * SAMPLE_RATE_HZ), deque[NDArray[np.float32]](maxlen=AVERAGED)
    around = CLIP_SAMPLES  # of silence, so that a word at either end is heard whole for long enough
    padded = np.pad(audio, around)
    for start in range(0, len(padded), step):
        ear.hear(padded[start : start + step])
        features = ear.features()
        if features is not None:
            latest.append(agent.infer(MODEL, {"features": features}).outputs["probabilities"][0])
            if len(latest) == AVERAGED:
                yield (start + step - around) / SAMPLE_RATE_HZ, np.mean(latest, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wav", type=Path, help="16-bit PCM")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the model's bundle")
    parser.add_argument("--threshold", type=float, default=0.6, help="the least score of a keyword")
    options = parser.parse_args()

    manifest = read_manifest(options.bundle)
    audio = read_wav(options.wav)
    quiet_until_s, found = 0.0, 0
    with Agent(models={MODEL: file_path(options.bundle, manifest.variants[0].file.sha256)}) as agent:
        for end_s, scores in heard(agent, audio):
            label, score = manifest.labels[int(scores.argmax())], float(scores.max())
            if label not in NOT_WORDS and score >= options.threshold and end_s >= quiet_until_s:
                print(f"{max(0.0, end_s - 1):5.1f} s to {end_s:.1f} s  {label:6} {score:.2f}")
                quiet_until_s, found = end_s + PAUSE_S, found + 1
    if not found:
        print("no keyword heard")
        sys.exit(1)


if __name__ == "__main__":
    main()
