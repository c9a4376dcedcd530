"""The committed keyword model: its front end, its data, its bundle, what its card says, and a word spoken just now."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent import Agent
from edge_agent.control.golden import check_golden, load_golden
from edge_agent.runtime.session import Model
from edge_agent.telemetry.features import check_extractor, extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.keywords import corpus, data, variation
from models.keywords.corpus import CLEAN_DB, EVAL_SNRS_DB, draw, hear
from models.keywords.data import HERE, PARTS, TRAINING_DATA_SHA256, part, read, stored
from models.keywords.features import CLIP_SAMPLES, SAMPLE_RATE_HZ, Ear, features_of, frames_of, log_mels_of
from models.keywords.recipe import MAX_DROP, VERSION, answers, watched
from models.keywords.speech import NOISES, Utterance, espeak_version, mixed, noise, placed, recorded, speak
from models.keywords.voices import HELD_OUT_WORDS, KEYWORDS, LABELS, SILENCE, TRAIN_WORDS, UNKNOWN, VARIANTS, Part
from tests.agent.runtime.onnx_files import mlperf_tiny

MAX_FILE_BYTES = 1_000_000
LEAST_ACCURACY = 0.85
MADE_WITH_ESPEAK = "1.51"
FLOOR = -123.56969
"""Coefficient 0 of digital silence: 40 bands of ln 1e-6, times 2 / sqrt(80)."""
NO_VARIATION = {
    "_TEMPO": (1.0, 1.0), "_MAX_SHIFT_FRAMES": 0.0, "_VOCAL_TRACT": (1.0, 1.0), "_TILT": (0.0,), "_GAIN_DB": (0.0, 0.0),
    "_NOISY": 0.0,
}  # fmt: skip
GOLDEN_TONE = [-45.8701, 5.8059, -15.9731, -3.1466, 6.3598, 4.0505, -4.1938, -4.4196, 0.5989, 2.2171]
"""A tone of 1000 Hz at half of full scale."""
ROOT = HERE.parents[1]


def needs_espeak() -> str:
    version = espeak_version()
    if version is None:
        pytest.skip("espeak-ng is not installed: no word can be spoken")
    return version


def tone(frequency_hz: float, amplitude: float) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(CLIP_SAMPLES) / SAMPLE_RATE_HZ)


def card_scores() -> dict[str, float]:
    """The model card's accuracies of the fp32 network by row."""
    rows = re.findall(r"^\| ([^|]+) \| [\d,]+ \| ([01]\.\d+) \|$", (HERE / "README.md").read_text(), re.MULTILINE)
    return {name: float(accuracy) for name, accuracy in rows}


def shipped() -> Path:
    """The ONNX file of the bundle's first variant."""
    return file_path(VERSION.bundle, read_manifest(VERSION.bundle).variants[0].file.sha256)


# the front end


def test_digital_silence_is_the_floor_in_coefficient_0_and_nothing_elsewhere() -> None:
    frames = frames_of(np.zeros(CLIP_SAMPLES))

    assert frames.shape == (49, 10)
    np.testing.assert_allclose(frames[:, 0], FLOOR, atol=1e-3)
    np.testing.assert_allclose(frames[:, 1:], 0.0, atol=1e-3)


def test_a_tone_has_the_coefficients_that_were_recorded_once() -> None:
    frames = frames_of(tone(1000.0, 0.5))

    np.testing.assert_allclose(frames[0], GOLDEN_TONE, atol=2e-3)
    np.testing.assert_allclose(frames, np.tile(frames[0], (49, 1)), atol=2e-3)  # 20 ms are 20 whole periods


def test_a_tone_falls_into_the_mel_bands_around_its_frequency() -> None:
    """The definition once more, by another way: a sum of squares over a direct Fourier transform."""
    window = np.hanning(481)[:480]
    sound = tone(1000.0, 0.5)[:480] * window
    bins_hz = np.arange(257) * SAMPLE_RATE_HZ / 512
    magnitudes = np.abs(np.exp(-2j * np.pi * np.outer(bins_hz / SAMPLE_RATE_HZ, np.arange(480))) @ sound)

    def mel(hz: float) -> float:
        return 2595.0 * float(np.log10(1 + hz / 700.0))

    edges = [mel(20.0) + (mel(4000.0) - mel(20.0)) * step / 41 for step in range(42)]
    bands = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        weights = [max(0.0, min((mel(f) - low) / (middle - low), (high - mel(f)) / (high - middle))) for f in bins_hz]
        bands.append(float(np.dot(weights, magnitudes)))
    logs = np.log(np.array(bands) + 1e-6)
    places = 2 * np.arange(40) + 1
    expected = [2 * (logs * np.cos(np.pi * k * places / 80)).sum() / np.sqrt(80) for k in range(10)]

    np.testing.assert_allclose(frames_of(tone(1000.0, 0.5))[0], expected, atol=0.05)


