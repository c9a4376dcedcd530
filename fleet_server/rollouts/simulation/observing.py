"""What the rollout engine would know of a simulated fleet: tally and evidence. No decisions.

Invariant: a figure means here what it means where it is read from the database (`device_rows`, `evidence`): the same
devices are counted, and the control's starts are spread as the assignments are.
"""

from __future__ import annotations

import math

import numpy as np

from fleet_protocol.messages import Phase
from fleet_server.rollouts.evidence import SILENCE_GRACE_S, matched_starts
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.progress import Tally
from fleet_server.rollouts.simulation.fleet import CODE, PHASES, Flags, SimulatedFleet
from fleet_server.rollouts.simulation.world import (
    COMPARED,
    CORRECT,
    COUNT,
    DISAGREED,
    ERRORS,
    HARDWARE,
    LOG_P95,
    LOG_RSS,
    SECONDS,
    TEMPERATURE,
    WRONG,
    Indices,
    Values,
)

_IS_END = np.array([phase.is_end for phase in PHASES])
_IS_FAILURE = np.array([phase.is_failure for phase in PHASES])
_NS = 1e9


def tally(fleet: SimulatedFleet) -> Tally:
    """The rollout's devices, counted."""
    phases, exposed = fleet.phases(), fleet.is_exposed
    running = exposed & ~fleet.restored
    missing = exposed & fleet.restored & ~fleet.is_back
    not_back = int((missing & fleet.online).sum())
    return Tally(
        exposed=int(exposed.sum()),
        moving=int((running & ~_IS_END[phases]).sum()),
        healthy=int((running & (phases == CODE[Phase.HEALTHY])).sum()),
        failed=int((running & _IS_FAILURE[phases]).sum()),
        restored=int((exposed & fleet.restored).sum()),
        not_back=not_back,
        away=int(missing.sum()) - not_back,
        control=int(fleet.is_control.sum()),
    )


def failed_updates(fleet: SimulatedFleet) -> int:
    """Exposed devices whose update ended otherwise than well."""
    return int((fleet.is_exposed & _IS_FAILURE[fleet.phases()]).sum())


class Observer:
    """Reads evidence; remembers each exposed device's past, which does not change."""

    def __init__(self, fleet: SimulatedFleet, policy: RolloutPolicy, names: list[str], segments: list[str]) -> None:
        self._fleet, self._policy, self._names, self._segments = fleet, policy, names, segments
        self._pasts: dict[int, Measures] = {}

    def evidence(self, *, bake_started_s: float | None, halted: Flags) -> Evidence:
        """The evidence on exposed devices and control now, without the `halted` ones."""
        fleet = self._fleet
        phases = fleet.phases()
        counts = fleet.is_exposed & ~fleet.restored & ~halted
        if bake_started_s is not None:
            counts &= _IS_END[phases] | (fleet.assigned_s <= bake_started_s)
        which = np.flatnonzero(counts)
        new = np.array([index for index in which.tolist() if index not in self._pasts], dtype=np.int64)
        self._pasts.update(zip(new.tolist(), _measures(fleet.past[new], fleet.past_classes[new]), strict=True))
        now = _measures(fleet.ripe()[which], fleet.counted_classes[which])
        watched, silent = self._watched(which, fleet.assigned_s[which])
        unseen = fleet.never_began()[which]
        lost = phases[which] == CODE[Phase.LOST]
        own = np.where(lost, unseen, fleet.own_trouble[which]).tolist()
        found = [
            DeviceEvidence(
                device=self._names[index],
                phase=PHASES[phase],
                candidate=measured,
                incumbent=self._pasts[index],
                segment=self._segments[index],
                watched_s=watched_s,
                silent_after_s=None if math.isnan(silent_s) else silent_s,
                own_trouble=is_own,
            )
            for index, phase, measured, watched_s, silent_s, is_own in zip(
                which.tolist(), phases[which].tolist(), now, watched, silent, own, strict=True
            )
        ]
        return Evidence(devices=(*found, *self._control(fleet.assigned_s[which], halted)))

    def _control(self, assigned_s: Values, halted: Flags) -> list[DeviceEvidence]:
        fleet = self._fleet
        held = np.flatnonzero((fleet.is_control & ~halted)[fleet.control])
        if not held.size:
            return []
        starts_ns = matched_starts((assigned_s * _NS).astype(np.int64).tolist(), held.size)
        starts = np.array(starts_ns) / _NS if starts_ns else fleet.assigned_s[fleet.control[held]]
        found = []
        for start_s in np.unique(starts).tolist():
            places = held[starts == start_s]
            now, classes, before, classes_before = fleet.control_since(start_s, places)
            devices = fleet.control[places]
            watched, silent = self._watched(devices, np.full(devices.size, start_s))
            rows = zip(
                devices.tolist(), _measures(now, classes), _measures(before, classes_before), watched, silent,
                strict=True,
            )  # fmt: skip
            found += [
                DeviceEvidence(
                    device=self._names[index],
                    phase=Phase.HEALTHY,
                    candidate=after,
                    incumbent=past,
                    segment=self._segments[index],
                    is_control=True,
                    watched_s=watched_s,
                    silent_after_s=None if math.isnan(silent_s) else silent_s,
                )
                for index, after, past, watched_s, silent_s in rows
            ]
        return found

    def _watched(self, which: Indices, assigned_s: Values) -> tuple[list[float], list[float]]:
        """(watched_s, silent_after_s), as `evidence` has them; NaN is not silent."""
        fleet = self._fleet
        since = np.maximum(0.0, fleet.now_s - assigned_s)
        seen, online = fleet.last_seen_s[which], fleet.online[which]
        heard = np.clip(seen - assigned_s, 0.0, since)
        was_silent = ~online & (seen < assigned_s - SILENCE_GRACE_S)
        just_now = ~online & (fleet.now_s - seen <= SILENCE_GRACE_S)
        watched = np.where(was_silent, 0.0, np.where(just_now, heard, since))
        silent = np.where(online | was_silent | just_now, np.nan, heard)
        return watched.tolist(), silent.tolist()


def hardware_of(classes: Indices) -> list[str]:
    """The CPU signature of each device."""
    return [HARDWARE[code] for code in classes.tolist()]


def _measures(table: Values, classes: Values) -> list[Measures]:
    count, seconds = table[:, COUNT], table[:, SECONDS]
    with np.errstate(all="ignore"):
        p95 = np.exp(table[:, LOG_P95] / count)
        rss, temperature = np.exp(table[:, LOG_RSS] / seconds), table[:, TEMPERATURE] / seconds
    whole = table[:, [COUNT, ERRORS, CORRECT, WRONG, COMPARED, DISAGREED]].astype(np.int64).tolist()
    if classes.shape[1]:
        by_class = [{name: n for name, n in enumerate(row) if n} for row in classes.astype(np.int64).tolist()]
    else:
        by_class = [_NO_CLASSES] * len(whole)
    return [
        Measures(
            count=row[0],
            errors=row[1],
            correct=row[2],
            wrong=row[3],
            shadow_compared=row[4],
            shadow_disagreed=row[5],
            p95_us=p95_us if row[0] else None,
            rss_bytes=rss_bytes if span > 0 else None,
            temperature_c=degrees if span > 0 else None,
            classes=named,
        )
        for row, p95_us, rss_bytes, degrees, span, named in zip(
            whole, p95.tolist(), rss.tolist(), temperature.tolist(), seconds.tolist(), by_class, strict=True
        )
    ]


_NO_CLASSES: dict[int, int] = {}
