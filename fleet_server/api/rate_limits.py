"""How many requests a minute are answered: of an operator, of a device, and wrong credentials of an address.

The Generic Cell Rate Algorithm (ITU-T I.371, annex A) as a token bucket: one number per key, the time at which its
bucket will be full again; a minute's worth may come at once.

Invariants:
- a right credential is never refused for what others at the same address did: only wrong ones are counted and refused;
- a limit keeps at most MAX_KEYS keys and forgets the one that was asked about longest ago;
- 429 says when to come again (Retry-After), and each answer that a limit counted says what is left (RateLimit).
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from fleet_server.config import LimitsConfig
from fleet_server.errors import RateLimitedError

FAILED = "failed"
WINDOW_S = 60.0
MAX_KEYS = 20_000
"""About 3 MB for each limit, at most."""
_IPV6_PREFIX_BITS = 64
"""A network, not a machine, has an IPv6 address to itself: whoever holds one has 2^64 to come from."""
STATE = "edgefleet_rate_limit"
"""Where in a request's state the gate finds what to say about the limit."""
WRONG_CREDENTIAL = "edgefleet_wrong_credential"
"""Set in a request's state when its credential was wrong: over the limit, its answer waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a key stands after a request: how many more now, and in how many seconds all of them again."""

    name: str
    per_minute: int
    remaining: int
    reset_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers)."""
        policy = f'"{self.name}";q={self.per_minute};w={WINDOW_S:.0f}'
        standing = f'"{self.name}";r={self.remaining};t={math.ceil(self.reset_s)}'
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", standing.encode())]


class RateLimit:
    """One limit over many keys. Safe to use from several threads."""

    def __init__(
        self, *, name: str, per_minute: int, max_keys: int = MAX_KEYS, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._per_minute = per_minute
        self._interval_s = WINDOW_S / per_minute if per_minute else 0.0
        self._max_keys = max_keys
        self._now_s = now_s
        self._full_again_s: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many keys are kept."""
        return len(self._full_again_s)

    def take(self, key: str) -> Standing | None:
        """Count a request; None without a limit. Raises RateLimitedError."""
        if not self._per_minute:
            return None
        now = self._now_s()
        with self._lock:
            full_again = max(self._full_again_s.get(key, now), now) + self._interval_s
            over_s = full_again - now - WINDOW_S
            if over_s <= 1e-9:
                self._full_again_s[key] = full_again
            self._full_again_s.move_to_end(key)
            if len(self._full_again_s) > self._max_keys:
                self._full_again_s.popitem(last=False)
        if over_s > 1e-9:
            raise RateLimitedError(
                f"more than {self._per_minute} requests a minute ({self._name}): try again in {math.ceil(over_s)} s",
                retry_after_s=math.ceil(over_s),
            )
        return Standing(
            name=self._name,
            per_minute=self._per_minute,
            remaining=int(-over_s / self._interval_s + 1e-6),
            reset_s=full_again - now,
        )


class RateLimits:
    """The limits of `[limits]`."""

    def __init__(self, settings: LimitsConfig, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = {
            name: RateLimit(name=name, per_minute=per_minute, now_s=now_s)
            for name, per_minute in (
                ("operator", settings.operator_per_minute),
                (FAILED, settings.failed_per_minute),
                ("enrol", settings.enrol_per_minute),
                ("artifacts", settings.artifacts_per_minute),
            )
        }

    def take(self, request: Request, name: str, key: str) -> None:
        """Count the request under `key`. Raises RateLimitedError."""
        if name == FAILED:
            setattr(request.state, WRONG_CREDENTIAL, True)
        standing = self._limits[name].take(key)
        if standing is not None:
            setattr(request.state, STATE, standing)


def limits_of(request: Request) -> RateLimits:
    """The limits of the app that serves this request."""
    limits = request.app.state.rate_limits
    assert isinstance(limits, RateLimits)  # noqa: S101 - create_app put it there
    return limits


def limited(name: str) -> Callable[[Request], None]:
    """A dependency that counts a request under its address, for a route that anybody may call.

    `name` is one of `[limits]`: "enrol". It raises RateLimitedError.
    """

    def check(request: Request) -> None:
        limits_of(request).take(request, name, address_of(request))

    return check


def address_of(request: Request) -> str:
    """Where a request comes from: its IPv4 address, or its IPv6 network."""
    host = request.client.host if request.client else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_PREFIX_BITS), strict=False).network_address)