def test_twice_the_amplitude_moves_coefficient_0_alone() -> None:
    loud = np.random.default_rng(1).normal(size=CLIP_SAMPLES)

    difference = frames_of(2 * loud) - frames_of(loud)

    np.testing.assert_allclose(difference[:, 0], 80 / np.sqrt(80) * np.log(2), atol=1e-3)
    np.testing.assert_allclose(difference[:, 1:], 0.0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=12))
def test_audio_in_chunks_of_any_size_gives_the_frames_of_the_whole(sizes: list[int]) -> None:
    audio = np.random.default_rng(2).normal(scale=0.1, size=40_000)
    ear, start, frames = Ear(), 0, 0
    for size in [*sizes, len(audio)]:
        frames += ear.hear(audio[start : start + size])
        start += size

    whole = frames_of(audio)

    assert frames == len(whole)
    heard = ear.features()
    assert heard is not None
    np.testing.assert_allclose(heard[0, 0], whole[-49:], atol=1e-4)


def test_an_ear_answers_only_when_it_heard_a_second() -> None:
    ear = Ear()
    assert ear.features() is None
    ear.hear(np.zeros(15_839))
    assert ear.features() is None
    ear.hear(np.zeros(1))

    features = ear.features()

    assert features is not None
    assert features.shape == (1, 1, 49, 10)


def test_audio_of_a_wrong_form_is_refused() -> None:
    with pytest.raises(ValueError, match="one channel"):
        frames_of(np.zeros((2, CLIP_SAMPLES)))
    with pytest.raises(ValueError, match="one second"):
        features_of(np.zeros((3, 8000)))
    assert frames_of(np.zeros(479)).shape == (0, 10)


def test_mlperf_tinys_model_of_peoples_speech_recognises_most_words_through_this_front_end() -> None:
    session = ort.InferenceSession(str(mlperf_tiny("kws.onnx")), providers=["CPUExecutionProvider"])
    clean = part("clean")
    scores = session.run(None, {"input_1": clean.inputs["features"].reshape(-1, 49, 10, 1)})[0]

    assert clean.labels is not None
    right = (scores.argmax(axis=1) == clean.labels).mean()

    assert right > 0.5  # by chance 0.08


# the data


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_the_samples_it_was_committed_with(name: str) -> None:
    samples, heard = part(name), read(name)

    assert samples.inputs["features"].shape == (PARTS[name].count, 1, 49, 10)
    assert samples.inputs["features"].dtype == np.float32
    assert np.bincount(heard.labels).tolist() == [PARTS[name].count // 12] * 12
    if name != "reference":
        assert set(heard.snr_db.tolist()) == ({CLEAN_DB} if PARTS[name].clean else set(EVAL_SNRS_DB))
    assert heard.held_out.any() == (name != "reference")
    assert set(heard.labels[heard.held_out].tolist()) <= {UNKNOWN}


def test_a_part_that_is_not_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.PARTS, "clean", replace(PARTS["clean"], file=PARTS["calibration"].file))

    with pytest.raises(RuntimeError, match="not the part that the scores were measured on"):
        part("clean")


def test_no_voice_speaks_in_two_parts_and_related_voices_stay_together() -> None:
    def family(variant: str) -> str:
        return variant if re.fullmatch(r"[fm]\d", variant) else variant.rstrip("0123456789")

    speakers = {name: {family(variant) for variant in variants} for name, variants in VARIANTS.items()}

    assert set(speakers) == set(Part)
    assert sum(map(len, speakers.values())) == len(set().union(*speakers.values()))
    drawn = {name: {draw(name, place).utterance for place in range(600)} for name in Part}
    for name, utterances in drawn.items():
        said = {utterance.voice.partition("+")[2] for utterance in utterances if utterance is not None}
        assert said == set(VARIANTS[name])


def test_a_second_varied_by_nothing_is_the_second_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = np.random.default_rng(5).normal(scale=3.0, size=(4, 49, 40)).astype(np.float32)
    for name, nothing in NO_VARIATION.items():
        monkeypatch.setattr(variation, name, nothing)

    varied = variation.varied(seconds, seconds, np.random.default_rng(6))

    np.testing.assert_allclose(varied, seconds, atol=1e-4)


