"""What drift is told as: the structs that the engine makes and the API, the CLI, the report and the monitor read.

Invariants:
- too little data is "not enough evidence", never "no drift";
- evidence (p, e) and size (effect) stand side by side: a large fleet sees shifts that do not matter;
- every sentence stands by itself: what moved, by how much, on how many of how many devices, where, since when.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field


class Verdict(StrEnum):
    """What is said of a signal, or of a comparison."""

    DRIFT = "drift"
    NOT_FOUND = "not_found"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class Severity(StrEnum):
    """How much a drift that was found matters, by its size and by what the accuracy is estimated to have lost."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class SignalKind(StrEnum):
    """Where a signal is seen."""

    FEATURE = "feature"
    CLASSES = "classes"
    SCORE = "score"
    EMBEDDING = "embedding"
    ACCURACY = "accuracy"
    ESTIMATED_ACCURACY = "estimated_accuracy"


class Effect(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the mean of the devices' shares lies from the other side's.

    `shift_sd` is the move of the mean in standard deviations of the other side; `shift_rank` the move of the mean rank,
    -1 to 1, with its interval; `wasserstein_1` is in the feature's unit; `mmd` the maximum mean discrepancy. A p-value
    here is of that statistic alone, from its null law or by exchanging devices.
    """

    psi: float | None = None
    psi_p_value: float | None = None
    jsd: float | None = None
    hellinger: float | None = None
    ks_distance: float | None = None
    ks_p_value: float | None = None
    wasserstein_1: float | None = None
    wasserstein_1_p_value: float | None = None
    shift_sd: float | None = None
    shift_rank: float | None = None
    shift_interval: tuple[float, float] | None = None
    mmd: float | None = None
    mmd_p_value: float | None = None


class Population(Struct, frozen=True, kw_only=True):
    """One side of a comparison: which windows. "" and None are not narrowed.

    `is_reference` is the training data in the bundle, which has no devices and no times.
    """

    model: str
    version: str = ""
    is_reference: bool = False
    variant: str = ""
    arm: str = ""
    selector: str = ""
    device: str = ""
    start_ns: int = 0
    end_ns: int = 0
    same_hours: bool = False
    devices: int = 0
    windows: int = 0
    values: int = 0


class Distribution(Struct, frozen=True, kw_only=True):
    """Both sides of a signal, for a picture: `edges` `[cells + 1]` of a number, else `labels` `[cells]`; shares."""

    seen: list[float]
    expected: list[float]
    edges: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class TimeCell(Struct, frozen=True, kw_only=True):
    """A signal over a part of the span, for a heat map: its size, and whether that part alone is evidence.

    The size of an accuracy is its change in shares, below 0 for a loss; others have no sign.
    """

    start_ns: int
    devices: int
    size: float
    p_value: float | None = None


class Segment(Struct, frozen=True, kw_only=True):
    """A part of the fleet in which a signal moved: `by` is "site" or "cpu_signature", `value` "lisbon"."""

    by: str
    value: str
    devices: int
    devices_moved: int
    p_value: float
    e_value: float
    shift_sd: float | None = None


class SignalFinding(Struct, frozen=True, kw_only=True):
    """One signal. `p_value` is of this signal alone; `adjusted_p_value` allows for all signals of the comparison.

    The drift began at about `onset_ns`, and nineteen times in twenty between `onset_earliest_ns` and `onset_latest_ns`.
    """

    signal: str
    kind: SignalKind
    verdict: Verdict
    severity: Severity
    sentence: str
    devices: int = 0
    devices_left_out: int = 0
    devices_moved: int = 0
    values: int = 0
    reference_values: int = 0
    beyond_reference: int = 0
    unusable: int = 0
    torn_sketches: int = 0
    p_value: float | None = None
    adjusted_p_value: float | None = None
    e_value: float | None = None
    method: str = ""
    effect: Effect | None = None
    onset_ns: int | None = None
    segments: list[Segment] = field(default_factory=list)
    distribution: Distribution | None = None
    timeline: list[TimeCell] = field(default_factory=list)
    onset_earliest_ns: int | None = None
    onset_latest_ns: int | None = None


class DriftReport(Struct, frozen=True, kw_only=True):
    """One comparison of a model version. `alpha` is the false-alarm rate of the whole report, for one look.

    `pairing` says who was held against whom. `read_from` is "windows" or "device hours"; of these, the span is whole
    hours. `devices_sampled_of` is 0 where every device was read, else how many there are, of which a sample was.
    """

    model: str
    version: str
    start_ns: int
    end_ns: int
    windows: int
    windows_truncated: bool
    alpha: float
    verdict: Verdict
    severity: Severity
    sentence: str
    seen: Population
    expected: Population
    estimated_accuracy: float | None = None
    expected_accuracy: float | None = None
    signals: list[SignalFinding] = field(default_factory=list)
    pairing: str = ""
    read_from: str = "windows"
    devices_sampled_of: int = 0
