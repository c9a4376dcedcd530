"""The names in paths, as types FastAPI checks: what does not have the form never reaches a handler."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

DeviceInPath = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9_-]{0,63}$", description="a device's id")]
ModelInPath = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="a model's name")]
VersionInPath = Annotated[str, Path(pattern="^[0-9A-Za-z.-]{1,80}$", description="a semantic version")]
DigestInPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="a file's SHA-256")]
IdInPath = Annotated[str, Path(pattern="^[0-9A-Za-z_-]{1,32}$", description="an id")]
