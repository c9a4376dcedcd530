"""Windows into merged windows, and merged windows into coarser ones. Pure.

Invariants (tests/server/telemetry_store/test_merge.py):
1. the order of windows changes nothing, and a window that comes again changes nothing: equal windows, equal bytes;
2. sums add exactly: counts as integers, floats as the exactly rounded sum of all of them;
3. a sketch that cannot be read, that has more than its places, or embedding sums of fewer features than others of their
   series, count in `refused` and in no sum; nothing else of their window is lost;
4. numbers stop at what the wire and a signed 64-bit column hold, and every part has a limit: of error kinds, classes,
   batch sizes and features the first in order are kept, so that it does not matter which came first.

Adding up merged windows again (`regroup`) gives what the windows themselves would, but for the last bits of float
sums, for the number of devices beyond what hashes count exactly (device_count.py), and beyond the limits of 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fleet_protocol.embedding_sums import MAX_SUM
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import Window
from fleet_protocol.varint import MAX_COUNT
from fleet_server.telemetry_store.device_count import hash_of, pack_hashes, smallest
from fleet_server.telemetry_store.group_sums import GroupSums, bounded
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.sketch_sums import EmbeddingSums, SketchSums
from fleet_server.telemetry_store.sketches import BIN_PLACES, MAX_WINDOW_COUNT

MAX_FEATURES = 256
_PENDING_PARTS = 4_096
_PENDING_BYTES = 8 * 2**20

CohortOf = Callable[[str], str]


def merge(windows: Iterable[Window], grain: Grain, cohort_of: CohortOf) -> list[MergedWindow]:
    """The merged windows of a grain, by start, then key; every window in the span it ended in.

    `cohort_of` tells a device's cohort, "" for none; it is not asked for device hours. Keeps no window that it has
    read, only the sums.
    """
    span_ns, of_device = grain.span_ns, grain is Grain.DEVICE_HOUR
    merging = _Merging(max_count=MAX_WINDOW_COUNT, max_sum=MAX_WINDOW_COUNT)
    seen: set[int] = set()  # 64-bit hashes: of a million windows two are alike once in 10**7 merges
    for window in windows:
        device = window.device
        identity = hash((device, window.boot_id, window.sequence))
        if identity in seen:
            continue
        seen.add(identity)
        about = (device, "") if of_device else ("", cohort_of(device))
        start_ns = (window.end_ns - 1) // span_ns * span_ns
        group = merging.group((start_ns, window.model, window.version, window.variant, window.arm, *about))
        group.windows += 1
        if not of_device:
            group.devices.add(hash_of(device))
        group.note_ends(window.end_ns, window.end_ns)
        merging.add(group, window)
    return merging.merged()


def regroup(
    merged: Iterable[MergedWindow], key_of: Callable[[MergedKey], MergedKey], span_ns: int
) -> list[MergedWindow]:
    """Merged windows put together under the keys that `key_of` gives, over spans of `span_ns`; by start, then key.

    `span_ns` is a multiple of the span of what is put together.
    """
    merging = _Merging(max_count=MAX_COUNT, max_sum=MAX_SUM)
    for part in merged:
        if not part.windows:
            continue
        key = key_of(part.key)
        start_ns = part.start_ns // span_ns * span_ns
        group = merging.group((start_ns, key.model, key.version, key.variant, key.arm, key.device, key.cohort))
        group.windows += part.windows
        group.refused += part.refused
        group.note_devices(part)
        group.note_ends(part.first_end_ns, part.last_end_ns)
        merging.add(group, part)
    return merging.merged()


def order(merged: MergedWindow) -> tuple[int, MergedKey]:
    """How merged windows are ordered: by start, then key."""
    return merged.start_ns, merged.key


class _Merging:
    """Groups, and the sums of their sketches: two histograms a group, and a row for each bin sketch."""

    def __init__(self, *, max_count: int, max_sum: int) -> None:
        self._groups: dict[tuple[int, str, str, str, str, str, str], GroupSums] = {}
        self._numbered: list[GroupSums] = []
        self._histograms = SketchSums(places=BUCKETS, max_count=max_count)
        self._bins = SketchSums(places=BIN_PLACES, max_count=max_count)
        self._embeddings = EmbeddingSums(max_sum=max_sum)
        self._bin_groups: list[GroupSums] = []
        self._bin_sketches: list[int] = []
        self._bins_without_place: list[int] = []
        self._start_pending()

    def _start_pending(self) -> None:
        self._parts = self._bytes = 0
        self._histogram_blobs: list[bytes] = []
        self._histogram_rows: list[int] = []
        self._bin_blobs: list[bytes] = []
        self._bin_rows: list[int] = []
        self._embedding_parts: list[tuple[bytes, int, int]] = []

    def group(self, identity: tuple[int, str, str, str, str, str, str]) -> GroupSums:
        """The group of (start, model, version, variant, arm, device, cohort)."""
        known = self._groups.get(identity)
        if known is None:
            start_ns, model, version, variant, arm, device, cohort = identity
            key = MergedKey(model=model, version=version, variant=variant, arm=arm, device=device, cohort=cohort)
            known = self._groups[identity] = GroupSums(len(self._numbered), start_ns, key)
            self._numbered.append(known)
        return known

    def add(self, group: GroupSums, part: Window | MergedWindow) -> None:
        group.add(part)
        latency, queue_wait = part.latency, part.queue_wait
        size = len(latency) + len(queue_wait)
        if latency:
            self._histogram_blobs.append(latency)
            self._histogram_rows.append(2 * group.number)
        if queue_wait:
            self._histogram_blobs.append(queue_wait)
            self._histogram_rows.append(2 * group.number + 1)
        named, blobs, rows = group.features, self._bin_blobs, self._bin_rows
        for name, blob in part.features.items():
            row = named.get(name, -1)
            if row < 0 and (row := self._feature_row(group, name)) < 0:
                group.refused += 1
                continue
            blobs.append(blob)
            rows.append(row)
            size += len(blob)
        if part.score:
            if group.score < 0:
                group.score = self._new_bin_row(group)
            blobs.append(part.score)
            rows.append(group.score)
        if part.embedding_count or part.embedding_sums:
            self._embedding_parts.append((part.embedding_sums, part.embedding_count, group.number))
        self._parts += 1
        self._bytes += size + len(part.score) + len(part.embedding_sums)
        if self._parts >= _PENDING_PARTS or self._bytes >= _PENDING_BYTES:
            self._add_pending()

    def _add_pending(self) -> None:
        histogram_rows, bin_rows, embeddings = self._histogram_rows, self._bin_rows, self._embedding_parts
        for at in self._histograms.add(self._histogram_blobs, histogram_rows):
            self._numbered[histogram_rows[at] // 2].refused += 1
        for row in bin_rows:
            self._bin_sketches[row] += 1
        for at in self._bins.add(self._bin_blobs, bin_rows):
            self._bin_sketches[bin_rows[at]] -= 1
            self._bin_groups[bin_rows[at]].refused += 1
        if embeddings:
            for number in self._embeddings.add(*zip(*embeddings, strict=True)):
                self._numbered[number].refused += 1
        self._start_pending()

    def _feature_row(self, group: GroupSums, name: str) -> int:
        """A new row for a feature, -1 where it has no place; of too many, the last in order loses its own."""
        if len(group.features) >= MAX_FEATURES:
            last = max(group.features)
            if name > last:
                return -1
            self._bins_without_place.append(group.features.pop(last))
        row = group.features[name] = self._new_bin_row(group)
        return row

    def _new_bin_row(self, group: GroupSums) -> int:
        self._bin_groups.append(group)
        self._bin_sketches.append(0)
        return len(self._bin_groups) - 1

    def merged(self) -> list[MergedWindow]:
        self._add_pending()
        for row in self._bins_without_place:
            self._bin_groups[row].refused += self._bin_sketches[row]
        histograms = self._histograms.encoded(2 * len(self._numbered))
        bins = self._bins.encoded(len(self._bin_groups))
        embeddings = self._embeddings.encoded()
        found = []
        for group in self._numbered:
            samples, sums = embeddings.get(group.number, (0, b""))
            batch_sizes, classes = group.batch_sizes.settle(), group.classes.settle()
            one = MergedWindow(
                key=group.key,
                start_ns=group.start_ns,
                windows=bounded(group.windows),
                devices=group.device_count(),
                first_end_ns=group.first_end_ns,
                last_end_ns=group.last_end_ns,
                count=bounded(group.count),
                errors=group.settled_errors(),
                latency=histograms[2 * group.number],
                queue_wait=histograms[2 * group.number + 1],
                batch_sizes=batch_sizes,
                features={name: bins[row] for name, row in sorted(group.features.items())},
                classes=classes,
                score=bins[group.score] if group.score >= 0 else b"",
                embedding_count=bounded(samples),
                embedding_sums=sums,
                shadow=group.settled_shadow(),
                outcomes=group.settled_outcomes(),
                estimated_accuracy=group.settled_estimate(),
                refused=group.settled_refused(),
                device_hashes=b"" if group.key.device else pack_hashes(smallest(group.devices)),
            )
            found.append(one)
        return sorted(found, key=order)
