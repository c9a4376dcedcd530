"""Who a policy means: a pure function of the policy and of what is known about a device.

Invariants:
1. a device that never reported is not selected: it could not answer, and nothing is known about it;
2. a condition on what a device reports holds only for a value that was reported and can be read;
3. an exclusion outranks the selector.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct, field

from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name
from fleet_server.registry.catalogue import version_precedence
from fleet_server.rollouts.policy import RolloutPolicy, Selector

_WILD = frozenset("*?[")


class DeviceFacts(Struct, frozen=True, kw_only=True, gc=False):
    """What is known about a device. `runs` is the active version of the model that is rolled out, "" for none.

    `hardware` is the class by which cohorts are stratified, usually the CPU signature.
    """

    device: str
    labels: Mapping[str, str] = field(default_factory=dict)
    cpu_signature: str = ""
    agent_version: str = ""
    runs: str = ""
    online: bool = False
    has_reported: bool = False
    time_zone: str = ""
    hardware: str = ""


class LeftOut(StrEnum):
    """Why a device is not part of a rollout."""

    NEVER_REPORTED = "never reported"
    NOT_SELECTED = "not selected"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The devices of a rollout, and how many are left out for which reason."""

    devices: Sequence[DeviceFacts]
    left_out: Mapping[LeftOut, int]


def selects(selector: Selector, facts: DeviceFacts) -> bool:
    """Whether everything that `selector` names holds for the device."""
    return all(condition(facts) for condition in _conditions(selector))


def why_left_out(policy: RolloutPolicy, facts: DeviceFacts) -> LeftOut | None:
    """Why the device is no part of the policy's rollout; None when it is part of it."""
    return _judge(policy)(facts)


def selected(policy: RolloutPolicy, facts: DeviceFacts) -> bool:
    """Whether the device is part of the policy's rollout."""
    return _judge(policy)(facts) is None


def select_devices(policy: RolloutPolicy, fleet: Iterable[DeviceFacts]) -> Selection:
    """The devices of `fleet` that are part of the rollout, in their order, and the rest counted by reason."""
    judge = _judge(policy)
    left_out: Counter[LeftOut] = Counter()
    kept = []
    for facts in fleet:
        reason = judge(facts)
        if reason is None:
            kept.append(facts)
        else:
            left_out[reason] += 1
    return Selection(devices=kept, left_out=dict(left_out))


Condition = Callable[[DeviceFacts], bool]


def _judge(policy: RolloutPolicy) -> Callable[[DeviceFacts], LeftOut | None]:
    wanted = _conditions(policy.selector)
    unwanted = [_conditions(selector) for selector in policy.exclude]

    def judge(facts: DeviceFacts) -> LeftOut | None:
        if not facts.has_reported:
            return LeftOut.NEVER_REPORTED
        if not all(condition(facts) for condition in wanted):
            return LeftOut.NOT_SELECTED
        if any(all(condition(facts) for condition in each) for each in unwanted):
            return LeftOut.EXCLUDED
        return None

    return judge


def _conditions(selector: Selector) -> list[Condition]:
    found: list[Condition] = []
    if selector.labels:
        found.append(lambda facts: selector.matches(facts.labels))
    if selector.devices:
        is_named = _pattern(tuple(selector.devices))
        found.append(lambda facts: is_named(facts.device))
    if selector.cpu:
        is_cpu = _pattern(tuple(selector.cpu))
        found.append(lambda facts: facts.cpu_signature != "" and is_cpu(facts.cpu_signature))
    if selector.runs:
        versions = frozenset(selector.runs)
        found.append(lambda facts: facts.has_reported and facts.runs in versions)
    if selector.min_agent_version:
        least = version_precedence(selector.min_agent_version)
        found.append(lambda facts: _is_at_least(facts.agent_version, least))
    if selector.online is not None:
        found.append(lambda facts: facts.online is selector.online)
    return found


@lru_cache(maxsize=256)
def _pattern(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a text matches one of the shell `patterns`, told by one lookup and one expression, however many."""
    exact = frozenset(pattern for pattern in patterns if not _WILD & set(pattern))
    wild = [fnmatch.translate(pattern) for pattern in patterns if pattern not in exact]
    expression = re.compile("|".join(wild)) if wild else None
    return lambda text: text in exact or (expression is not None and expression.match(text) is not None)


def _is_at_least(version: str, least: tuple[object, ...]) -> bool:
    precedence = _precedence(version)
    return precedence is not None and precedence >= least


@lru_cache(maxsize=1024)
def _precedence(version: str) -> tuple[object, ...] | None:
    try:
        return version_precedence(check_name("version", version))
    except InvalidName:  # an agent says what it likes; what cannot be read is no version
        return None
