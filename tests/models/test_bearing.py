"""The bearing model: its physics, its front end, the committed holdout and bundle, and what the model card says."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.control.golden import check_golden, load_golden
from edge_agent.runtime.session import Model
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.bearing.data import FINAL, HOLDOUT, PLANS, SELECTION, TRAIN, Vibration, holdout
from models.bearing.features import BANDS, RATE_HZ, SAMPLES, SHAFT_1X, anomaly_score, front_end
from models.bearing.machine import Bearing, machine
from models.bearing.recipe import FEATURES, HERE, RECIPE
from models.bearing.scores import auc, by_fault, scored, variants
from models.bearing.vibration import FAULTS, SEVERITIES, Fault, record

MAX_FILE_BYTES = 1_000_000
HOLDOUT_SHA256 = "0252dfff4a3d13393d2032769cee73077de4459d6ca29d1d3cba50af5112b2f5"
MACHINES_SHA256 = "c96f34db10bd7db097ba725464004fcfa9970528f6b7270152bae60d64f55241"
RHYTHM = slice(128, 384)


@pytest.fixture(scope="module")
def heard() -> Vibration:
    return holdout()


@pytest.fixture(scope="module")
def fp32_scores(heard: Vibration) -> NDArray[np.float64]:
    return scored(RECIPE.fp32.read_bytes(), heard.spectra)


def sine(*, amplitude: float, frequency_hz: float) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(SAMPLES) / RATE_HZ)
    return wave


def card_row(name: str) -> list[float]:
    """The numbers of the model card's last row of that name, without intervals."""
    rows = re.findall(rf"^\| {name} \|(.+)\|$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert rows, f"the card has no row {name}"
    return [float(figure) for figure in re.findall(r"\d\.\d{3}", re.sub(r"\[.*?\]", "", rows[-1]))]


# the physics


def test_the_characteristic_orders_are_those_published_for_the_6205_bearing() -> None:
    # Case Western Reserve University's bearing data centre, drive end: SKF 6205-2RS, 9 balls, 0.3126 in on 1.537 in
    bearing = Bearing(elements=9, diameter_ratio=0.3126 / 1.537, contact_rad=0.0)

    assert bearing.inner_order == pytest.approx(5.4152, abs=5e-4)
    assert bearing.outer_order == pytest.approx(3.5848, abs=5e-4)
    assert bearing.cage_order == pytest.approx(0.39828, abs=5e-5)
    assert 2 * bearing.ball_order == pytest.approx(4.7135, abs=5e-4)


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        (Fault.OUTER, lambda bearing: bearing.outer_order),
        (Fault.INNER, lambda bearing: bearing.inner_order),
        (Fault.CAGE, lambda bearing: bearing.cage_order),
    ],
)
@pytest.mark.parametrize("number", [PLANS[SELECTION].machines[0], PLANS[SELECTION].machines[1]])
def test_a_severe_defect_shows_in_the_rhythm_at_its_own_order(
    fault: Fault, order: Callable[[Bearing], float], number: int
) -> None:
    subject = machine(number)
    sick, healthy = record(subject, 0, fault, 3), record(subject, 0)

    rise = (front_end(sick.signal, sick.speed_hz) - front_end(healthy.signal, healthy.speed_hz))[RHYTHM].reshape(2, -1)

    band = round((order(subject.bearing) - 0.25) / 0.125)
    assert rise.max(axis=0)[max(band - 1, 0) : band + 2].max() > 0.5


def test_a_record_is_the_same_every_time_and_each_fault_changes_it() -> None:
    subject = machine(1)
    healthy = record(subject, 5)

    np.testing.assert_array_equal(record(subject, 5).signal, healthy.signal)
    assert healthy.signal.shape == (SAMPLES,)
    for fault in FAULTS:
        louder = [np.abs(record(subject, 5, fault, severity).signal - healthy.signal).max() for severity in SEVERITIES]
        assert 0 < louder[0] < louder[1] < louder[2]


def test_machines_are_unequal_and_each_is_the_same_every_time() -> None:
    assert machine(7) == machine(7)
    assert len({machine(number).bearing for number in range(20)}) == 20


# the parts


def test_no_machine_is_in_two_parts() -> None:
    for one, other in combinations(PLANS.values(), 2):
        assert not set(one.machines) & set(other.machines)


def test_training_and_calibration_have_healthy_machines_alone_and_the_others_every_fault() -> None:
    assert [name for name, plan in PLANS.items() if plan.faulty] == [SELECTION, FINAL]


def test_the_machines_are_the_pinned_ones() -> None:
    digest = hashlib.sha256()
    for plan in PLANS.values():
        for number in plan.machines:
            drawn = machine(number)
            digest.update(f"{number} {drawn.nominal_hz:.9g} {drawn.bearing.elements} {drawn.friction:.9g}\n".encode())

    assert digest.hexdigest() == MACHINES_SHA256


