"""One JSON question to the fleet server, with a bounded answer."""

from __future__ import annotations

import json
import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_agent.config import check_server_url
from edge_agent.errors import ConfigError, EnrolmentRefusedError, ServerAwayError

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 256 * 1024
_TRY_AGAIN = (429, 500, 502, 503, 504)


def ask(
    url: str, path: str, body: dict[str, Any], *, authorization: str, ca_file: Path | None = None
) -> dict[str, Any]:
    """POST `body` to the server at `url`; returns the JSON object it answers.

    Raises ServerAwayError when asking again may help, EnrolmentRefusedError with the server's words when it does not,
    ConfigError for a url or CA file that cannot be used.
    """
    check_server_url(url)
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: HTTPConnection
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except OSError as error:
            raise ConfigError(f"the CA file {ca_file} cannot be used: {error.strerror or error}") from None
        connection = HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=context)
    else:
        connection = HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    headers = {"Authorization": authorization, "Content-Type": "application/json", "Accept": "application/json"}
    try:
        connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        raise EnrolmentRefusedError(
            f"the certificate of {url} is not trusted here ({error.verify_message}): give its CA with --ca-file"
        ) from None
    except (OSError, HTTPException, socket.gaierror) as error:
        raise ServerAwayError(f"the fleet server at {url} does not answer: {error or type(error).__name__}") from None
    finally:
        connection.close()
    said = _object(answer)
    if response.status in (200, 201) and said is not None and len(answer) <= MAX_ANSWER_BYTES:
        return said
    detail = (said or {}).get("detail")
    text = detail[:500] if isinstance(detail, str) and detail.isprintable() else f"it answered {response.status}"
    if response.status in _TRY_AGAIN:
        raise ServerAwayError(f"the fleet server at {url} cannot do it now: {text}")
    raise EnrolmentRefusedError(f"the fleet server at {url} refused: {text}")


def _object(answer: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