def test_a_shorter_vocal_tract_moves_a_tone_up_by_its_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, nothing in (NO_VARIATION | {"_VOCAL_TRACT": (0.9, 0.9)}).items():
        monkeypatch.setattr(variation, name, nothing)
    low, high = (log_mels_of(tone(hz, 0.5))[None].astype(np.float32) for hz in (1350.0, 1500.0))

    moved = variation.varied(low, low, np.random.default_rng(7))

    assert moved[0, 0].argmax() == high[0, 0].argmax() != low[0, 0].argmax()


def test_training_hears_none_of_the_words_held_out_for_scores() -> None:
    assert not set(TRAIN_WORDS) & set(HELD_OUT_WORDS)
    assert not set(KEYWORDS) & {word for text in TRAIN_WORDS + HELD_OUT_WORDS for word in text.split()}
    assert not any(draw(Part.TRAIN, place).held_out for place in range(UNKNOWN, 6000, 12))


def test_a_scene_depends_on_its_place_alone() -> None:
    forwards = [draw(Part.FINAL, place) for place in range(40)]
    backwards = [draw(Part.FINAL, place) for place in reversed(range(40))]

    assert forwards == backwards[::-1]
    assert len({str(scene) for scene in forwards}) == 40


@pytest.mark.parametrize("kind", NOISES)
def test_noise_joins_a_word_at_the_ratio_that_was_asked_for(kind: str) -> None:
    randomness = np.random.default_rng(3)
    babble = [randomness.normal(size=3000) for _ in range(9)]
    word = np.sin(np.arange(6000) / 5)
    clip = placed(word, 0.3)

    sound = noise(kind, randomness, babble)
    heard = mixed(clip, sound, word_power=float(np.square(word).mean()), snr_db=5.0)

    ratio = np.square(word).mean() / np.square(heard - clip).mean()
    assert 10 * np.log10(ratio) == pytest.approx(5.0, abs=0.01)


def test_what_is_recorded_is_16_bits_at_the_peak_that_was_asked_for() -> None:
    clip = recorded(np.random.default_rng(4).normal(size=CLIP_SAMPLES), peak_db=-20.0)

    assert np.abs(clip).max() == pytest.approx(0.1, abs=1e-4)
    np.testing.assert_array_equal(clip * 32_768, np.round(clip * 32_768))


def test_the_committed_seconds_can_be_spoken_again() -> None:
    if (version := needs_espeak()) != MADE_WITH_ESPEAK:
        pytest.skip(f"the parts were made with espeak-ng {MADE_WITH_ESPEAK}; this is {version}")
    committed = read("final")

    again = features_of(np.stack([hear(Part.FINAL, place) for place in range(24)]))[:, 0]

    with np.load(PARTS["final"].path, allow_pickle=False) as archive:
        difference = stored(again).astype(int) - archive["features"][:24]
    assert np.abs(difference).max() <= 1  # another CPU may round a last bit otherwise
    assert (difference != 0).mean() < 1e-3
    assert [draw(Part.FINAL, place).label for place in range(24)] == committed.labels[:24].tolist()


def test_speech_without_espeak_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert espeak_version() is None
    with pytest.raises(RuntimeError, match="apt-get install espeak-ng"):
        speak(Utterance(text="yes", voice="en-us", rate=160, pitch=50))


def test_the_cache_is_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_espeak()
    monkeypatch.setenv(corpus.CACHE_VARIABLE, str(tmp_path))

    made = corpus.heard(Part.CALIBRATION, 12)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again = corpus.heard(Part.CALIBRATION, 12)

    assert file.stat().st_mtime_ns == before
    np.testing.assert_array_equal(made.log_mels, again.log_mels)
    assert made.labels.tolist() == list(range(12))


# the model


def test_all_committed_files_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert max(sizes.values()) < MAX_FILE_BYTES
    assert VERSION.fp32.stat().st_size < 400_000


