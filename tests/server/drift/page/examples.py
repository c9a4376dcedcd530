"""Drift reports as a fleet makes them, seeded: what a page and a terminal must be able to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from msgspec.structs import replace

from fleet_server.drift.findings import (
    Distribution,
    DriftReport,
    Effect,
    Population,
    Segment,
    Severity,
    SignalFinding,
    SignalKind,
    TimeCell,
    Verdict,
)
from fleet_server.drift.page import Making
from fleet_server.statistics.divergences import hellinger_squared, jsd, ks_distance, psi, smoothed, wasserstein_1

HOUR_NS = 3600 * 10**9
END_NS = 1_777_900_800 * 10**9  # 2026-05-04 13:20 UTC
ALPHA = 0.05
MADE = Making(
    made_at_ns=END_NS + 42 * 10**9,
    server="https://fleet.example.org",
    edgefleet="0.5.0",
    query="GET /api/v1/drift?model=digits&detail=true",
)
DIGITS = [str(digit) for digit in range(10)]


def number(
    name: str,
    *,
    shift: float = 0.0,
    hours: int = 24,
    since: int = 18,
    devices: int = 200,
    moved: int = 0,
    kind: SignalKind = SignalKind.FEATURE,
    skewed: bool = False,
    seed: int = 0,
) -> SignalFinding:
    """A number whose values moved by `shift` standard deviations from hour `since` on."""
    random = np.random.default_rng(seed)
    draw = random.lognormal if skewed else random.normal
    reference, seen = draw(0.0, 0.5, 20_000), draw(0.0, 0.5, 20_000) + shift * 0.5
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, 65)))
    expected_counts = np.histogram(reference, edges)[0]
    counts = np.histogram(np.clip(seen, edges[0], edges[-1]), edges)[0]
    is_drift = abs(shift) > 0.15
    first, second = smoothed(counts.astype(np.int64)), smoothed(expected_counts.astype(np.int64))
    p_value = 3.1e-7 if is_drift else float(random.uniform(0.1, 1))
    verdict = Verdict.DRIFT if is_drift else Verdict.NOT_FOUND
    said = (
        f"{name} moved by {shift:+.1f} \u03c3 on {moved} of {devices} devices at site=lisbon since 09:40."
        if is_drift
        else f"{name}: no drift was found on {devices} devices; a move of 0.05 \u03c3 would have shown."
    )
    return SignalFinding(
        signal=name,
        kind=kind,
        verdict=verdict,
        severity=Severity.HIGH if abs(shift) >= 0.8 else Severity.MEDIUM if is_drift else Severity.NONE,
        sentence=said,
        devices=devices,
        devices_left_out=3,
        devices_moved=moved if is_drift else 0,
        values=1_204_551,
        reference_values=20_000,
        beyond_reference=412,
        unusable=7 if is_drift else 0,
        p_value=p_value,
        adjusted_p_value=min(1.0, p_value * 12),
        e_value=4.1e4 if is_drift else 0.4,
        method="Dempster's test on device means of moment scores",
        effect=Effect(
            psi=psi(first, second),
            psi_p_value=2e-6 if is_drift else 0.4,
            jsd=jsd(first, second),
            hellinger=math.sqrt(hellinger_squared(first, second)),
            ks_distance=ks_distance(first, second),
            ks_p_value=1e-5 if is_drift else 0.61,
            wasserstein_1=wasserstein_1(first, second, edges),
            wasserstein_1_p_value=4e-5 if is_drift else 0.5,
            shift_sd=shift or float(random.normal(0, 0.02)),
            shift_rank=shift / 4,
            shift_interval=(shift / 4 - 0.02, shift / 4 + 0.02),
        ),
        onset_ns=END_NS - (hours - since) * HOUR_NS - HOUR_NS // 3 if is_drift else None,
        onset_earliest_ns=END_NS - (hours - since + 1) * HOUR_NS if is_drift else None,
        onset_latest_ns=END_NS - (hours - since) * HOUR_NS if is_drift else None,
        segments=[
            Segment(
                by="site", value="lisbon", devices=22, devices_moved=moved, p_value=2e-7, e_value=8e4, shift_sd=2.1
            ),
            Segment(by="cpu_signature", value="aarch64:neon", devices=90, devices_moved=9, p_value=1e-3, e_value=31.0),
        ]
        if is_drift
        else [],
        distribution=Distribution(
            seen=(counts / counts.sum()).tolist(),
            expected=(expected_counts / expected_counts.sum()).tolist(),
            edges=edges.tolist(),
        ),
        timeline=timeline(random, hours=hours, since=since, size=shift, devices=devices),
    )


def timeline(
    random: np.random.Generator,
    *,
    hours: int,
    since: int,
    size: float,
    devices: int,
    noise: float = 0.05,
    gap: tuple[int, int] = (5, 7),
) -> list[TimeCell]:
    """Hours of noise, moved by `size` from `since` on, without data within `gap`."""
    cells = []
    for hour in range(hours):
        if gap[0] <= hour < gap[1]:
            continue
        moved = size if hour >= since else 0.0
        away = abs(moved) / noise
        cells.append(
            TimeCell(
                start_ns=END_NS - (hours - hour) * HOUR_NS,
                devices=devices - hour % 5,
                size=moved + float(random.normal(0, noise)),
                p_value=1e-6 if away > 6 else float(random.uniform()),
            )
        )
    return cells


def classes(*, gone: int | None = None, labels: list[str] = DIGITS, seed: int = 1) -> SignalFinding:
    """Predicted classes; of class `gone` few are left."""
    random = np.random.default_rng(seed)
    expected = random.uniform(0.8, 1.2, len(labels))
    seen = expected * random.uniform(0.97, 1.03, len(labels))
    if gone is not None:
        seen[gone] *= 0.2
    expected, seen = expected / expected.sum(), seen / seen.sum()
    distance = math.sqrt(0.5 * float(((np.sqrt(seen) - np.sqrt(expected)) ** 2).sum()))
    is_drift = gone is not None
    return SignalFinding(
        signal="classes",
        kind=SignalKind.CLASSES,
        verdict=Verdict.DRIFT if is_drift else Verdict.NOT_FOUND,
        severity=Severity.LOW if is_drift else Severity.NONE,
        sentence=f"classes: {labels[gone]!r} is predicted a fifth as often."
        if gone is not None
        else "classes: as before.",
        devices=200,
        devices_moved=31 if is_drift else 0,
        values=1_204_551,
        reference_values=1_797,
        p_value=0.0008 if is_drift else 0.4,
        adjusted_p_value=0.0096 if is_drift else 1.0,
        e_value=24.0 if is_drift else 0.7,
        method="Dempster's test on device means of class shares",
        effect=Effect(hellinger=distance, jsd=distance**2, psi=8 * distance**2, psi_p_value=0.001),
        distribution=Distribution(seen=seen.tolist(), expected=expected.tolist(), labels=labels),
        timeline=timeline(random, hours=24, since=18, size=distance if is_drift else 0.0, devices=200, noise=0.008),
    )


def embedding(*, size: float = 0.0) -> SignalFinding:
    """Inputs as the model sees them."""
    random = np.random.default_rng(3)
    return SignalFinding(
        signal="embedding",
        kind=SignalKind.EMBEDDING,
        verdict=Verdict.DRIFT if size else Verdict.NOT_FOUND,
        severity=Severity.MEDIUM if size else Severity.NONE,
        sentence="embedding: inputs moved as the model sees them." if size else "embedding: no drift was found.",
        devices=200,
        devices_moved=40 if size else 0,
        values=602_112,
        reference_values=1_797,
        p_value=1e-5 if size else 0.6,
        adjusted_p_value=1.2e-4 if size else 1.0,
        e_value=900.0 if size else 0.6,
        method="MMD of random features, null law by its moments",
        effect=Effect(mmd=size or 0.011, mmd_p_value=1e-5 if size else 0.6),
        timeline=timeline(random, hours=24, since=18, size=size, devices=200, noise=0.01),
    )


def accuracies(*, loss: float) -> list[SignalFinding]:
    """Measured and estimated accuracy, lower by `loss` from hour 18 on."""
    return [
        SignalFinding(
            signal=kind.value,
            kind=kind,
            verdict=Verdict.DRIFT if loss else Verdict.NOT_FOUND,
            severity=Severity.HIGH if loss else Severity.NONE,
            sentence=f"{kind.value.replace('_', ' ')}: 0.97 before, {0.97 - loss:.2f} now.",
            devices=190,
            devices_moved=22 if loss else 0,
            values=3_120,
            p_value=1e-4 if loss else 0.5,
            adjusted_p_value=1e-3 if loss else 1.0,
            e_value=120.0 if loss else 0.8,
            method="mean of device accuracies",
            timeline=timeline(
                np.random.default_rng(7), hours=24, since=18, size=-loss, devices=190, noise=0.006, gap=gap
            ),
        )
        for kind, gap in ((SignalKind.ACCURACY, (3, 9)), (SignalKind.ESTIMATED_ACCURACY, (5, 7)))
    ]


def silent(name: str, kind: SignalKind = SignalKind.FEATURE) -> SignalFinding:
    """A signal that cannot be judged."""
    return SignalFinding(
        signal=name,
        kind=kind,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        severity=Severity.NONE,
        sentence=f"{name}: not enough evidence, 2 devices saw 20 values or more and 5 are needed.",
        devices=2,
        values=88,
        reference_values=20_000,
    )


def report(
    signals: list[SignalFinding], *, sentence: str, version: str = "1.4.0", model: str = "digits", hours: int = 24
) -> DriftReport:
    """A report of these signals, its verdict and severity the worst of theirs."""
    verdicts = {one.verdict for one in signals}
    verdict = (
        Verdict.DRIFT
        if Verdict.DRIFT in verdicts
        else Verdict.NOT_FOUND
        if verdicts == {Verdict.NOT_FOUND}
        else Verdict.NOT_ENOUGH_EVIDENCE
    )
    start_ns = END_NS - hours * HOUR_NS
    seen = Population(
        model=model, version=version, start_ns=start_ns, end_ns=END_NS, devices=200, windows=4_711, values=1_204_551
    )
    return DriftReport(
        model=model,
        version=version,
        start_ns=start_ns,
        end_ns=END_NS,
        windows=4_711,
        windows_truncated=False,
        alpha=ALPHA,
        verdict=verdict,
        severity=max((one.severity for one in signals), key=list(Severity).index, default=Severity.NONE),
        sentence=sentence,
        seen=seen,
        expected=Population(model=model, version=version, is_reference=True, values=20_000),
        signals=signals,
    )


def one_site() -> list[DriftReport]:
    """Brightness moved at one site; the rest of ten features stayed."""
    features = [
        number("contrast", seed=2),
        number("brightness", shift=0.8, moved=14, seed=3),
        number("ink", shift=-0.22, moved=6, seed=4, skewed=True),
        *(number(name, seed=10 + place) for place, name in enumerate(("width", "height", "slant", "sharpness"))),
        number("noise", skewed=True, seed=20),
    ]
    signals = [*features, classes(gone=4), number("score", kind=SignalKind.SCORE, seed=30), embedding(size=0.12)]
    sentence = (
        "digits 1.4.0: brightness moved by 0.8 \u03c3 on 14 of 200 devices at site=lisbon since 09:40; "
        "estimated accuracy 0.97 \u2192 0.91."
    )
    found = report([*signals, *accuracies(loss=0.06)], sentence=sentence)
    judged = replace(found, estimated_accuracy=0.91, expected_accuracy=0.97, read_from="device hours")
    return [replace(judged, devices_sampled_of=10_000, pairing="devices against the reference")]


def no_drift() -> list[DriftReport]:
    """Nothing moved."""
    signals = [number(name, seed=place) for place, name in enumerate(("contrast", "brightness", "ink"))]
    return [report([*signals, classes(), embedding()], sentence="digits 1.4.0: no drift was found in 5 signals.")]


def not_enough() -> list[DriftReport]:
    """Two devices, an hour: nothing can be said."""
    signals = [silent("contrast"), silent("brightness"), silent("classes", SignalKind.CLASSES)]
    found = report(
        signals, sentence="digits 1.4.0: not enough evidence: 2 devices were seen and 5 are needed.", hours=1
    )
    return [replace(found, seen=replace(found.seen, devices=2, windows=88, values=88), windows=88)]


@cache
def many_features() -> list[DriftReport]:
    """Sixty features with long names over two weeks, and a thousand classes."""
    names = [
        f"input_normalised_by_the_camera_pipeline/channel_{place:02d}/local_contrast_p{place}" for place in range(60)
    ]
    signals = [
        number(
            name,
            shift=0.5 if place in (7, 41) else 0.0,
            moved=9,
            hours=14 * 24,
            since=290,
            seed=place,
            skewed=place % 3 == 0,
        )
        for place, name in enumerate(names)
    ]
    many = classes(gone=500, labels=[f"class {place} of a vocabulary" for place in range(1000)])
    sentence = f"vision-quality-inspection-line-west 2.0.0-rc.11+build.20260504: {names[7]} and {names[41]} moved."
    name, version = "vision-quality-inspection-line-west", "2.0.0-rc.11+build.20260504"
    return [report([*signals, many], sentence=sentence, model=name, version=version, hours=14 * 24)]


def no_reference() -> list[DriftReport]:
    """A version whose bundle ships no reference."""
    found = report([], sentence="digits 1.4.0: not enough evidence, its bundle ships no reference to compare with.")
    return [replace(found, expected=replace(found.expected, values=0))]


def several_versions() -> list[DriftReport]:
    """Three versions, one of each verdict; the last against last week."""
    quiet = report([number("brightness")], sentence="digits 1.3.0: no drift was found in 1 signal.", version="1.3.0")
    week_ns = 7 * 24 * HOUR_NS
    before = replace(quiet.seen, start_ns=quiet.start_ns - week_ns, end_ns=quiet.end_ns - week_ns, same_hours=True)
    return [replace(quiet, expected=before), *not_enough(), *one_site()]


def hostile() -> list[DriftReport]:
    """Names that would break a page or a terminal."""
    name = "<script>alert('x')</script>\"&\u202e\x1b[2J"
    moved = replace(number("brightness", shift=1.0, moved=3), signal=name, sentence=f"{name} moved", method=name)
    named = replace(
        classes(gone=1, labels=[name, "b", "c"]), segments=[replace(moved.segments[0], by=name, value=name)]
    )
    return [report([moved, named], sentence=name, model=name, version=name)]


def nothing() -> list[DriftReport]:
    """No version sent anything."""
    return []


SHAPES: dict[str, Callable[[], list[DriftReport]]] = {
    "one_site": one_site,
    "no_drift": no_drift,
    "not_enough": not_enough,
    "many_features": many_features,
    "no_reference": no_reference,
    "several_versions": several_versions,
    "hostile": hostile,
    "nothing": nothing,
}
