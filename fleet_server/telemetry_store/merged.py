"""Windows of one series over one span, merged by addition: what the store keeps beside the windows themselves.

| grain | merged over | kept for | read by |
|---|---|---|---|
| `DEVICE_HOUR` | one device's windows that end in one hour | as long as windows | drift: the device is its unit |
| `FLEET_MINUTE` | all devices of one cohort, one minute | as long as windows | dashboards, API |
| `FLEET_HOUR` | all devices of one cohort, one hour | `merged_retention_s`, two years | trends |

A span is (start_ns, start_ns + the grain's span], with start_ns a multiple of it, as in `series`. Invariants:
1. a merged window is a pure function of the windows in its span, whatever order they came in and however often: it is
   computed again from them, never added to;
2. writing one replaces the one under the same key; one without windows takes its place away;
3. counts, histograms, bins and embedding sums add; nothing is averaged. States (resources, outbox) are not merged;
4. every number and the size of every part is bounded (merge.py), whatever the devices sent.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement

_NS = 10**9


class Grain(StrEnum):
    """What a merged window is merged over."""

    DEVICE_HOUR = "device_hour"
    FLEET_MINUTE = "fleet_minute"
    FLEET_HOUR = "fleet_hour"

    @property
    def span_ns(self) -> int:
        """The length of a span."""
        return 60 * _NS if self is Grain.FLEET_MINUTE else 3_600 * _NS


class MergedKey(Struct, frozen=True, kw_only=True, order=True):
    """What a merged window is about. `device` is "" in the grains of the fleet, `cohort` "" in that of a device.

    A cohort's name is the device's label `cohort`, "" where it has none.
    """

    model: str
    version: str
    variant: str
    arm: str
    device: str = ""
    cohort: str = ""


class MergedWindow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sums over `windows` windows of `devices` devices. Sketches are in the wire's form, as in a window.

    `refused` are sketches and sums that could not be read, or have no place: they are in no sum. `device_hashes`, in
    the grains of the fleet, tell how many different devices several of these have together (device_count.py).
    """

    key: MergedKey
    start_ns: int
    windows: int = 0
    devices: int = 0
    first_end_ns: int = 0
    last_end_ns: int = 0
    count: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    latency: bytes = b""
    queue_wait: bytes = b""
    batch_sizes: dict[int, int] = field(default_factory=dict)
    features: dict[str, bytes] = field(default_factory=dict)
    classes: dict[int, int] = field(default_factory=dict)
    score: bytes = b""
    embedding_count: int = 0
    embedding_sums: bytes = b""
    shadow: ShadowAgreement | None = None
    outcomes: Outcomes | None = None
    estimated_accuracy: EstimatedAccuracy | None = None
    refused: int = 0
    device_hashes: bytes = b""
