"""Merged windows are the sums of their windows, whatever order these come in and however often."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet_protocol.embedding_sums import decode_sums, encode_sums
from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS, LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement, Window
from fleet_protocol.varint import MAX_COUNT, decode_sparse, encode_sparse
from fleet_server.telemetry_store import group_sums
from fleet_server.telemetry_store import merge as merging
from fleet_server.telemetry_store._stored import pack, unpack_merged
from fleet_server.telemetry_store.device_count import K
from fleet_server.telemetry_store.merge import merge, regroup
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.port import MAX_INT64
from fleet_server.telemetry_store.sketches import BIN_PLACES, MAX_WINDOW_COUNT, decode_sums_many
from tests.server.telemetry_store.windows import MINUTE_NS, T0_NS, latency_of, window

HOUR_NS = 60 * MINUTE_NS


def bins_of(*counts: int) -> bytes:
    return encode_sparse(np.array([*counts, *[0] * (BIN_PLACES - len(counts))]))


def sums_of(*values: int) -> bytes:
    return encode_sums(np.array(values))


def cohort_of(device: str) -> str:
    return "" if device.endswith("0") else f"cohort-{device[-1]}"


_counts = st.integers(0, 2**40)
_bins = st.lists(_counts, max_size=6).map(lambda counts: bins_of(*counts)) | st.binary(max_size=6)
_floats = st.floats(0, 1e6)
_windows = st.lists(
    st.builds(
        window,
        device=st.sampled_from(["dev-0", "dev-1", "dev-2"]),
        sequence=st.integers(1, 2**50),
        version=st.sampled_from(["1.0.0", "1.1.0"]),
        arm=st.sampled_from(["main", "b"]),
        end_ns=st.integers(T0_NS - 2 * HOUR_NS, T0_NS),
        count=_counts,
        errors=st.dictionaries(st.sampled_from("abc"), _counts, max_size=2),
        latency=st.lists(st.floats(0.1, 1e9), max_size=5).map(lambda values: latency_of(*values))
        | st.binary(max_size=6),
        queue_wait=st.lists(st.floats(0.1, 1e9), max_size=3).map(lambda values: latency_of(*values)),
        batch_sizes=st.dictionaries(st.integers(1, 4), _counts, max_size=2),
        features=st.dictionaries(st.sampled_from(["mean", "std", ""]), _bins, max_size=3),
        classes=st.dictionaries(st.integers(0, 3), _counts, max_size=2),
        score=_bins,
        embedding_count=st.integers(1, 9),
        embedding_sums=st.lists(st.integers(-(2**30), 2**30), min_size=3, max_size=3).map(lambda v: sums_of(*v)),
        shadow=st.none() | st.builds(ShadowAgreement, compared=_counts, disagreed=_counts),
        outcomes=st.none()
        | st.builds(Outcomes, correct=_counts, wrong=_counts, squared_error_sum=_floats, squared_error_count=_counts),
        estimated_accuracy=st.none()
        | st.builds(EstimatedAccuracy, count=_counts, confidence_sum=_floats, variance_sum=_floats),
    ),
    max_size=12,
    unique_by=lambda one: (one.device, one.sequence),
)


def _dense(blob: bytes, places: int) -> np.ndarray[Any, Any] | None:
    try:
        found = decode_sparse(blob, places)
    except SketchError:
        return None
    return None if found.size and found.max() > MAX_WINDOW_COUNT else found


def _by_hand(windows: list[Window], grain: Grain) -> list[dict[str, Any]]:
    """The same sums, the slow and plain way."""
    groups: dict[Any, list[Window]] = defaultdict(list)
    for one in windows:
        device = one.device if grain is Grain.DEVICE_HOUR else ""
        cohort = "" if grain is Grain.DEVICE_HOUR else cohort_of(one.device)
        start_ns = one.end_ns // grain.span_ns * grain.span_ns
        start_ns -= grain.span_ns if start_ns == one.end_ns else 0
        groups[start_ns, one.model, one.version, one.variant, one.arm, device, cohort].append(one)
    answer = []
    for key, found in sorted(groups.items()):
        sums: dict[str, Any] = {"key": key, "windows": len(found), "devices": len({one.device for one in found})}
        sums["count"] = sum(one.count for one in found)
        sums["ends"] = min(one.end_ns for one in found), max(one.end_ns for one in found)
        for name in ("errors", "batch_sizes", "classes"):
            total: Counter[Any] = Counter()
            for one in found:
                total.update(getattr(one, name))
            sums[name] = dict(total)
        refused = 0
        for name in ("latency", "queue_wait"):
            dense = [_dense(getattr(one, name), BUCKETS) for one in found]
            refused += sum(one is None for one in dense)
            sums[name] = encode_sparse(
                sum((one for one in dense if one is not None), np.zeros(BUCKETS, dtype=np.int64))
            )
        named: dict[str | None, Any] = {}
        sketches: list[tuple[str | None, bytes]] = [
            (name, blob) for one in found for name, blob in one.features.items()
        ]
        for of, blob in [*sketches, *((None, one.score) for one in found if one.score)]:
            dense_bins = _dense(blob, BIN_PLACES)
            refused += dense_bins is None
            before = named.setdefault(of, np.zeros(BIN_PLACES, dtype=np.int64))
            named[of] = before if dense_bins is None else before + dense_bins
        sums["score"] = encode_sparse(named.pop(None)) if None in named else b""
        sums["features"] = {of: encode_sparse(total) for of, total in named.items()}
        sums["embedding"] = (
            sum(one.embedding_count for one in found),
            encode_sums(np.sum([decode_sums(one.embedding_sums) for one in found], axis=0)),
        )
        sums["refused"] = refused
        known = [one.outcomes for one in found if one.outcomes]
        counted = [one for one in known if one.squared_error_count]
        sums["outcomes"] = known and (
            sum(one.correct for one in known),
            sum(one.wrong for one in known),
            math.fsum(one.squared_error_sum for one in counted),
            sum(one.squared_error_count for one in counted),
        )
        estimates = [one.estimated_accuracy for one in found if one.estimated_accuracy and one.estimated_accuracy.count]
        sums["estimate"] = estimates and (
            sum(one.count for one in estimates),
            math.fsum(one.confidence_sum for one in estimates),
            math.fsum(one.variance_sum for one in estimates),
        )
        shadows = [one.shadow for one in found if one.shadow]
        sums["shadow"] = shadows and (sum(one.compared for one in shadows), sum(one.disagreed for one in shadows))
        answer.append(sums)
    return answer


def _told(one: MergedWindow) -> dict[str, Any]:
    key, known, estimate, shadow = one.key, one.outcomes, one.estimated_accuracy, one.shadow
    return {
        "key": (one.start_ns, key.model, key.version, key.variant, key.arm, key.device, key.cohort),
        "windows": one.windows,
        "devices": one.devices,
        "count": one.count,
        "ends": (one.first_end_ns, one.last_end_ns),
        "errors": one.errors,
        "batch_sizes": one.batch_sizes,
        "classes": one.classes,
        "latency": one.latency,
        "queue_wait": one.queue_wait,
        "score": one.score,
        "features": one.features,
        "embedding": (one.embedding_count, one.embedding_sums),
        "refused": one.refused,
        "outcomes": (known and (known.correct, known.wrong, known.squared_error_sum, known.squared_error_count)) or [],
        "estimate": (estimate and (estimate.count, estimate.confidence_sum, estimate.variance_sum)) or [],
        "shadow": (shadow and (shadow.compared, shadow.disagreed)) or [],
    }


@given(_windows, st.sampled_from(Grain))
def test_merged_windows_equal_sums_by_hand(windows: list[Window], grain: Grain) -> None:
    assert [_told(one) for one in merge(windows, grain, cohort_of)] == _by_hand(windows, grain)


@given(_windows, st.sampled_from(Grain), st.randoms(use_true_random=False))
def test_the_order_of_windows_and_their_repeats_change_no_byte(
    windows: list[Window], grain: Grain, rng: random.Random
) -> None:
    expected = [pack(one) for one in merge(windows, grain, cohort_of)]
    again = windows + rng.choices(windows, k=len(windows)) if windows else []
    rng.shuffle(again)
    assert [pack(one) for one in merge(again, grain, cohort_of)] == expected
    assert [pack(unpack_merged(blob, "memory")) for blob in expected] == expected


def _without_float_bits(one: MergedWindow) -> MergedWindow:
    """Floats to ten digits: those of merged windows were rounded once more."""
    known, estimate = one.outcomes, one.estimated_accuracy
    if known:
        known = replace(known, squared_error_sum=float(f"{known.squared_error_sum:.9e}"))
    if estimate:
        estimate = replace(
            estimate,
            confidence_sum=float(f"{estimate.confidence_sum:.9e}"),
            variance_sum=float(f"{estimate.variance_sum:.9e}"),
        )
    return replace(one, outcomes=known, estimated_accuracy=estimate)


@given(_windows, st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_merging_parts_and_then_the_parts_equals_merging_all(windows: list[Window], parts: list[int]) -> None:
    in_parts = [
        merge([one for one, of in zip(windows, parts, strict=False) if of == part], Grain.FLEET_MINUTE, cohort_of)
        for part in range(3)
    ]
    a, b, c = in_parts
    for grain in (Grain.FLEET_MINUTE, Grain.FLEET_HOUR):
        all_at_once = [_without_float_bits(one) for one in merge(windows, grain, cohort_of)]
        left = regroup([*regroup([*a, *b], _same, grain.span_ns), *c], _same, grain.span_ns)
        right = regroup([*regroup([*c, *b], _same, grain.span_ns), *a], _same, grain.span_ns)
        for grouped in (left, right):
            assert [_without_float_bits(one) for one in grouped] == all_at_once


def _same(key: MergedKey) -> MergedKey:
    return key


@given(_windows)
def test_device_hours_put_together_equal_the_hours_of_the_fleet(windows: list[Window]) -> None:
    def of_fleet(key: MergedKey) -> MergedKey:
        return replace(key, device="", cohort="all")

    grouped = regroup(merge(windows, Grain.DEVICE_HOUR, cohort_of), of_fleet, HOUR_NS)
    straight = merge(windows, Grain.FLEET_HOUR, lambda _: "all")
    assert [_without_float_bits(one) for one in grouped] == [_without_float_bits(one) for one in straight]


def test_chunks_of_windows_sum_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [
        window(
            device=f"dev-{n % 3}", sequence=n, end_ns=T0_NS - n, features={"mean": bins_of(n, 1)},
            embedding_count=1, embedding_sums=sums_of(n, -n),
        )
        for n in range(1, 50)
    ]  # fmt: skip  # as one call reads
    whole = merge(windows, Grain.DEVICE_HOUR, cohort_of)
    monkeypatch.setattr(merging, "_PENDING_PARTS", 4)
    monkeypatch.setattr("fleet_server.telemetry_store.sketch_sums._PENDING_CELLS", 3)
    assert merge(windows, Grain.DEVICE_HOUR, cohort_of) == whole
    monkeypatch.setattr(merging, "_PENDING_BYTES", 1)
    assert merge(windows, Grain.DEVICE_HOUR, cohort_of) == whole
    assert decode_sums(whole[0].embedding_sums).tolist() == [sum(range(3, 50, 3)), -sum(range(3, 50, 3))]


def test_a_window_belongs_to_the_span_that_it_ends_in_and_not_to_the_one_that_begins_there() -> None:
    ends = (T0_NS - 1, T0_NS, T0_NS + 1)
    merged = merge([window(sequence=n + 1, end_ns=end) for n, end in enumerate(ends)], Grain.FLEET_MINUTE, cohort_of)
    assert [(one.start_ns, one.windows) for one in merged] == [(T0_NS - MINUTE_NS, 2), (T0_NS, 1)]


def test_a_sketch_that_cannot_be_read_costs_itself_and_nothing_else() -> None:
    good = window(
        sequence=1, features={"mean": bins_of(5)}, score=bins_of(1), embedding_count=2, embedding_sums=sums_of(7)
    )
    torn = window(
        sequence=2, features={"mean": b"\x80", "std": bins_of(3)}, latency=b"\x00", queue_wait=b"\x00\x00",
        score=bins_of(2), embedding_count=4, embedding_sums=b"\xff",
    )  # fmt: skip  # as one call reads
    too_wide = window(
        sequence=3, features={"mean": encode_sparse(np.eye(1, BIN_PLACES + 1, BIN_PLACES, dtype=np.int64)[0])}
    )
    (merged,) = merge([good, torn, too_wide], Grain.FLEET_MINUTE, cohort_of)
    assert merged.refused == 5
    assert merged.windows == 3
    assert merged.features == {"mean": bins_of(5), "std": bins_of(3)}
    assert merged.score == bins_of(3)
    assert LatencyHistogram.from_bytes(merged.latency).count == 6
    assert (merged.embedding_count, decode_sums(merged.embedding_sums).tolist()) == (2, [7])


@pytest.mark.parametrize("together", [1, 100])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_of_embedding_sums_of_several_widths_the_widest_are_kept(
    order: tuple[int, ...], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_PENDING_PARTS", together)
    windows = [
        window(sequence=1, embedding_count=1, embedding_sums=sums_of(1, 2)),
        window(sequence=2, embedding_count=1, embedding_sums=sums_of(5)),
        window(sequence=3, embedding_count=2, embedding_sums=sums_of(10, 20)),
        window(sequence=4, embedding_count=3),
    ]
    (merged,) = merge([windows[n] for n in order], Grain.FLEET_MINUTE, cohort_of)
    assert (merged.embedding_count, decode_sums(merged.embedding_sums).tolist(), merged.refused) == (3, [11, 22], 2)


def test_no_count_wraps_around_whatever_devices_claim() -> None:
    huge = [
        window(
            sequence=n, count=MAX_INT64, errors={"x": MAX_INT64}, classes={1: MAX_INT64}, batch_sizes={1: MAX_INT64},
            latency=encode_sparse(np.full(BUCKETS, MAX_WINDOW_COUNT)), features={"mean": bins_of(MAX_WINDOW_COUNT)},
            outcomes=Outcomes(correct=MAX_INT64, squared_error_sum=1e308, squared_error_count=1),
            estimated_accuracy=EstimatedAccuracy(count=1, confidence_sum=math.inf),
            shadow=ShadowAgreement(compared=MAX_INT64),
        )
        for n in range(1, 301)
    ]  # fmt: skip  # as one call reads
    (merged,) = merge(huge, Grain.FLEET_MINUTE, cohort_of)
    assert merged.count == merged.errors["x"] == merged.classes[1] == merged.batch_sizes[1] == MAX_INT64
    assert decode_sparse(merged.latency, BUCKETS).tolist() == [MAX_COUNT] * BUCKETS
    assert decode_sparse(merged.features["mean"], BIN_PLACES)[0] == MAX_COUNT
    assert merged.outcomes is not None
    assert (merged.outcomes.correct, merged.outcomes.squared_error_count) == (MAX_INT64, 0)
    assert merged.estimated_accuracy is None
    assert merged.refused == 600
    (twice,) = regroup([merged, replace(merged, start_ns=merged.start_ns + MINUTE_NS)], _same, HOUR_NS)
    assert decode_sparse(twice.latency, BUCKETS).tolist() == [MAX_COUNT] * BUCKETS
    unpack_merged(pack(twice), "memory")


@pytest.mark.parametrize("is_reversed", [False, True])
def test_of_too_many_names_the_first_in_order_are_kept_whichever_came_first(
    is_reversed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MAX_FEATURES", 2)
    for name in ("MAX_ERROR_KINDS", "MAX_CLASSES", "MAX_BATCH_SIZES"):
        monkeypatch.setattr(group_sums, name, 2)
    windows = [
        window(
            sequence=n + 1,
            errors={name: 1},
            classes={n: 1},
            features={name: bins_of(1), "aa": b"\x80"},
            score=bins_of(1),
        )
        for n, name in enumerate("abcdefgh")
    ]
    (merged,) = merge(windows[::-1] if is_reversed else windows, Grain.FLEET_MINUTE, cohort_of)
    assert merged.errors == {"a": 1, "b": 1, "other": 6}
    assert merged.classes == {0: 1, 1: 1}
    assert merged.features == {"a": bins_of(1), "aa": b""}
    assert merged.score == bins_of(8)
    assert merged.refused == 8 + 7 + 1  # torn ones, features without a place, classes


def test_devices_are_counted_once_however_often_they_report() -> None:
    many = 4 * K
    minutes = [
        merged
        for minute in range(3)
        for merged in merge(
            [window(device=f"dev-{n}", end_ns=T0_NS + minute * MINUTE_NS) for n in range(many)], Grain.FLEET_MINUTE, str
        )
    ]
    few = [one for one in minutes if int(one.key.cohort.removeprefix("dev-")) < K - 1]
    assert regroup(few, lambda key: replace(key, cohort=""), HOUR_NS)[0].devices == K - 1
    (all_of_them,) = regroup(minutes, lambda key: replace(key, cohort=""), HOUR_NS)
    assert all_of_them.devices == many  # every part still knew all of its devices
    by_minute = regroup(minutes, lambda key: replace(key, cohort=""), MINUTE_NS)
    (estimated,) = regroup(by_minute, _same, HOUR_NS)
    assert estimated.devices == pytest.approx(many, rel=0.15)
    assert estimated.devices >= max(one.devices for one in by_minute)
    assert regroup([estimated], _same, HOUR_NS) == [estimated]


@given(
    st.lists(
        st.lists(st.integers(-(2**40), 2**40), max_size=4).map(lambda v: sums_of(*v)) | st.binary(max_size=12),
        max_size=8,
    )
)
def test_embedding_sums_decoded_together_equal_each_decoded_alone(blobs: list[bytes]) -> None:
    together = decode_sums_many(blobs)
    for at, blob in enumerate(blobs):
        try:
            alone = decode_sums(blob).tolist()
        except SketchError:
            assert at in together.refused
            continue
        assert at not in together.refused
        first = together.starts[at]
        assert together.values[first : first + together.widths[at]].tolist() == alone


def test_sums_of_floats_are_exact_whatever_their_order() -> None:
    values = [1e16, 1.0, 1.0, 3.0, 1e-3, 0.1, 1e16, 7e-9]
    for rotated in range(len(values)):
        in_order = values[rotated:] + values[:rotated]
        (merged,) = merge(
            [
                window(sequence=n, estimated_accuracy=EstimatedAccuracy(count=1, confidence_sum=value))
                for n, value in enumerate(in_order, 1)
            ],
            Grain.FLEET_MINUTE,
            cohort_of,
        )
        assert merged.estimated_accuracy is not None
        assert merged.estimated_accuracy.confidence_sum == math.fsum(values)
