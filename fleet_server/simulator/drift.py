"""Drift to put into a simulation: what moves, by how much, from when, on which devices. Pure, and strict.

A plan is a list of drifts, from a file (`{"drifts": [...]}` in JSON or TOML) or in the short form
`KIND:name=value,name=value`, where a name that no drift has is a label to narrow it to:
`feature_shift:feature=brightness,by=0.8,site=lisbon,after_s=3600`.
Invariant: which devices a share takes depends on the seed, the drift's place in the plan and the device alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import blake2s
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from fleet_server.errors import InvalidRequestError

MAX_DRIFTS = 32
MAX_PLAN_BYTES = 64 * 1024
_NS = 10**9


class DriftKind(StrEnum):
    """What moves."""

    FEATURE_SHIFT = "feature_shift"
    FEATURE_NOISE = "feature_noise"
    CLASS_GONE = "class_gone"
    LESS_SURE = "less_sure"
    ACCURACY = "accuracy"
    EMBEDDING_SHIFT = "embedding_shift"


_OF_A_FEATURE = (DriftKind.FEATURE_SHIFT, DriftKind.FEATURE_NOISE)


class Drift(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that moves.

    `by` is in standard deviations of the reference: a shift of `feature`, noise added to it, a fall of the score, a
    move of the embedding's mean; for `accuracy` the share of answers that turn wrong, which the confidence shows where
    `known`; for `class_gone` the share of answers of `class_index` that go. It begins `after_s` of simulated time and
    takes `ramp_s` to its full size. `share` of the devices with all labels of `where` have it; `version` "" is any.
    """

    kind: DriftKind
    feature: str = ""
    class_index: int = 0
    by: float = 1.0
    known: bool = False
    after_s: float = 0.0
    ramp_s: float = 0.0
    share: float = 1.0
    where: dict[str, str] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        if (self.kind in _OF_A_FEATURE) != bool(self.feature):
            raise InvalidRequestError(
                f"drift {self.kind}: name its feature (feature=brightness)"
                if self.kind in _OF_A_FEATURE
                else f"drift {self.kind} has no feature: leave {self.feature!r} out"
            )
        for name in ("after_s", "ramp_s", "class_index"):
            if not 0 <= getattr(self, name) < 1e9:
                raise InvalidRequestError(f"drift {self.kind}: {name} is {getattr(self, name)}: use 0 or more")
        if not 0 < self.share <= 1:
            raise InvalidRequestError(f"drift {self.kind}: share is {self.share}: use more than 0, up to 1")
        lowest = -10.0 if self.kind in (DriftKind.FEATURE_SHIFT, DriftKind.EMBEDDING_SHIFT) else 0.0
        highest = 1.0 if self.kind in (DriftKind.ACCURACY, DriftKind.CLASS_GONE) else 10.0
        if not lowest <= self.by <= highest:
            raise InvalidRequestError(f"drift {self.kind}: by is {self.by}: use {lowest:g} to {highest:g}")

    def is_on(self, labels: Mapping[str, str], *, device: str, place: int, seed: int) -> bool:
        """Whether a device has it, as the plan's drift number `place`."""
        if any(labels.get(key) != value for key, value in self.where.items()):
            return False
        lot = blake2s(f"{seed}/{place}/{device}".encode(), digest_size=8).digest()
        return int.from_bytes(lot, "big") < self.share * 2.0**64

    def strengths(self, since_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """How far it has come, 0 to 1, at times `[n]` since the simulation's start."""
        past_s = since_ns / _NS - self.after_s
        if self.ramp_s == 0:
            return (past_s >= 0).astype(np.float64)
        return np.clip(past_s / self.ramp_s, 0.0, 1.0)


_FIELDS = frozenset(Drift.__struct_fields__) - {"kind", "where"}


class _Plan(Struct, frozen=True, forbid_unknown_fields=True):
    drifts: list[Drift]


def read_drifts(options: Sequence[str]) -> tuple[Drift, ...]:
    """The drifts of `--drift` options: files that end in .json or .toml, and short forms.

    Raises InvalidRequestError that says which option, what is wrong and how to write it.
    """
    drifts: list[Drift] = []
    for option in options:
        drifts += _from_file(Path(option)) if option.endswith((".json", ".toml")) else [_from_short_form(option)]
    if len(drifts) > MAX_DRIFTS:
        raise InvalidRequestError(f"{len(drifts)} drifts: a simulation takes up to {MAX_DRIFTS}")
    return tuple(drifts)


def _from_file(path: Path) -> list[Drift]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise InvalidRequestError(f"--drift {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_PLAN_BYTES:
        raise InvalidRequestError(f"--drift {path} is longer than {MAX_PLAN_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode()) if path.suffix == ".toml" else msgspec.json.decode(data)
        return msgspec.convert(document, _Plan).drifts
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"--drift {path}: {error}") from None


def _from_short_form(text: str) -> Drift:
    kind, _, rest = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    where: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InvalidRequestError(
                f"--drift {text!r}: {pair!r} is not name=value; use feature_shift:feature=brightness,by=0.8,site=lisbon"
            )
        (values if name in _FIELDS else where)[name] = value
    try:
        return msgspec.convert({**values, "where": where}, Drift, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"--drift {text!r}: {error}") from None
