"""What an accelerometer on a machine hears in two seconds, healthy or with one fault.

The signal is a sum, built in this order:
1. the shaft turns: angle = the integral of a speed that wanders slowly by some tenths of a percent;
2. harmonics of the shaft: unbalance at 1x grows with the square of the speed; misalignment adds at 2x, and less at
   1x, 3x and 4x; vanes pass; the mains hum;
3. blows of a bearing defect: one every 1/order of a turn, but the elements slip, so each interval is off by about a
   percent and the errors add up (Randall and Antoni 2011); each blow is weighted by the load where it
   falls: constant for the fixed outer ring, by the shaft's angle for the inner ring, by the cage's for a ball
   (P. D. McFadden and J. D. Smith, "Model for the vibration produced by a single point defect in a rolling element
   bearing", Journal of Sound and Vibration 96, 1984), with Stribeck's load (1 - (1 - cos a)/(2 e))^1.5 in the zone;
4. blows and friction ring the housing: each mode answers exp(-2 pi z f t) sin(2 pi f sqrt(1 - z^2) t);
5. flow noise, knocks from elsewhere, and the sensor's own noise and gain.

A cage defect modulates the friction at the cage's order and knocks once a turn of the cage.
The convolution is circular: a blow's ringing, over in some 20 ms, may wrap from the end of the record to its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from models.bearing.machine import Machine

RATE_HZ = 16_384
SAMPLES = 2 * RATE_HZ
SEVERITIES = (1, 2, 3)
_SEED = 2_011

Signal = NDArray[np.float64]


class Fault(StrEnum):
    """What is wrong with the machine."""

    NONE = "none"
    OUTER = "outer"
    INNER = "inner"
    BALL = "ball"
    CAGE = "cage"
    UNBALANCE = "unbalance"
    MISALIGNMENT = "misalignment"


FAULTS = tuple(fault for fault in Fault if fault is not Fault.NONE)

_BLOW = {1: 1.2, 2: 2.4, 3: 4.8}
"""A blow's size by severity, in m/s^2 at nominal speed and full load, before the housing answers."""
_SHAFT_FACTOR = {1: 1.6, 2: 2.5, 3: 4.0}
"""How much greater a shaft fault makes its main harmonic than the usual healthy one, by severity."""
_CAGE_DEPTH = {1: 0.25, 2: 0.5, 3: 0.9}
_USUAL_1X, _USUAL_2X = 0.30, 0.12
_MISALIGNED = (0.3, 1.0, 0.4, 0.2)
"""What misalignment adds to the first four harmonics, as shares of what it adds to the second."""
_SLIP, _SLIP_JITTER = 0.008, 0.01
_BALL_ON_OUTER = 0.7
_KNOCKS_PER_RECORD = 0.3


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the machine runs during one record: `speed_ratio` and `load` are of nominal; `severity` is 0 when healthy."""

    speed_ratio: float
    load: float
    fault: Fault
    severity: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """`signal` `[SAMPLES]` in m/s^2 at RATE_HZ, and the mean speed as a tachometer read it, in Hz."""

    signal: Signal
    speed_hz: float


def record(machine: Machine, number: int, fault: Fault = Fault.NONE, severity: int = 0) -> Record:
    """The machine's record of that number, always the same one. `severity` is one of SEVERITIES, 0 when healthy."""
    random = np.random.default_rng(np.random.SeedSequence(_SEED, spawn_key=(machine.number, number)))
    condition = Condition(
        speed_ratio=float(random.uniform(0.75, 1.0)),
        load=float(random.uniform(0.4, 1.0)),
        fault=fault,
        severity=severity,
    )
    turns = _turns(machine.nominal_hz * condition.speed_ratio, random)
    tones = _shaft_tones(machine, turns, condition, random)
    struck = random.standard_normal(SAMPLES) * machine.friction * (1 + machine.modulation * np.cos(_angle(turns)))
    if fault is Fault.CAGE:
        struck *= 1 + _CAGE_DEPTH[severity] * np.cos(_angle(turns * machine.bearing.cage_order))
    ringing = _ring(machine, struck, unit_noise=True)
    blows = _knocks(random)
    if fault in (Fault.OUTER, Fault.INNER, Fault.BALL, Fault.CAGE):
        size = _BLOW[severity] * machine.impact * condition.load * condition.speed_ratio**2
        blows += size * _defect_blows(machine, turns, fault, random)
    ringing += _ring(machine, blows, unit_noise=False)
    noise = machine.flow * _pink(random) + machine.sensor_noise * random.standard_normal(SAMPLES)
    measured_hz = float(turns[-1] - turns[0]) / (SAMPLES - 1) * RATE_HZ * (1 + 0.0005 * random.standard_normal())
    return Record(signal=machine.sensor_gain * (tones + ringing + noise), speed_hz=measured_hz)


