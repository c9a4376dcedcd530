"""The version of edgefleet, as devices report it and bundles require it; the package takes its version from here."""

__version__ = "0.1.0"
AGENT_VERSION = __version__