def test_every_file_of_the_bundle_has_its_digest() -> None:
    manifest = read_manifest(VERSION.bundle)

    for artifact in manifest.artifacts():
        content = file_path(VERSION.bundle, artifact.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
    files = {path.name for path in VERSION.bundle.rglob("*") if path.is_file()}
    assert {artifact.sha256 for artifact in manifest.artifacts()} <= files


def test_the_manifest_says_all_a_device_and_a_server_need() -> None:
    manifest = read_manifest(VERSION.bundle)

    assert (manifest.model, manifest.version, manifest.task) == ("keywords", "1.0.0", "classification")
    assert manifest.labels == list(LABELS)
    assert manifest.inputs == [TensorSpec(name="features", datatype="FP32", shape=[-1, 1, 49, 10])]
    assert manifest.outputs == [TensorSpec(name="probabilities", datatype="FP32", shape=[-1, 12])]
    assert [(feature.name, feature.extractor, feature.parameters) for feature in manifest.features] == [
        (feature.name, feature.extractor, feature.parameters) for feature in watched()
    ]
    assert manifest.lineage.training_data_sha256 == TRAINING_DATA_SHA256
    assert manifest.lineage.calibration_data_sha256
    assert manifest.licence
    assert manifest.description


def test_the_reference_distributions_are_those_of_training_speech() -> None:
    manifest, reference = read_manifest(VERSION.bundle), part("reference").inputs

    for feature in manifest.features:
        check_extractor(feature, manifest.inputs)
        sketch = BinSketch(feature.edges)
        sketch.record_many(extract(feature, reference))
        assert sketch.bins.tolist() == feature.counts
        assert not sketch.outside.any()


def test_a_device_accepts_the_golden_vectors() -> None:
    manifest = read_manifest(VERSION.bundle)

    for variant in manifest.variants:
        inputs, expected = load_golden(file_path(VERSION.bundle, manifest.golden.sha256), variant.name)
        check_golden(Model.load(file_path(VERSION.bundle, variant.file.sha256)), inputs, expected, variant)


def test_every_variant_answers_the_holdout_as_the_card_and_the_manifest_promise() -> None:
    labels, features = read("final").labels, part("final").inputs["features"]
    told = card_scores()["all"]

    assert (answers(VERSION.fp32, features) == labels).mean() == pytest.approx(told, abs=0.001)
    for variant in read_manifest(VERSION.bundle).variants:
        measured = (answers(file_path(VERSION.bundle, variant.file.sha256), features) == labels).mean()
        assert measured == pytest.approx(variant.expected["accuracy"], abs=0.005)
        assert measured >= told * (1 - 2 * MAX_DROP)  # it was chosen on the selection part; this is another
    assert told >= LEAST_ACCURACY


def test_the_card_tells_the_scores_by_noise() -> None:
    heard, told = read("final"), card_scores()
    right = answers(VERSION.fp32, part("final").inputs["features"]) == heard.labels

    for snr_db in EVAL_SNRS_DB:
        row = told["no noise" if snr_db == CLEAN_DB else f"{snr_db} dB"]
        assert right[heard.snr_db == snr_db].mean() == pytest.approx(row, abs=0.003)
    assert right[heard.held_out].mean() == pytest.approx(told["unknown words that it never heard"], abs=0.01)


def test_a_microphone_that_lost_most_of_its_gain_shows_in_the_watched_features() -> None:
    clean = part("clean").inputs["features"]
    quiet = clean.copy()
    quiet[..., 0] += 80 / np.sqrt(80) * np.log(0.05)
    loudness = next(feature for feature in read_manifest(VERSION.bundle).features if feature.name == "loudness")

    shift = extract(loudness, {"features": clean}).mean() - extract(loudness, {"features": quiet}).mean()

    assert shift == pytest.approx(80 / np.sqrt(80) * np.log(20) / 10, rel=1e-3)


@pytest.mark.parametrize("word", ["yes", "stop", "left"])
def test_a_word_spoken_just_now_is_recognised_by_the_agent(word: str) -> None:
    needs_espeak()
    ear = Ear()
    voice = f"en-gb+{VARIANTS[Part.FINAL][0]}"
    clip = recorded(placed(speak(Utterance(text=word, voice=voice, rate=150, pitch=45)), 0.4), peak_db=-6.0)
    for chunk in np.array_split(clip, 37):
        ear.hear(chunk)

    features = ear.features()
    assert features is not None
    with Agent(models={"keywords": shipped()}) as agent:
        prediction = agent.infer("keywords", {"features": features})

    assert LABELS[int(prediction.outputs["probabilities"].argmax())] == word


def test_silence_is_silence_to_the_agent() -> None:
    with Agent(models={"keywords": shipped()}) as agent:
        prediction = agent.infer("keywords", {"features": features_of(np.zeros((1, CLIP_SAMPLES)))})

    assert prediction.outputs["probabilities"].argmax() == SILENCE


def test_the_example_hears_the_words_of_a_file_in_their_order(tmp_path: Path) -> None:
    needs_espeak()
    wav = tmp_path / "words.wav"
    subprocess.run(["espeak-ng", "-v", "en-us+f2", "-g", "120", "-w", wav, "yes. stop."], check=True, timeout=20)

    hearing = subprocess.run(
        [sys.executable, ROOT / "examples" / "keywords" / "hear.py", wav],
        check=True, capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip

    assert [line.split()[-2] for line in hearing.stdout.splitlines()] == ["yes", "stop"]
