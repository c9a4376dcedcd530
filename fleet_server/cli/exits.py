"""From an error to a line on standard error and an exit code; the codes are listed in `fleet_server.cli`."""

from __future__ import annotations

import logging
import sys

import msgspec

from fleet_protocol.errors import InvalidName, KeyFileError, ProtocolError
from fleet_server.cli.output import printable
from fleet_server.errors import (
    ConfigError,
    FleetError,
    ForbiddenError,
    InvalidRequestError,
    UnauthorizedError,
    UnavailableError,
)

FAILED, USAGE, AWAY, NOT_ALLOWED, INTERRUPTED = 1, 2, 3, 4, 130

_LOG = logging.getLogger(__name__)


def exit_code_of(error: Exception) -> int:
    """The exit code an error stands for."""
    if isinstance(error, ConfigError | InvalidRequestError | KeyFileError | InvalidName):
        return USAGE
    if isinstance(error, UnavailableError):
        return AWAY
    if isinstance(error, UnauthorizedError | ForbiddenError):
        return NOT_ALLOWED
    return FAILED


def report_error(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong, in one line; returns the exit code."""
    code = exit_code_of(error)
    if isinstance(error, FleetError | ProtocolError | OSError):
        message = str(error)
    else:
        message = f"a fault of this command: {type(error).__name__}: {error}"
        _LOG.debug("the fault", exc_info=error)
    message = printable(" ".join(message.split()))
    line = msgspec.json.encode({"error": message, "exit_code": code}).decode() if as_json else f"error: {message}"
    sys.stderr.write(line + "\n")
    return code
