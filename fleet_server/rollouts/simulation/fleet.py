"""The simulated devices during a rollout: who is online, where each update is, and what was counted since.

Invariants:
- time only moves forward (`advance`); orders (`expose`, `hold`, `restore`) happen at the time that was reached;
- only exposed devices and the control are counted: a fleet of a hundred thousand costs as much as it has exposed;
- an update's end is known once the device is online to say so; what never ends is LOST by the policy's deadline;
- outcomes come late by an exponential delay, and count for gates once they are `maturity_s` old.
"""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.messages import Phase
from fleet_server.rollouts.policy import RolloutPolicy
from fleet_server.rollouts.simulation.world import (
    CLASSES,
    COLUMNS,
    CORRECT,
    COUNT,
    DAY_S,
    WRONG,
    Indices,
    Values,
    World,
)

Flags = NDArray[np.bool_]

PHASES = tuple(Phase)
CODE = {phase: code for code, phase in enumerate(PHASES)}
PAST_HOURS = 24
"""What of the incumbent's past is compared with: `evidence.LARGE_FLEET_LOOKBACK_S`."""
_IS_END = np.array([phase.is_end for phase in PHASES])
_SILENCED_AFTER_S = 1800.0
"""Mean time after which a candidate that silences devices does."""
_BACK_AFTER_S = 60.0


