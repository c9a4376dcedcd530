"""The sockets the local API listens on: a TCP address, a Unix socket, or both.

Invariants: an address that is taken is one ConfigError, and whatever else was opened is closed again; a
Unix socket is never open to more users than asked, not for a moment; a socket file that a crash left
behind is replaced, one that somebody answers on is not.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from edge_agent.errors import ConfigError

BACKLOG = 256
"""Connections the kernel holds for us before they are accepted."""
_PROBE_TIMEOUT_S = 1.0


def listen_tcp(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes a free one. Raises ConfigError."""
    if not 0 <= port <= 65_535:
        raise ConfigError(f"http port {port} does not exist: use 0 (any free one) to 65535")
    try:
        # Python loads its tables of international names for any text, but not for bytes
        name = host.encode() if host.isascii() else host
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"http address {host}:{port} is in use: choose another port, or stop the process that has it"
            ) from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot listen on http address {host}:{port}: {reason}") from None


def listen_unix(path: Path, *, mode: int) -> socket.socket:
    """A bound Unix socket that only listens once its file has `mode`. Raises ConfigError."""
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # nobody can connect between bind and listen, so the mode is right before the first connection
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on socket {path}: {error.strerror or error}") from None
    return listener


def remove_socket(path: Path, *, inode: int) -> None:
    """Remove our socket file, unless another process has put its own in the place."""
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except OSError:
        return  # gone already, or its folder is: nothing of ours is left


def _clear_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing there; a missing folder is told by bind
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket {path} is a file of another kind: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        refused = probe.connect_ex(os.fspath(path))
    if refused == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif refused != errno.ENOENT:
        raise ConfigError(f"socket {path} is in use by another process: stop it, or choose another path")
