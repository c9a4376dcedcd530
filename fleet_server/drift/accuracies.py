"""The two accuracies of a population: by outcomes, and as the calibrated confidence has it. Pure.

Estimated accuracy is the mean calibrated confidence of each device; it is held against that of the reference's own
scores, so that a calibration which is off is off on both sides. Its test is Welch's t on device means, with the
reference's sampling error beside the devices'. It is blind to concept drift: when the same inputs come to mean
something else, the model stays as sure as before. Only outcomes see that.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy.stats import t as student_t

from fleet_server.drift import evidence
from fleet_server.drift.evidence import e_value_of
from fleet_server.drift.findings import Severity, SignalFinding, SignalKind, Verdict
from fleet_server.drift.pairing import Judged, Pairing, choose_sides, lacking_units
from fleet_server.drift.signals import ACCURACY, ESTIMATED_ACCURACY, Matrix
from fleet_server.drift.tallies import Tally

METHOD = "device means of the calibrated confidence, Welch's t"
_NO_ERROR = 1e-12


def estimated_accuracy_of(tally: Tally) -> tuple[float, float] | None:
    """(mean over devices of the mean confidence, its standard error), None without any."""
    totals, sums = tally.sums_by_unit(tally.estimates)
    there = totals > 0
    if not there.any():
        return None
    means, own = sums[there, 0] / totals[there], sums[there, 1] / totals[there] ** 2
    if len(means) < 2:
        return float(means[0]), float(own[0] ** 0.5)
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5)


def judge_estimated_accuracy(seen: Tally, expected: Tally | None, pairing: Pairing) -> Judged | None:
    """Devices' mean confidence against the reference's or against devices'; None where none was sent."""
    totals, sums = seen.sums_by_unit(seen.estimates)
    if not totals.any():
        return None
    others = expected.sums_by_unit(expected.estimates) if expected is not None else None
    reference = seen.reference.estimated_accuracy
    sides = choose_sides(totals, others[0] if others else None, seen=seen, expected=expected, pairing=pairing)
    own = sums[sides.seen, 0] / totals[sides.seen]
    finding = _finding(ESTIMATED_ACCURACY, SignalKind.ESTIMATED_ACCURACY, len(own), int(totals[sides.seen].sum()))
    finding = msgspec.structs.replace(finding, devices_left_out=sides.left_out)
    lacking = lacking_units(sides, values=int(totals.sum()), pairing=pairing)
    if not lacking and others is None and reference is None:
        lacking = "the bundle ships no calibrated confidence of its reference"
    if lacking:
        return Judged(finding=finding, lacking=lacking)
    if others is None:
        assert reference is not None  # noqa: S101 - said to be lacking above
        values = max(seen.reference.values, 1)
        baseline, error = np.full(len(own), reference), reference * (1 - reference) / values
        p_value = _t_test(own - reference, error, values)
        usual = reference
    else:
        theirs = others[1][sides.expected, 0] / others[0][sides.expected]
        usual = float(theirs.mean())
        if pairing is Pairing.PAIRED:
            baseline, p_value = theirs, _t_test(own - theirs, 0.0, 1)
        else:
            baseline = np.full(len(own), usual)
            spread = float(theirs.var(ddof=1)) / len(theirs) if len(theirs) > 1 else 0.0
            p_value = _t_test(own - usual, spread, len(theirs))
    return Judged(
        finding=msgspec.structs.replace(finding, p_value=p_value, e_value=e_value_of(p_value), method=METHOD),
        names=tuple(seen.names[place] for place in sides.seen.tolist()),
        deviations=(own - baseline)[:, None],
        baseline=baseline[:, None],
        noise=np.array([[max(usual * (1 - usual), _NO_ERROR)]]),
        values=totals[sides.seen],
        course=seen.estimates if len(own) else None,
        places=sides.seen,
        loss=usual - float(own.mean()),
        means=(usual, float(own.mean())),
    )


def judge_accuracy(seen: Tally, expected: Tally | None, pairing: Pairing, alpha: float) -> Judged | None:
    """Devices' share of right answers by outcomes; None where no outcome is known."""
    judged, right = _judged(seen)
    if not judged.any():
        return None
    others = _judged(expected) if expected is not None else None
    sides = choose_sides(judged, others[0] if others else None, seen=seen, expected=expected, pairing=pairing)
    tried, correct = judged[sides.seen].astype(np.int64), right[sides.seen].astype(np.int64)
    finding = _finding(ACCURACY, SignalKind.ACCURACY, len(tried), int(tried.sum()))
    finding = msgspec.structs.replace(finding, devices_left_out=sides.left_out)
    promised = seen.reference.expected_accuracy
    lacking = lacking_units(sides, values=int(judged.sum()), pairing=pairing).replace("values", "outcomes")
    if not lacking and others is None and promised is None:
        lacking = "the bundle does not say what accuracy to expect"
    if lacking:
        return Judged(finding=finding, lacking=lacking)
    own = correct / tried
    if others is None:
        assert promised is not None  # noqa: S101 - said to be lacking above
        found = evidence.accuracy_against_expected(
            correct, tried, expected=promised, expected_count=seen.reference.values or None, alpha=alpha
        )
        baseline = np.full(len(own), promised)
    else:
        test = evidence.accuracy_paired_devices if pairing is Pairing.PAIRED else evidence.accuracy_between_devices
        their_tried = others[0][sides.expected].astype(np.int64)
        their_correct = others[1][sides.expected].astype(np.int64)
        found = test(correct, tried, their_correct, their_tried, alpha=alpha)
        theirs = their_correct / their_tried
        baseline = theirs if pairing is Pairing.PAIRED else np.full(len(own), theirs.mean())
    usual = float(baseline.mean())
    return Judged(
        finding=msgspec.structs.replace(
            finding, p_value=found.p_value, e_value=found.e_value, method=found.method, effect=found.effect
        ),
        names=tuple(seen.names[place] for place in sides.seen.tolist()),
        deviations=(own - baseline)[:, None],
        baseline=baseline[:, None],
        noise=np.array([[max(usual * (1 - usual), _NO_ERROR)]]),
        values=tried.astype(np.float64),
        course=seen.outcomes,
        places=sides.seen,
        loss=usual - float(own.mean()),
        means=(usual, float(own.mean())),
    )


def _judged(tally: Tally) -> tuple[Matrix, Matrix]:
    totals, sums = tally.sums_by_unit(tally.outcomes)
    return totals, sums[:, 0]


def _finding(name: str, kind: SignalKind, devices: int, values: int) -> SignalFinding:
    return SignalFinding(
        signal=name,
        kind=kind,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        severity=Severity.NONE,
        sentence="",
        devices=devices,
        values=values,
    )


def _t_test(differences: Matrix, other_variance: float, other_size: int) -> float:
    """Two-sided p that the mean of `differences` `[devices]` is 0, beside another mean of that variance and size."""
    if len(differences) < 2:  # one device against many: its own spread is that of the others
        variance, freedom = other_variance * (other_size + 1), float(max(other_size - 1, 1))
    else:
        own = float(differences.var(ddof=1)) / len(differences)
        variance = own + other_variance
        spent = own**2 / (len(differences) - 1) + other_variance**2 / max(other_size - 1, 1)
        freedom = variance**2 / spent if spent > 0 else 1.0
    if variance <= _NO_ERROR**2:
        return 1.0
    return float(2 * student_t.sf(abs(float(differences.mean())) / variance**0.5, freedom))