class SimulatedFleet:
    """One world's devices under one policy; times are seconds since the rollout was created."""

    def __init__(self, world: World, policy: RolloutPolicy, *, maturity_s: float) -> None:
        size, random = world.devices, world.random
        self.world, self.policy, self.now_s, self._maturity_s = world, policy, 0.0, maturity_s
        settings = world.settings
        offline_share = settings.offline_span_s / (settings.online_span_s + settings.offline_span_s)
        self.online = random.random(size) >= offline_share
        self._toggles_s = self._span(self.online)
        self._dies_s = random.exponential(DAY_S / max(settings.dies_per_day, 1e-12), size)
        self.last_seen_s = np.where(self.online, 0.0, -3600.0)
        self.is_exposed, self.is_control = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        self.restored, self.own_trouble = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        self.assigned_s, self.phase_s, self._restored_s = np.zeros(size), np.zeros(size), np.zeros(size)
        self._begins_s, self._ends_s = np.full(size, np.nan), np.full(size, np.inf)
        self._fate = np.full(size, CODE[Phase.HEALTHY])
        self.phase = np.full(size, CODE[Phase.PENDING])
        self.attempts = np.zeros(size, dtype=np.int64)
        self.is_back = np.zeros(size, dtype=np.bool_)
        width = CLASSES if world.shares is not None else 0
        self.counted, self.past = np.zeros((size, COLUMNS)), np.zeros((size, COLUMNS))
        self.counted_classes, self.past_classes = np.zeros((size, width)), np.zeros((size, width))
        self._coming = np.zeros((size, 2))  # right and wrong answers whose truth is not known yet
        self._ripening: deque[tuple[float, Indices, Values]] = deque()
        self.control = np.zeros(0, dtype=np.int64)
        self._control_times: list[float] = []
        self._control_tables: list[NDArray[np.float32]] = []
        self._control_classes: list[NDArray[np.float32]] = []

    # orders

    def hold(self, which: Indices) -> None:
        """Make these the control; their last day is drawn."""
        self.is_control[which] = True
        self.assigned_s[which] = self.now_s
        self.control = np.flatnonzero(self.is_control)
        tables, classes = self._past_hours(self.control)
        self._control_times = [self.now_s - DAY_S + 3600 * hour for hour in range(PAST_HOURS + 1)]
        nothing = np.zeros((1, *tables.shape[1:]))
        self._control_tables = list(np.cumsum(np.concatenate((nothing, tables)), axis=0).astype(np.float32))
        even = classes / PAST_HOURS
        self._control_classes = [(even * hour).astype(np.float32) for hour in range(PAST_HOURS + 1)]

    def expose(self, which: Indices, at_s: float, *, is_retry: bool = False) -> None:
        """Give these the candidate at `at_s`, which may be a little later than what was counted so far."""
        was_control = self.is_control[which]
        if not is_retry:
            fresh = which[~was_control]
            tables, classes = self._past_hours(fresh)
            self.past[fresh], self.past_classes[fresh] = tables.sum(axis=0), classes
        self.attempts[which] += is_retry
        self.is_exposed[which], self.is_control[which] = True, False
        self.assigned_s[which], self.phase_s[which] = at_s, at_s
        self.phase[which], self.own_trouble[which] = CODE[Phase.PENDING], False
        self._begins_s[which], self._ends_s[which] = np.nan, np.inf
        self._begin(which[self.online[which]], at_s)

    def restore(self, which: Indices) -> None:
        """Give these back what they ran."""
        self.restored[which], self._restored_s[which] = True, self.now_s

    # time

    def advance(self, to_s: float) -> None:
        """Let time pass until `to_s`."""
        from_s, self.now_s = self.now_s, to_s
        self._come_and_go(to_s)
        waiting = self.is_exposed & ~self.restored & np.isnan(self._begins_s) & self.online
        self._begin(np.flatnonzero(waiting), to_s)
        ended = self.is_exposed & ~self.restored & (self._ends_s <= to_s) & self.online
        ended &= self.phase == CODE[Phase.PENDING]
        self.phase[ended], self.phase_s[ended] = self._fate[ended], self._ends_s[ended]
        self.is_back |= self.restored & self.online & (self._restored_s + _BACK_AFTER_S <= to_s)
        serving = np.flatnonzero(self.is_exposed & ~self.restored & (self.phase == CODE[Phase.HEALTHY]) & self.online)
        began = np.maximum(self.phase_s[serving], from_s)
        self._count(serving, began, to_s - began, with_candidate=True)
        held = self.control[self.online[self.control] & self.is_control[self.control]]
        self._count(held, np.full(held.size, from_s), np.full(held.size, to_s - from_s), with_candidate=False)
        if self.control.size:
            self._control_times.append(to_s)
            base = self._control_tables[PAST_HOURS]
            self._control_tables.append((base + self.counted[self.control]).astype(np.float32))
            self._control_classes.append(
                (self._control_classes[PAST_HOURS] + self.counted_classes[self.control]).astype(np.float32)
            )

    # what is known

    def phases(self) -> Indices:
        """Each device's phase as a code, with LOST by the deadline and PENDING where a retry is due."""
        late = ~_IS_END[self.phase] & (self.now_s - self.assigned_s > self.policy.deploy_deadline_s)
        found = np.where(late, CODE[Phase.LOST], self.phase)
        again = (self.phase == CODE[Phase.FAILED]) & (self.attempts < self.policy.retry.attempts)
        return np.where(again, CODE[Phase.PENDING], found)

    def never_began(self) -> Flags:
        """Devices that have not seen their assignment."""
        found: Flags = np.isnan(self._begins_s)
        return found

    def ripe(self) -> Values:
        """What was counted `[devices, COLUMNS]`, outcomes only as far as they are mature."""
        if not self._ripening:
            return self.counted
        found = self.counted.copy()
        for _, which, outcomes in self._ripening:
            found[which, CORRECT] -= outcomes[:, 0]
            found[which, WRONG] -= outcomes[:, 1]
        return found

    def control_since(self, start_s: float, which: Indices) -> tuple[Values, Values, Values, Values]:
        """Of control devices (places in `control`): tables and classes since `start_s`, and in the day before it."""
        start = self._control_at(start_s)
        now = self._control_tables[-1][which].astype(np.float64)
        ripe = self._control_tables[self._control_at(self.now_s - self._maturity_s)][which]
        now[:, [CORRECT, WRONG]] = np.maximum(ripe, self._control_tables[start][which])[:, [CORRECT, WRONG]]
        before = self._control_at(start_s - DAY_S)
        return (
            now - self._control_tables[start][which],
            (self._control_classes[-1][which] - self._control_classes[start][which]).astype(np.float64),
            (self._control_tables[start][which] - self._control_tables[before][which]).astype(np.float64),
            (self._control_classes[start][which] - self._control_classes[before][which]).astype(np.float64),
        )

    def _control_at(self, at_s: float) -> int:
        return max(0, bisect.bisect_right(self._control_times, at_s) - 1)

    def _past_hours(self, which: Indices) -> tuple[Values, Values]:
        """What the incumbent counted in each hour of the last day `[hours, which, COLUMNS]`, and all its classes."""
        middle_s: Values = self.now_s - DAY_S + 3600.0 * (np.arange(PAST_HOURS, dtype=np.float64)[:, None] + 0.5)
        tables = self.world.count(which, middle_s=middle_s, seconds=3600.0, with_candidate=False, is_past=True)
        return tables, self.world.classes(which, tables[..., COUNT].sum(axis=0))

    def _count(self, which: Indices, began_s: Values, seconds: Values, *, with_candidate: bool) -> None:
        if not which.size:
            return
        table = self.world.count(
            which, middle_s=began_s + seconds / 2, seconds=seconds, with_candidate=with_candidate, is_past=False
        )
        new = table[:, [CORRECT, WRONG]]
        table[:, [CORRECT, WRONG]] = 0
        self.counted[which] += table
        self.counted_classes[which] += self.world.classes(which, table[:, COUNT])
        delays = np.maximum(seconds, 1e-9)[:, None] / max(self.world.settings.outcome_delay_s, 1e-9)
        draw = self.world.random.binomial
        known = draw(self._coming[which].astype(np.int64), 1 - np.exp(-delays)).astype(np.float64)
        at_once = draw(new.astype(np.int64), 1 + np.expm1(-delays) / delays)
        self._coming[which] += new - known - at_once
        arrived = known + at_once
        self.counted[which, CORRECT] += arrived[:, 0]
        self.counted[which, WRONG] += arrived[:, 1]
        if self._maturity_s > 0 and with_candidate:
            self._ripening.append((self.now_s, which, arrived))
        while self._ripening and self._ripening[0][0] <= self.now_s - self._maturity_s:
            self._ripening.popleft()

    def _begin(self, which: Indices, at_s: float) -> None:
        """These see their assignment: when their update ends, and how."""
        if not which.size:
            return
        world, policy, random = self.world, self.policy, self.world.random
        settings, bad, draws = world.settings, world.breaks, world.random.random
        begins_s = at_s + random.uniform(0, policy.jitter_s, which.size)
        fetched_s = begins_s + world.download_s[which]
        fate = np.full(which.size, CODE[Phase.HEALTHY])
        ends_s = fetched_s + policy.probation.duration_s
        crashes, hangs = draws(which.size) < bad.crash, draws(which.size) < bad.hang
        fate[crashes | hangs] = CODE[Phase.REVERTED]
        ends_s = np.where(crashes, fetched_s + random.uniform(0, policy.probation.duration_s, which.size), ends_s)
        ends_s = np.where(hangs & ~crashes, fetched_s + policy.probation.hang_timeout_s, ends_s)
        failures = settings.no_space_share + settings.network_share + settings.power_share
        fails = draws(which.size) < failures
        fate[fails], ends_s = CODE[Phase.FAILED], np.where(fails, fetched_s, ends_s)
        silenced = (draws(which.size) < bad.silent) & (fate == CODE[Phase.HEALTHY])
        dies_s = ends_s + random.exponential(_SILENCED_AFTER_S, which.size)
        self._dies_s[which] = np.where(silenced, np.minimum(self._dies_s[which], dies_s), self._dies_s[which])
        self._begins_s[which], self._ends_s[which], self._fate[which] = begins_s, ends_s, fate
        self.own_trouble[which] = fails

    def _span(self, is_online: Flags) -> Values:
        settings = self.world.settings
        means = np.where(is_online, settings.online_span_s, settings.offline_span_s)
        return self.world.random.exponential(means)

    def _come_and_go(self, to_s: float) -> None:
        while (due := np.flatnonzero(self._toggles_s <= to_s)).size:
            went = due[self.online[due]]
            self.last_seen_s[went] = self._toggles_s[went]
            self.online[due] = ~self.online[due]
            self._toggles_s[due] += self._span(self.online[due])
        died = self._dies_s <= to_s
        self.last_seen_s = np.where(died & self.online, self._dies_s, self.last_seen_s)
        self.online &= ~died
        self._toggles_s[died] = np.inf
        self.last_seen_s[self.online] = to_s