def test_the_holdout_is_the_pinned_one_and_of_the_final_machines(heard: Vibration) -> None:
    assert hashlib.sha256(HOLDOUT.read_bytes()).hexdigest() == HOLDOUT_SHA256
    assert set(heard.machines.tolist()) == set(PLANS[FINAL].machines)
    assert heard.spectra.shape == (672, BANDS)
    assert (heard.labels == 0).sum() == 384
    for place in range(1, len(FAULTS) + 1):
        for severity in SEVERITIES:
            assert ((heard.faults == place) & (heard.severities == severity)).sum() == len(PLANS[FINAL].machines)


def test_simulating_again_gives_the_holdout(heard: Vibration) -> None:
    kinds = tuple(Fault)
    rows = np.flatnonzero(heard.machines == PLANS[FINAL].machines[3])
    subject = machine(PLANS[FINAL].machines[3])

    for index in (0, 23, 24, 29, 32, 35, 38, 41):
        place = rows[index]
        again = record(subject, index, kinds[heard.faults[place]], int(heard.severities[place]))
        difference = np.abs(front_end(again.signal, again.speed_hz) - heard.spectra[place])
        # another CPU's last bit may round a value to the next step
        assert difference.max() <= 2 / 256
        assert (difference > 0).mean() < 0.01


# the front end


def test_a_sine_at_the_shafts_speed_has_its_power_in_the_first_harmonics_band() -> None:
    spectrum = front_end(sine(amplitude=2.0, frequency_hz=32.0), 32.0)

    assert spectrum.dtype == np.float32
    assert spectrum.shape == (BANDS,)
    # half of log10(a^2 / 2), to the nearest 1/256
    assert spectrum[SHAFT_1X] == round(0.5 * np.log10(2.0) * 256) / 256
    assert spectrum[:128].argmax() == SHAFT_1X


def test_silence_is_the_floor() -> None:
    spectrum = front_end(np.zeros(SAMPLES), 25.0)

    assert (spectrum[RHYTHM] == -8).all()
    assert (spectrum[:128] == -4).all()
    assert (spectrum[384:] == -4).all()


def test_the_front_end_has_not_changed_on_a_known_record() -> None:
    time_s = np.arange(SAMPLES) / RATE_HZ
    wave = np.sin(2 * np.pi * 2_000 * time_s) * (1 + 0.5 * np.cos(2 * np.pi * 75 * time_s)) + 0.01 * np.cos(
        2 * np.pi * 5_000 * time_s
    )

    spectrum = front_end(wave, 25.0)

    # the envelope beats at 75 Hz, order 3: band (3 - 0.25) / 0.125 = 22 of the first envelope, and its double
    assert spectrum[128:256].argmax() == 22
    # (1 + c/2)^2 has a cosine of amplitude 1 at 75 Hz and one of 1/8 at 150 Hz; its mean is 1.125
    assert spectrum[128 + 22] == pytest.approx(np.log10((1 / 1.125) ** 2 / 2), abs=0.01)
    assert spectrum[128 + 46] == pytest.approx(np.log10((0.125 / 1.125) ** 2 / 2), abs=0.01)


def test_a_sensor_of_twice_the_gain_changes_loudness_and_not_rhythm() -> None:
    heard_once = record(machine(2), 0)

    quiet, loud = (front_end(gain * heard_once.signal, heard_once.speed_hz) for gain in (1.0, 2.0))

    np.testing.assert_allclose(loud[RHYTHM], quiet[RHYTHM], atol=1 / 256)
    np.testing.assert_allclose(loud[384:] - quiet[384:], 0.5 * np.log10(4.0), atol=2 / 256)


def test_a_single_knock_leaves_the_rhythm_recognisable() -> None:
    heard_once = record(machine(3), 1)
    knocked = heard_once.signal.copy()
    knocked[10_000:10_040] += 10.0 * np.exp(-np.arange(40) / 10) * np.sin(np.arange(40))

    calm, struck = (front_end(signal, heard_once.speed_hz)[RHYTHM] for signal in (heard_once.signal, knocked))

    assert np.abs(struck - calm).mean() < 0.2


def test_every_value_survives_a_float16(heard: Vibration) -> None:
    spoken = record(machine(4), 0, Fault.INNER, 3)
    spectrum = front_end(spoken.signal, spoken.speed_hz)

    np.testing.assert_array_equal(spectrum.astype(np.float16).astype(np.float32), spectrum)
    np.testing.assert_array_equal(heard.spectra, np.round(heard.spectra * 256) / 256)


