"""What every section of the server's settings is: frozen, named fields, and an unknown one is refused."""

from __future__ import annotations

from msgspec import Struct


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the TOML file."""
