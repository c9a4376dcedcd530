"""What the gates judge: one rollout's devices and what was measured on them. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet_protocol.messages import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What one device did with one version over one span. None is "not measured".

    `count` are inferences that answered, `errors` those that failed. `correct` and `wrong` are outcomes. `p95_us` is of
    the span's merged histogram; `rss_bytes` and `temperature_c` are means over its windows; `classes` counts
    predictions by class.
    """

    count: int = 0
    errors: int = 0
    correct: int = 0
    wrong: int = 0
    p95_us: float | None = None
    rss_bytes: float | None = None
    temperature_c: float | None = None
    classes: Mapping[int, int] = field(default_factory=dict)
    shadow_compared: int = 0
    shadow_disagreed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """One device of a rollout.

    Exposed: `candidate` is since its assignment, `incumbent` what it did with its incumbent before; None is "it had no
    model before". Of the control (`is_control`): `candidate` is what its incumbent did since a start, `incumbent` what
    it did before, so that the change of a control is what time alone does. The starts of the control are spread as the
    assignments of the exposed devices are (`evidence.matched_starts`).

    `expected_accuracy` is the manifest's. `watched_s` is how long the device was watched since its assignment (or since
    its start as a control), and `silent_after_s` when in that time it was heard for the last time, None where it is not
    silent. A device that was silent before has `watched_s` 0: it was never at risk. `segment` is the one of the
    policy's `segments` that it belongs to. `own_trouble`: its update failed by the device's doing, not the bundle's
    (no space, a download that gave up, a disk, never having seen the assignment).
    """

    device: str
    phase: Phase
    candidate: Measures = field(default_factory=Measures)
    incumbent: Measures | None = None
    expected_accuracy: float | None = None
    segment: str = ""
    is_control: bool = False
    watched_s: float = 0.0
    silent_after_s: float | None = None
    own_trouble: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything the gates of one look may use. `telemetry_error` says why there are no measures, "" when there are."""

    devices: tuple[DeviceEvidence, ...]
    telemetry_error: str = ""
