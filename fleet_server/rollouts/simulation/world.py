"""The simulated world: what each device is like, and what it counts in a span of time. Vectorised, one seed a world.

A device has a base rate of errors and of wrong outcomes, a latency, a memory, a temperature and a rate of calls of its
own around those of its hardware class; all follow day and night at its site, and change a little by themselves when
nobody changes anything. The candidate's harm comes on top. The synthetic default and recorded devices differ only in
where the bases come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_server.rollouts.simulation.breaks import Breaks

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

DAY_S = 86_400.0
CLASSES = 10
COLUMNS = 10
COUNT, ERRORS, CORRECT, WRONG, LOG_P95, LOG_RSS, TEMPERATURE, SECONDS, COMPARED, DISAGREED = range(COLUMNS)
"""Of a table of what was counted: log p95 is weighted by calls, memory and temperature by seconds."""

HARDWARE = ("aarch64:neon", "aarch64:neon,dotprod", "x86_64:avx2", "x86_64:avx2,vnni")
_HARDWARE_SHARES = (0.4, 0.3, 0.2, 0.1)
_HARDWARE_LOG_P95 = (10.3, 9.6, 8.9, 8.5)
SITES = 3
_SHADOW_BASE = 0.03
_CALLS_OF_ONE_NOISE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """What the fleet is like; times in seconds. The background failures are shares of updates."""

    calls_per_hour: float = 120.0
    calls_spread: float = 0.8
    error_rate: float = 0.01
    error_spread: float = 0.5
    wrong_rate_low: float = 0.05
    wrong_rate_high: float = 0.2
    outcome_share: float = 0.3
    outcome_delay_s: float = 900.0
    own_change: float = 1.0
    online_span_s: float = 3 * DAY_S
    offline_span_s: float = 1800.0
    dies_per_day: float = 0.0003
    no_space_share: float = 0.0005
    network_share: float = 0.003
    power_share: float = 0.001
    download_s: float = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDevices:
    """What recorded devices did `[devices]`, drawn from with replacement; at least one."""

    calls_per_hour: Values
    error_rate: Values
    wrong_rate: Values
    outcome_share: Values
    p95_us: Values


@dataclass(slots=True, kw_only=True)
class World:
    """Every device's traits `[devices]`."""

    random: np.random.Generator
    settings: WorldSettings
    breaks: Breaks
    hardware: Indices
    site: Values
    calls_per_s: Values
    error_rate: Values
    wrong_rate: Values
    outcome_share: Values
    log_p95: Values
    log_rss: Values
    temperature: Values
    own_change: Values
    download_s: Values
    shares: Values | None
    with_shadow: bool

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.hardware.size

    def count(
        self, which: Indices, *, middle_s: Values | float, seconds: Values | float, with_candidate: bool, is_past: bool
    ) -> Values:
        """What the devices `which` counted in spans around `middle_s`: `[..., which, COLUMNS]`.

        `middle_s` and `seconds` broadcast against `[which]`. The columns CORRECT and WRONG are all outcomes, whenever
        they become known. `is_past` leaves out what changed by itself since.
        """
        random, bad = self.random, self.breaks if with_candidate else Breaks()
        middle, spans = np.broadcast_arrays(*np.broadcast_arrays(middle_s, seconds))
        sun = np.sin(2 * np.pi * (np.asarray(middle, dtype=np.float64) / DAY_S + self.site[which]))
        sun, spans = np.broadcast_arrays(sun, np.asarray(spans, dtype=np.float64))
        own = np.zeros(which.size) if is_past else self.settings.own_change * self.own_change[which]
        busy = random.poisson(self.calls_per_s[which] * (1 + 0.5 * sun) * spans)
        error_rate = np.clip(self.error_rate[which] * np.exp(0.4 * sun + 0.2 * own) + bad.errors, 0, 1)
        wrong_rate = np.clip(self.wrong_rate[which] * np.exp(0.2 * sun + 0.1 * own) + bad.accuracy, 0, 1)
        errors = random.binomial(busy, error_rate)
        count = busy - errors
        outcomes = random.binomial(count, np.broadcast_to(self.outcome_share[which], count.shape))
        wrong = random.binomial(outcomes, wrong_rate)
        noise = random.normal(0, 0.2, sun.shape) / np.sqrt(np.maximum(count, 1) / _CALLS_OF_ONE_NOISE)
        log_p95 = self.log_p95[which] + 0.1 * sun + 0.05 * own + np.log1p(bad.latency) + noise
        log_rss = self.log_rss[which] + 0.03 * own + np.log1p(bad.memory) + random.normal(0, 0.01, sun.shape)
        temperature = self.temperature[which] + 4 * sun + own + random.normal(0, 0.5, sun.shape)
        table = np.zeros((*sun.shape, COLUMNS))
        table[..., COUNT], table[..., ERRORS] = count, errors
        table[..., CORRECT], table[..., WRONG] = outcomes - wrong, wrong
        table[..., LOG_P95], table[..., LOG_RSS] = log_p95 * count, log_rss * spans
        table[..., TEMPERATURE], table[..., SECONDS] = temperature * spans, spans
        if self.with_shadow and with_candidate:
            compared = random.binomial(count, 0.2)
            share = np.clip(_SHADOW_BASE * np.exp(0.3 * own) + bad.accuracy, 0, 1)
            table[..., COMPARED] = compared
            table[..., DISAGREED] = random.binomial(compared, np.broadcast_to(share, compared.shape))
        return table

    def classes(self, which: Indices, counts: Values) -> Values:
        """What classes `counts` `[which]` predictions were: `[which, CLASSES]`; nothing where nobody asks."""
        if self.shares is None:
            return np.zeros((which.size, 0))
        found: Values = self.random.multinomial(counts.astype(np.int64), self.shares[which]).astype(np.float64)
        return found


