"""Libraries that only some files need: the light agent does without, so they come with an extra."""

from __future__ import annotations

import importlib
from typing import Any

from edge_agent.errors import ConfigError

INSTALL = "pip install 'edgefleet[batch]'"
_PACKAGES = {"pyarrow": "Parquet files", "PIL": "images"}


def library(name: str) -> Any:
    """The module `name` of the extra. Raises ConfigError, one line, that says how to install it."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{_PACKAGES[package]} need {package}, which is not installed: {INSTALL}") from None