@pytest.mark.parametrize(
    ("signal", "speed_hz", "says"),
    [
        (np.zeros(SAMPLES - 1), 25.0, "two seconds"),
        (np.zeros((1, SAMPLES)), 25.0, "two seconds"),
        (np.full(SAMPLES, np.nan), 25.0, "finite"),
        (np.zeros(SAMPLES), 0.0, "above 0"),
        (np.zeros(SAMPLES), float("nan"), "above 0"),
        (np.zeros(SAMPLES), 101.0, "at most 100"),
    ],
)
def test_the_front_end_refuses_what_it_cannot_read(signal: NDArray[Any], speed_hz: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        front_end(signal, speed_hz)


# the bundle


def test_every_committed_file_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert all(size < MAX_FILE_BYTES for size in sizes.values()), sizes


def test_every_file_of_the_bundle_has_its_digest() -> None:
    for artifact in read_manifest(RECIPE.bundle).artifacts():
        content = file_path(RECIPE.bundle, artifact.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
        assert len(content) == artifact.size_bytes


def test_the_manifest_says_all_a_device_and_a_server_need() -> None:
    manifest = read_manifest(RECIPE.bundle)

    assert (manifest.model, manifest.version, manifest.task) == ("bearing", "1.0.0", "anomaly")
    assert manifest.inputs == [TensorSpec(name="spectrum", datatype="FP32", shape=[-1, BANDS])]
    assert manifest.outputs == [TensorSpec(name="reconstruction", datatype="FP32", shape=[-1, BANDS])]
    assert [feature.name for feature in manifest.features] == [feature.name for feature in FEATURES]
    trained = len(PLANS[TRAIN].machines) * PLANS[TRAIN].healthy
    assert all(sum(feature.counts) == trained for feature in manifest.features)
    assert manifest.lineage.training_data_sha256
    assert manifest.lineage.calibration_data_sha256
    assert not manifest.classes
    assert manifest.licence
    assert manifest.description


def test_a_device_accepts_the_golden_vectors() -> None:
    manifest = read_manifest(RECIPE.bundle)
    here = [one for one in manifest.variants if not one.architectures or platform.machine() in one.architectures]

    assert here
    for variant in here:
        inputs, expected = load_golden(file_path(RECIPE.bundle, manifest.golden.sha256), variant.name)
        check_golden(Model.load(file_path(RECIPE.bundle, variant.file.sha256)), inputs, expected, variant)


def test_every_variant_keeps_its_promise_on_the_holdout(heard: Vibration) -> None:
    promised = {one.name: one.expected["auc"] for one in read_manifest(RECIPE.bundle).variants}

    for name, content in variants().items():
        assert auc(scored(content, heard.spectra), heard.labels > 0) == pytest.approx(promised[name], abs=0.005)


def test_the_model_card_tells_the_auc_of_each_fault_and_of_everything(
    heard: Vibration, fp32_scores: NDArray[np.float64]
) -> None:
    for fault, figures in by_fault(fp32_scores, heard).items():
        assert card_row(fault) == pytest.approx(figures, abs=0.002)
    assert card_row("the autoencoder") == pytest.approx([auc(fp32_scores, heard.labels > 0)], abs=0.001)


def test_the_model_finds_bearing_defects_and_a_shuffled_truth_finds_nothing(
    heard: Vibration, fp32_scores: NDArray[np.float64]
) -> None:
    severe = (heard.severities == 3) & (heard.faults <= len(FAULTS) - 2)
    chosen = severe | (heard.faults == 0)

    assert auc(fp32_scores[chosen], severe[chosen]) > 0.97
    shuffled = np.random.default_rng(1).permutation(heard.labels > 0)
    assert auc(fp32_scores, shuffled) == pytest.approx(0.5, abs=0.06)


def test_the_anomaly_score_is_the_mean_squared_error() -> None:
    spectrum = np.zeros((2, BANDS), dtype=np.float32)
    reconstruction = spectrum.copy()
    reconstruction[1, :4] = 2.0

    np.testing.assert_allclose(anomaly_score(reconstruction, spectrum), [0.0, 16 / BANDS])


def test_the_model_cards_example_runs_and_scores_a_broken_bearing_higher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parents[1])
    block = re.search(r"```python\n(.+?)```", Path(HERE, "README.md").read_text(), re.DOTALL)
    assert block is not None
    scores = []
    for fault, severity in ((Fault.NONE, 0), (Fault.OUTER, 3)):
        spoken = record(machine(PLANS[FINAL].machines[0]), 0, fault, severity)
        names: dict[str, Any] = {"two_seconds": spoken.signal, "speed_hz": spoken.speed_hz}
        exec(block[1], names)  # noqa: S102 - the card's own example
        scores.append(float(names["score"][0]))

    assert scores[1] > 2 * scores[0]
