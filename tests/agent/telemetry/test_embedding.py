"""Embedding sums in windows: whole numbers of the samples that were counted, of an input or of an output."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.telemetry.random_features import random_features, whole_sums
from edge_agent.telemetry.series import Series
from fleet_protocol.embedding_sums import FEATURE_SCALE, decode_sums
from fleet_protocol.manifest import RandomFeatureReference
from fleet_protocol.messages import OutboxStatus, Resources, Window
from tests.agent.telemetry.device import KEY, Device, X, manifest

RANDOMNESS = np.random.default_rng(11)


def reference(tensor: str = "x", features: int = 64) -> RandomFeatureReference:
    return RandomFeatureReference(tensor=tensor, seed=3, bandwidth=2.0, count=1, sums=[0.0] * features)


def closed(series: Series) -> Window:
    made = series.close_window(start_ns=1, end_ns=2, resources=Resources(), outbox=OutboxStatus())
    return made(device="d1", boot_id="00000001-0000abcd", sequence=1)


def test_whole_sums_are_the_cosines_in_sixteenths_rounded_sample_by_sample() -> None:
    x = RANDOMNESS.normal(size=(50, 12)).astype(np.float32)

    count, sums = whole_sums(reference(), x)

    cosines = random_features(reference(), x) / np.sqrt(2.0 / 64)
    assert count == 50
    assert sums.dtype == np.int64
    assert np.abs(sums - np.rint(FEATURE_SCALE * cosines).sum(axis=0)).max() <= 2  # halves, after another scaling
    np.testing.assert_array_equal(sums, sum(whole_sums(reference(), one[None])[1] for one in x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_with_a_broken_number_is_left_out_whole(bad: float) -> None:
    x = RANDOMNESS.normal(size=(3, 400)).astype(np.float32)
    expected = whole_sums(reference(), x[[0, 2]])
    x[1, 7] = bad

    count, sums = whole_sums(reference(), x)

    assert count == expected[0] == 2
    np.testing.assert_array_equal(sums, expected[1])


def test_a_window_holds_the_sums_of_its_samples_and_the_next_begins_at_nothing(device: Device) -> None:
    serving = device.put_to_work()
    serving.series.watch((), None, embedding=reference())
    for _ in range(5):
        device.path.infer("m", X)

    [window], [empty] = device.closed(), device.closed()

    assert window.embedding_count == 5
    np.testing.assert_array_equal(
        decode_sums(window.embedding_sums), 5 * whole_sums(reference(), np.asarray(X["x"]))[1]
    )
    assert (empty.embedding_count, empty.embedding_sums) == (0, b"")


def test_an_output_that_the_manifest_names_is_the_embedding(device: Device) -> None:
    device.put_to_work()
    named = manifest()
    changed = type(named)(**{
        **{name: getattr(named, name) for name in named.__struct_fields__}, "random_features": reference("scores")
    })  # fmt: skip
    series = device.recorder.serve(KEY, changed)
    assert series.needs_outputs

    answer = device.path.infer("m", X)
    output = next(iter(answer.outputs))
    device.closed()
    series.watch((), None, embedding=reference(output), embedding_is_output=True)
    for _ in range(3):
        device.path.infer("m", X)

    [window] = device.closed()
    assert window.embedding_count == 3
    np.testing.assert_array_equal(
        decode_sums(window.embedding_sums), 3 * whole_sums(reference(output), answer.outputs[output])[1]
    )


def test_a_tensor_that_a_call_does_not_have_is_not_summed(device: Device) -> None:
    serving = device.put_to_work()
    serving.series.watch((), None, embedding=reference("absent"))
    device.path.infer("m", X)

    [window] = device.closed()
    assert (window.count, window.embedding_count) == (1, 0)


def test_samples_absorbed_together_count_as_they_do_one_by_one() -> None:
    features = tuple(manifest(features=2).features)
    one_by_one, at_once = Series(KEY, features), Series(KEY, features)
    x = RANDOMNESS.uniform(0, 4, size=(20, 3)).astype(np.float32)
    for series in (one_by_one, at_once):
        series.watch(features, None, embedding=reference())
    for row in x:
        one_by_one.absorb_inputs({"x": row[None]})
    at_once.absorb_inputs({"x": x})

    single, batch = closed(one_by_one), closed(at_once)
    assert single.features == batch.features
    assert single.embedding_count == batch.embedding_count == 20
    apart = np.abs(decode_sums(single.embedding_sums) - decode_sums(batch.embedding_sums))
    assert apart.max() <= 1  # a product of matrices may round otherwise than one of a vector
