"""What is drawn of a number's distribution: areas are shares, outliers do not squeeze the rest, nothing is lost."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet_server.drift.findings import Distribution
from fleet_server.drift.page.densities import Steps, densities, quantile, unusable
from fleet_server.drift.page.distributions import MAX_CLASSES_SHOWN, ClassShare, classes_to_show, picture
from tests.server.drift.page import examples

WIDTHS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=64)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    widths = draw(WIDTHS)
    start = draw(st.floats(-1e3, 1e3))
    edges = [start]
    for width in widths:
        edges.append(max(edges[-1] + width, math.nextafter(edges[-1], math.inf)))
    shares = st.lists(st.floats(0, 1), min_size=len(widths), max_size=len(widths)).filter(lambda one: sum(one) > 1e-3)
    return Distribution(seen=draw(shares), expected=draw(shares), edges=edges)


def area(steps: Steps) -> float:
    widths = [second - first for first, second in pairwise(steps.edges)]
    return math.fsum(width * density for width, density in zip(widths, steps.densities, strict=True))


@given(distributions())
def test_what_is_drawn_and_what_lies_beyond_the_axis_is_everything(given_one: Distribution) -> None:
    assert not unusable(given_one)
    drawn = densities(given_one)
    assert given_one.edges[0] <= drawn.low < drawn.high <= given_one.edges[-1]
    assert drawn.top > 0
    for side in (drawn.seen, drawn.expected):
        assert list(side.edges) == sorted(set(side.edges))
        assert area(side) + side.below + side.above == pytest.approx(1, abs=1e-6)


def test_a_last_bin_that_reaches_far_does_not_squeeze_the_others() -> None:
    expected, moved = [0.11] * 9 + [0.01], [0.06] * 9 + [0.46]
    drawn = densities(Distribution(seen=moved, expected=expected, edges=[*map(float, range(10)), 5_000.0]))
    assert drawn.high < 15
    assert drawn.expected.above == pytest.approx(0.01, abs=0.001)
    assert drawn.seen.above == pytest.approx(0.46, abs=0.01)


def test_what_lies_far_beyond_the_axis_has_a_sign_in_the_picture() -> None:
    far = Distribution(seen=[0.06] * 9 + [0.46], expected=[0.11] * 9 + [0.01], edges=[*map(float, range(10)), 5e3])
    page = picture(replace(examples.number("far"), distribution=far), expected_name="the reference")
    assert page is not None
    assert "46\N{NO-BREAK SPACE}% of seen →" in page
    assert "← " not in page


def test_a_bin_as_thin_as_a_hair_is_no_tower() -> None:
    edges = [0.0, 0.5, 0.5 + 1e-9, 1.0]
    drawn = densities(Distribution(seen=[0.4, 0.2, 0.4], expected=[0.45, 0.1, 0.45], edges=edges))
    assert drawn.top < 10
    assert not drawn.is_cut


def test_a_spike_is_cut_off_and_said_to_be() -> None:
    shares = [0.05] * 10 + [0.5]
    edges = [*(place / 10 for place in range(11)), 1.02]
    drawn = densities(Distribution(seen=shares, expected=[1 / 11] * 11, edges=edges))
    assert drawn.is_cut
    assert max(drawn.seen.densities) > drawn.top


def test_a_quantile_is_found_within_its_bin() -> None:
    assert quantile([0.0, 1.0, 3.0], [0.5, 0.5], 0.25) == pytest.approx(0.5)
    assert quantile([0.0, 1.0, 3.0], [0.5, 0.5], 0.75) == pytest.approx(2.0)
    assert quantile([0.0, 1.0], [1.0], 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given_one", "why"),
    [
        (Distribution(seen=[], expected=[]), "0 cells"),
        (Distribution(seen=[1.0], expected=[0.5, 0.5]), "1 cells were seen and 2 expected"),
        (Distribution(seen=[1.0], expected=[0.0], edges=[0.0, 1.0]), "one side has no values"),
        (Distribution(seen=[math.nan], expected=[1.0], edges=[0.0, 1.0]), "not a number"),
        (Distribution(seen=[1.0], expected=[1.0], edges=[0.0]), "1 edges do not bound 1 bins"),
        (Distribution(seen=[1.0], expected=[1.0], edges=[1.0, 1.0]), "do not grow"),
        (Distribution(seen=[1.0], expected=[1.0], edges=[0.0, math.inf]), "infinity"),
        (Distribution(seen=[1.0], expected=[1.0], labels=[]), "0 names do not fit 1 classes"),
    ],
)
def test_what_cannot_be_drawn_is_told(given_one: Distribution, why: str) -> None:
    assert why in unusable(given_one)


def test_of_many_classes_those_that_differ_most_are_shown_in_their_own_order() -> None:
    shares = [ClassShare(label=str(place), seen=1 / 100, expected=1 / 100) for place in range(100)]
    shares[70] = ClassShare(label="70", seen=0.0, expected=0.01)
    shares[30] = ClassShare(label="30", seen=0.02, expected=0.01)
    shown, rest = classes_to_show(shares)
    labels = [one.label for one in shown]
    assert len(shown) == MAX_CLASSES_SHOWN
    assert {"30", "70"} <= set(labels)
    assert labels == sorted(labels, key=int)
    assert rest is not None
    assert math.fsum([rest.seen, *(one.seen for one in shown)]) == pytest.approx(1)
    assert classes_to_show(shares[:5]) == (shares[:5], None)
