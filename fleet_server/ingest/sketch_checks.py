"""Step 4 of the checks: the sketches of a batch of windows, all read at once. Pure.

A sketch that cannot be read, counts more than a sum can hold or does not fit its version's reference is left out of
its window; the class counts are one sketch. Where a version has no reference (a plain file, a model that the registry
does not know) a sketch of any allowed size fits, but a plain file of a published model has none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fleet_protocol.embedding_sums import FEATURE_SCALE
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import Window
from fleet_server.ingest.checks import FILE_VARIANT, Facts, Fault, Reason, Reference
from fleet_server.telemetry_store.sketches import BIN_PLACES, decode_sparse_many, decode_sums_many

_LATENCY, _QUEUE_WAIT, _SCORE, _FEATURES = "latency", "queue_wait", "score", "features"


@dataclass(slots=True)
class Verdict:
    """What the sketches of one window are worth: fields to change, why, and a contradiction that costs the window."""

    changes: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    contradiction: str = ""

    def leave_out(self, reason: Reason, detail: str, **changes: Any) -> None:
        """Drop what `changes` empty."""
        self.changes |= changes
        self.faults.append(Fault(reason, detail))


@dataclass(slots=True)
class _Sketches:
    """Sparse counts of a batch: bytes, the places they may use, and whose they are (window, field, feature)."""

    blobs: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    owners: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, blob: bytes, places: int, owner: tuple[int, str, str]) -> None:
        """Take one in."""
        self.blobs.append(blob)
        self.places.append(places)
        self.owners.append(owner)


def check_sketches(windows: Sequence[tuple[Window, Facts]]) -> list[Verdict]:
    """One verdict per window, in order."""
    verdicts = [Verdict() for _ in windows]
    durations, bins = _Sketches(), _Sketches()
    for number, ((window, facts), verdict) in enumerate(zip(windows, verdicts, strict=True)):
        if window.latency:
            durations.add(window.latency, BUCKETS, (number, _LATENCY, ""))
        if window.queue_wait:
            durations.add(window.queue_wait, BUCKETS, (number, _QUEUE_WAIT, ""))
        if facts.is_published and (window.variant == FILE_VARIANT or facts.reference is None):
            _expect_none(window, verdict)
        else:
            _collect_bins(window, facts.reference, number, verdict, bins)
            _check_classes(window, facts.reference, verdict)
    _check_durations(windows, verdicts, durations)
    _check_bins(windows, verdicts, bins)
    _check_sums(windows, verdicts)
    return verdicts


def _collect_bins(window: Window, reference: Reference | None, number: int, verdict: Verdict, bins: _Sketches) -> None:
    for name, blob in window.features.items():
        places = BIN_PLACES if reference is None else reference.features.get(name, 0)
        if blob and not places:
            _leave_feature_out(window, verdict, name, Reason.SKETCH_MISMATCH, f"the reference has no feature {name!r}")
        elif blob:
            bins.add(blob, places, (number, _FEATURES, name))
    places = BIN_PLACES if reference is None else reference.score_places
    if window.score and places:
        bins.add(window.score, places, (number, _SCORE, ""))
    elif window.score:
        verdict.leave_out(Reason.SKETCH_MISMATCH, "the reference has no score", score=b"")


def _check_classes(window: Window, reference: Reference | None, verdict: Verdict) -> None:
    if not window.classes:
        return
    known = reference.classes if reference is not None else 0
    lowest, highest = min(window.classes), max(window.classes)
    if lowest < 0 or (known and highest >= known):
        detail = f"class {lowest if lowest < 0 else highest} is none of the reference's {known or ''}".rstrip()
        verdict.leave_out(Reason.SKETCH_MISMATCH, detail, classes={})


def _expect_none(window: Window, verdict: Verdict) -> None:
    if any(window.features.values()) or window.score or window.embedding_sums:
        detail = "a plain file of a published model has no reference to sketch by"
        nothing: dict[str, Any] = {"features": {}, "score": b"", "embedding_sums": b"", "embedding_count": 0}
        verdict.leave_out(Reason.SKETCH_MISMATCH, detail, **nothing)


def _check_durations(windows: Sequence[tuple[Window, Facts]], verdicts: list[Verdict], sketches: _Sketches) -> None:
    if not sketches.blobs:
        return
    read = decode_sparse_many(sketches.blobs, BUCKETS)
    totals = np.bincount(read.owners, weights=read.counts, minlength=read.size).astype(np.int64).tolist()
    refused = frozenset(read.refused)
    for place, ((number, what, _), total) in enumerate(zip(sketches.owners, totals, strict=True)):
        count = windows[number][0].count
        if place in refused:
            verdicts[number].leave_out(Reason.SKETCH_UNREADABLE, f"{what} cannot be read", **{what: b""})
        elif total != count:
            verdicts[number].contradiction = f"{count} calls, but {what} counts {total}"


def _check_bins(windows: Sequence[tuple[Window, Facts]], verdicts: list[Verdict], sketches: _Sketches) -> None:
    if not sketches.blobs:
        return
    read = decode_sparse_many(sketches.blobs, BIN_PLACES)
    outside = read.places >= np.asarray(sketches.places, dtype=np.int64)[read.owners]
    refused = frozenset(read.refused)
    for place in sorted({*refused, *read.owners[outside].tolist()}):
        number, what, name = sketches.owners[place]
        window, verdict = windows[number][0], verdicts[number]
        title = f"feature {name!r}" if what == _FEATURES else what
        if place in refused:
            reason, detail = Reason.SKETCH_UNREADABLE, f"{title} cannot be read"
        else:
            reason, detail = Reason.SKETCH_MISMATCH, f"{title} counts outside its {sketches.places[place]} places"
        if what == _FEATURES:
            _leave_feature_out(window, verdict, name, reason, detail)
        else:
            verdict.leave_out(reason, detail, **{what: b""})


def _check_sums(windows: Sequence[tuple[Window, Facts]], verdicts: list[Verdict]) -> None:
    holders = [
        number
        for number, (window, _) in enumerate(windows)
        if window.embedding_sums and "embedding_sums" not in verdicts[number].changes
    ]
    if not holders:
        return
    read = decode_sums_many([windows[number][0].embedding_sums for number in holders])
    refused = frozenset(read.refused)
    samples = np.asarray([windows[number][0].embedding_count for number in holders], dtype=np.int64)
    owners = np.repeat(np.arange(len(holders)), read.widths)
    impossible = frozenset(owners[np.abs(read.values) > samples[owners] * FEATURE_SCALE].tolist())
    for place, number in enumerate(holders):
        reference, width = windows[number][1].reference, int(read.widths[place])
        wanted = reference.embedding_features if reference is not None else width
        if place in refused:
            reason, detail = Reason.SKETCH_UNREADABLE, "the embedding sums cannot be read"
        elif width != wanted:
            reason, detail = Reason.SKETCH_MISMATCH, f"{width} embedding sums, the reference has {wanted}"
        elif place in impossible:
            reason, detail = Reason.SKETCH_UNREADABLE, "the embedding sums are more than their samples add up to"
        else:
            continue
        verdicts[number].leave_out(reason, detail, embedding_sums=b"", embedding_count=0)


def _leave_feature_out(window: Window, verdict: Verdict, name: str, reason: Reason, detail: str) -> None:
    features: dict[str, bytes] = verdict.changes.get("features", window.features)
    verdict.leave_out(reason, detail, features={known: blob for known, blob in features.items() if known != name})