def _turns(speed_hz: float, random: np.random.Generator) -> Signal:
    """The shaft's position in turns `[SAMPLES]`."""
    time_s = np.arange(SAMPLES) / RATE_HZ
    wander = np.ones(SAMPLES)
    for wander_hz in (0.3, 0.7, 1.5):
        phase = random.uniform(0, 2 * math.pi)
        wander += 0.0015 * random.standard_normal() * np.cos(2 * math.pi * wander_hz * time_s + phase)
    turns: Signal = random.uniform() + np.cumsum(speed_hz * wander) / RATE_HZ
    return turns


def _angle(turns: Signal) -> Signal:
    return 2 * math.pi * turns


def _shaft_tones(machine: Machine, turns: Signal, condition: Condition, random: np.random.Generator) -> Signal:
    amplitudes = np.array(machine.harmonics) * np.exp(0.1 * random.standard_normal(len(machine.harmonics)))
    if condition.fault is Fault.UNBALANCE:
        amplitudes[0] += _USUAL_1X * _SHAFT_FACTOR[condition.severity]
    if condition.fault is Fault.MISALIGNMENT:
        main = _USUAL_2X * _SHAFT_FACTOR[condition.severity] * (0.5 + condition.load)
        amplitudes[:4] += main * np.array(_MISALIGNED)
    passing = machine.passing * condition.load
    orders = [*range(1, len(amplitudes) + 1), machine.vanes, 2 * machine.vanes]
    tones = np.zeros(SAMPLES)
    for order, amplitude in zip(orders, [*amplitudes, passing, passing / 3], strict=True):
        phase = random.uniform(0, 2 * math.pi)
        tones += amplitude * condition.speed_ratio**2 * np.cos(_angle(order * turns) + phase)
    hum_turns = 100.0 * (1 + 0.001 * random.standard_normal()) * np.arange(SAMPLES) / RATE_HZ
    tones += machine.hum * condition.load * np.cos(_angle(hum_turns + random.uniform()))
    return tones


def _defect_blows(machine: Machine, turns: Signal, fault: Fault, random: np.random.Generator) -> Signal:
    """Blows `[SAMPLES]` of a defect of unit size."""
    bearing = machine.bearing
    order = {
        Fault.OUTER: bearing.outer_order,
        Fault.INNER: bearing.inner_order,
        Fault.BALL: 2 * bearing.ball_order,
        Fault.CAGE: bearing.cage_order,
    }[fault] * (1 - _SLIP * random.uniform())
    span = turns[-1] - turns[0]
    intervals = 1 + _SLIP_JITTER * random.standard_normal(int(span * order))
    at = turns[0] + (random.uniform() + np.cumsum(intervals)) / order
    at = at[at < turns[-1]]
    sizes = 1 + 0.15 * random.standard_normal(len(at))
    if fault is Fault.INNER:
        sizes *= _load(machine, at + random.uniform())
    elif fault is Fault.BALL:
        sizes *= _load(machine, at * bearing.cage_order + random.uniform())
        sizes[::2] *= _BALL_ON_OUTER
    return _placed(np.interp(at, turns, np.arange(SAMPLES)), sizes)


def _load(machine: Machine, turns: Signal) -> Signal:
    """Stribeck's load at an angle, 1 in the middle of the zone and 0 outside it."""
    extent = (1 - math.cos(machine.load_zone_rad)) / 2
    share = 1 - (1 - np.cos(_angle(turns))) / (2 * extent)
    load: Signal = np.maximum(share, 0.0) ** 1.5
    return load


def _knocks(random: np.random.Generator) -> Signal:
    """Rare single blows from elsewhere, which are no fault."""
    count = int(random.poisson(_KNOCKS_PER_RECORD))
    sizes = 4.0 * np.exp(0.5 * random.standard_normal(count))
    return _placed(random.uniform(0, SAMPLES - 1, count), sizes)


def _placed(places: Signal, sizes: Signal) -> Signal:
    """Blows between two samples, shared by both."""
    whole = places.astype(np.int64)
    share = places - whole
    blows = np.bincount(whole, sizes * (1 - share), SAMPLES + 1) + np.bincount(whole + 1, sizes * share, SAMPLES + 1)
    return blows[:SAMPLES].astype(np.float64)  # numpy counts nothing in whole numbers


def _ring(machine: Machine, struck: Signal, *, unit_noise: bool) -> Signal:
    """What the housing answers. `unit_noise` scales it so that white noise keeps its root mean square."""
    time_s = np.arange(RATE_HZ // 16) / RATE_HZ
    answer = np.zeros(SAMPLES)
    for mode in machine.resonances:
        pulse = 2 * math.pi * mode.frequency_hz
        decay = np.exp(-mode.damping * pulse * time_s)
        answer[: len(time_s)] += mode.gain * decay * np.sin(pulse * math.sqrt(1 - mode.damping**2) * time_s)
    if unit_noise:
        answer /= math.sqrt(float(answer @ answer))
    return np.fft.irfft(np.fft.rfft(struck) * np.fft.rfft(answer), SAMPLES)


def _pink(random: np.random.Generator) -> Signal:
    """Noise whose power falls as 1/f, root mean square 1."""
    spectrum = np.fft.rfft(random.standard_normal(SAMPLES))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise: Signal = np.fft.irfft(spectrum, SAMPLES)
    noise /= np.sqrt((noise * noise).mean())
    return noise
