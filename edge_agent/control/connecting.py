"""Connections to the fleet's server: TLS against the CA that the config names, and through a proxy where the
environment names one.

`http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are read as curl and Python's urllib read them. Only http://
proxies are spoken to; for https the connection runs through the proxy's CONNECT, and the server's certificate is
checked still.
Modules that only a download needs are imported by the first one.
"""

from __future__ import annotations

import base64
import os
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    from ssl import SSLContext

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Connector:
    """Makes connections to `base_url`. Each is new: a download is one request on one connection."""

    def __init__(self, base_url: str, *, ca_file: Path | None = None) -> None:
        self.url, self.parts = base_url, urlsplit(base_url)
        self._host, self._ca_file = self.parts.hostname or "", ca_file

    def connection(self, *, timeout_s: float) -> tuple[HTTPConnection, str, dict[str, str]]:
        """(a connection that is not open yet, what stands before a path in a request, headers for the proxy).

        Raises ConfigError for a CA file or a proxy that cannot be used.
        """
        proxy = self._proxy()
        host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (self._host, self.parts.port)
        if self.parts.scheme != "https":
            if proxy is None:
                return HTTPConnection(host, port, timeout=timeout_s), "", {}
            return HTTPConnection(host, port, timeout=timeout_s), self._origin(), _authorisation(proxy)
        secure = HTTPSConnection(host, port, timeout=timeout_s, context=self._tls())
        if proxy is not None:
            secure.set_tunnel(self._host, self.parts.port or _DEFAULT_PORTS["https"], headers=_authorisation(proxy))
        return secure, "", {}

    def _origin(self) -> str:
        return f"{self.parts.scheme}://{self.parts.netloc.rpartition('@')[2]}"

    def _tls(self) -> SSLContext:
        import ssl

        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"server.ca_file {self._ca_file} holds no certificates: {error}") from None

    def _proxy(self) -> SplitResult | None:
        if not any(name.lower().endswith("_proxy") for name in os.environ):
            return None
        from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

        proxies = getproxies_environment()
        url = proxies.get(self.parts.scheme) or proxies.get("all")
        if not url or proxy_bypass_environment(f"{self._host}:{self.parts.port or ''}".rstrip(":"), proxies):
            return None
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(
                f"the proxy {parts.scheme}://{parts.hostname} is not spoken: use an http:// proxy, or no_proxy"
            )
        return parts


def _authorisation(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"}
