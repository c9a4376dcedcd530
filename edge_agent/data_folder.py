"""One agent per data folder: what two would write there at once, neither could rely on.

The lock is the kernel's and goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from edge_agent.errors import ConfigError

_LOG = logging.getLogger(__name__)
_LOCK_FILE = "agent.lock"


class DataFolder:
    """Holds `folder`, which is made where it is missing, until `close`. Raises ConfigError."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"data_dir {folder} cannot be used: {error.strerror or error}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ConfigError(
                f"data_dir {folder} is in use by another agent: end that one, or give each a data_dir of its own"
            ) from None
        except OSError as error:  # a file system without locks: the operator's care has to do
            _LOG.warning("data_dir %s cannot be locked against a second agent: %s", folder, error.strerror)

    def close(self) -> None:
        """Let another agent have it."""
        os.close(self._descriptor)
