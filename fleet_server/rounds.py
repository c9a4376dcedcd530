"""Work that the server does again and again, each in a thread of its own.

Invariant: no error ends it. A store or database that is away is waited for and told in one line; a fault of ours is
logged with its trace, and the next round begins as ever.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from fleet_server.errors import UnavailableError

_LOG = logging.getLogger(__name__)


def start_rounds(
    name: str,
    step: Callable[[], object],
    *,
    every_s: float,
    stop: threading.Event,
    at_end: Callable[[], object] | None = None,
) -> threading.Thread:
    """Call `step` until `stop` is set, at once again when it answers True, else after `every_s`; then `at_end`."""

    def run() -> None:
        wait_s = 0.0
        while not stop.wait(wait_s):
            wait_s = 0.0 if _attempt(name, step) else every_s
        if at_end is not None:
            _attempt(name, at_end)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _attempt(name: str, step: Callable[[], object]) -> bool:
    try:
        return step() is True
    except (SQLAlchemyError, UnavailableError) as error:
        _LOG.warning("%s waits, nothing is lost: %s", name, str(error).splitlines()[0])
    except Exception:  # noqa: BLE001 - an ended thread would be a server that stands still and says nothing
        _LOG.exception("%s failed in one round; it goes on with the next", name)
    return False
