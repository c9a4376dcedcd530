"""The OpenAPI 3.1 document of the whole local API, made when /openapi.json is first asked for."""

from __future__ import annotations