def make_world(
    devices: int,
    *,
    settings: WorldSettings,
    breaks: Breaks,
    random: np.random.Generator,
    recorded: RecordedDevices | None = None,
    with_classes: bool = False,
    with_shadow: bool = False,
) -> World:
    """Unequal devices; those that were `recorded` give calls, errors, outcomes and p95 where there are any."""
    hardware = random.choice(len(HARDWARE), size=devices, p=_HARDWARE_SHARES)
    calls = settings.calls_per_hour * np.exp(random.normal(0, settings.calls_spread, devices))
    error_rate = settings.error_rate * np.exp(random.normal(0, settings.error_spread, devices))
    wrong_rate = random.uniform(settings.wrong_rate_low, settings.wrong_rate_high, devices)
    outcome_share = np.full(devices, settings.outcome_share)
    log_p95 = np.array(_HARDWARE_LOG_P95)[hardware] + random.normal(0, 0.3, devices)
    if recorded is not None:
        drawn = random.integers(0, recorded.error_rate.size, devices)
        calls, error_rate, wrong_rate = (
            recorded.calls_per_hour[drawn], recorded.error_rate[drawn], recorded.wrong_rate[drawn],
        )  # fmt: skip
        outcome_share, log_p95 = recorded.outcome_share[drawn], np.log(recorded.p95_us[drawn])
    return World(
        random=random,
        settings=settings,
        breaks=breaks,
        hardware=hardware,
        site=random.uniform(0, 1) + random.integers(0, SITES, devices) / 24,
        calls_per_s=calls / 3600,
        error_rate=error_rate,
        wrong_rate=wrong_rate,
        outcome_share=outcome_share,
        log_p95=log_p95,
        log_rss=random.normal(18.5, 0.3, devices),
        temperature=random.normal(45, 5, devices),
        own_change=random.normal(0, 1, devices),
        download_s=settings.download_s * np.exp(random.normal(0, 0.5, devices)),
        shares=random.dirichlet(np.full(CLASSES, 3.0), devices) if with_classes else None,
        with_shadow=with_shadow,
    )
