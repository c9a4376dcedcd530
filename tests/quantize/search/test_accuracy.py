"""Accuracy that int8 took is given back by the layers that took it, and by no others."""

from __future__ import annotations

import numpy as np

from quantize.data import Samples
from quantize.evaluation import signal_to_noise_db
from quantize.gate import is_accurate
from quantize.scheme import Form, Integer, Ranges, Scheme
from quantize.search.accuracy import remedied, remedies, restore, sensitivities
from quantize.search_report import CandidateResult
from tests.quantize.networks import half_fragile_classifier
from tests.quantize.search.conftest import MakeBench

INT8 = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, per_channel=True)


def is_good(result: CandidateResult) -> bool:
    return is_accurate(result.keeps, 0.005)


def samples() -> tuple[bytes, Samples]:
    model, arrays = half_fragile_classifier()
    return model, Samples(inputs={"x": arrays["x"]}, labels=arrays["labels"])


def test_the_most_harmful_layer_is_ranked_first(make_bench: MakeBench) -> None:
    bench = make_bench(*samples())

    ranking = sensitivities(bench, INT8)

    assert ranking[0].layer == bench.prepared.layers[0].name
    assert ranking[0].keeps < 0.9
    assert all(one.keeps > 0.99 for one in ranking[1:])


def test_only_the_layers_that_do_harm_go_back_to_float(make_bench: MakeBench) -> None:
    bench = make_bench(*samples())
    before = bench.evaluate(INT8, by="test")

    after = restore(bench, INT8, sensitivities(bench, INT8), is_good=is_good, step="test")

    assert not is_good(before)
    assert after is not None
    assert is_good(after)
    assert bench.prepared.layers[0].name in after.scheme.excluded
    weighty = [layer.name for layer in bench.prepared.layers if layer.weights]
    assert not set(weighty[1:]) <= set(after.scheme.excluded)


def test_nothing_is_restored_when_only_float_would_do(make_bench: MakeBench) -> None:
    bench = make_bench(*samples())

    assert restore(bench, INT8, sensitivities(bench, INT8), is_good=lambda _: False, step="test") is None


def test_remedies_never_change_what_the_scheme_has_already() -> None:
    everything = Scheme(
        form=Form.QDQ, activations=Integer.U8, weights=Integer.S8, ranges=Ranges.ENTROPY,
        bias_corrected=True, equalised=True,
    )  # fmt: skip

    assert list(remedies(everything)) == []
    assert list(remedies(Scheme(form=Form.DYNAMIC))) == []
    seven = Scheme(form=Form.QDQ, activations=Integer.U8, weights=Integer.S7)
    assert any(one.weights is Integer.S8 for one in remedies(seven))


def test_the_best_remedy_is_at_least_as_good_as_none(make_bench: MakeBench) -> None:
    bench = make_bench(*samples())
    start = bench.evaluate(INT8, by="test")

    best = remedied(bench, start, is_good=lambda _: False, step="test")

    assert (best.signal_to_noise_db or 0) >= (start.signal_to_noise_db or 0)
    assert len(bench.tried) > 3


def test_signal_to_noise_is_in_decibels() -> None:
    clean = {"y": np.array([[3.0, 4.0]]), "label": np.array([1])}

    assert signal_to_noise_db(clean, {"y": np.array([[3.0, 4.5]]), "label": np.array([0])}) == 20.0
    assert signal_to_noise_db(clean, clean) == 200.0
