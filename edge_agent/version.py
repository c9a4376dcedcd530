"""The agent's own version, as devices report it and bundles require it."""

from importlib.metadata import PackageNotFoundError, version

try:
    AGENT_VERSION = version("edgefleet")
except PackageNotFoundError:  # run from a source tree that was never installed
    AGENT_VERSION = "0.1.0"
