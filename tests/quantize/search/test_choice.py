"""What ships among measured candidates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantize.gate import is_accurate
from quantize.scheme import Form, Ranges, Scheme
from quantize.search.choice import fastest, is_faster, pareto_front, relative_latency
from quantize.search_report import CandidateResult, Status


def candidate(
    name: str,
    speedup: float | None,
    keeps: float | None,
    size: int = 1000,
    *,
    status: Status = Status.MEASURED,
    noise_db: float | None = None,
) -> CandidateResult:
    scheme = Scheme(form=Form.QDQ, operators=(name,), ranges=Ranges.MINMAX)
    return CandidateResult(
        name=name,
        status=status,
        reason="",
        scheme=scheme,
        speedup=speedup,
        keeps=keeps,
        size_bytes=size,
        signal_to_noise_db=noise_db,
    )


def test_a_drop_of_exactly_what_is_allowed_is_allowed_and_no_figure_is_not() -> None:
    assert is_accurate(0.995, 0.005)
    assert not is_accurate(0.9949, 0.005)
    assert not is_accurate(None, 1.0)
    assert is_accurate(1.2, 0.0)


def test_among_equal_speeds_the_nearest_outputs_are_preferred_and_then_the_smallest_file() -> None:
    quick = candidate("q", 1.50, 0.999, noise_db=20.0)
    sure = candidate("s", 1.48, 0.996, 900, noise_db=30.0)
    small = candidate("t", 1.48, 0.996, 800, noise_db=30.0)

    assert fastest([quick, sure, small]) == small
    assert fastest([quick, candidate("slow", 1.2, 1.0, noise_db=60.0)]) == quick
    assert fastest([candidate("failed", 9.0, 1.0, status=Status.FAILED)]) is None
    assert fastest([]) is None


def test_faster_means_by_more_than_measuring_noise() -> None:
    assert is_faster(candidate("a", 1.1, 1.0), candidate("b", 1.0, 1.0))
    assert not is_faster(candidate("a", 1.02, 1.0), candidate("b", 1.0, 1.0))
    assert not is_faster(candidate("failed", None, None), candidate("b", 1.0, 1.0))


points = st.tuples(st.floats(0.1, 10), st.floats(0.0, 1.0), st.integers(1, 5))


@given(st.lists(points, min_size=1, max_size=12))
def test_the_front_holds_exactly_what_nothing_beats(found: list[tuple[float, float, int]]) -> None:
    candidates = [candidate(str(place), *point) for place, point in enumerate(found)]
    front = pareto_front(candidates)

    def beats(one: CandidateResult, other: CandidateResult) -> bool:
        mine = (relative_latency(one), -(one.keeps or 0), one.size_bytes or 0)
        theirs = (relative_latency(other), -(other.keeps or 0), other.size_bytes or 0)
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    assert front == {one.key for one in candidates if not any(beats(other, one) for other in candidates)}
    assert front
