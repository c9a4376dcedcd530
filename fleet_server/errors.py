"""Every error the fleet server raises. The second level says who must act.

`retryable` tells whether the same call may succeed later without anybody changing anything; the API
turns each class into one problem type.
"""

from __future__ import annotations


class FleetError(Exception):
    """The root of every error the fleet server raises on purpose."""

    retryable = False


class UserError(FleetError):
    """The caller must change the request."""


class InvalidRequestError(UserError):
    """A request, policy or setting is malformed; the message says where."""


class ConfigError(UserError):
    """A setting of the server or the CLI is unknown, of the wrong type, or names a missing file."""


class NotFoundError(UserError):
    """The named thing does not exist."""


class ConflictError(UserError):
    """The thing exists already, or its state does not allow this."""


class UnauthorizedError(UserError):
    """No valid credential was given."""


class ForbiddenError(UserError):
    """The credential does not allow this."""


class UntrustedBundleError(UserError):
    """A bundle's signatures or digests do not hold."""


class UnavailableError(FleetError):
    """A part the server needs is away; try again."""

    retryable = True


class RateLimitedError(UnavailableError):
    """Too many requests: the same one passes after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailableError(UnavailableError):
    """The telemetry store did not take or give data."""


class BusUnavailableError(UnavailableError):
    """The MQTT broker is away."""
