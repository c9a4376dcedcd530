"""Setting single values in a TOML file that people wrote, so that every other line of it stays as it is.

The text is edited line by line, and the result is parsed: when it is not exactly the old data with the one change,
nothing is written and a ConfigError says what to do by hand.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.durable_files import replace_file
from edge_agent.errors import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024
Value = int | str


def write_values(path: Path, values: Mapping[tuple[str, ...], Value]) -> None:
    """Set `values`, each by its full path such as ("runtime", "threads"), in the TOML file; atomic.

    Raises ConfigError for a file that cannot be read, written, or edited in this way.
    """
    file = path.resolve()  # a link stays a link
    try:
        content = file.read_bytes()
        mode = file.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    for where, value in values.items():
        text = with_value(text, where, value, name=str(path))
    try:
        replace_file(file, text.encode())
        file.chmod(mode & 0o7777)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the config file: {error.strerror}") from None


def with_value(text: str, where: tuple[str, ...], value: Value, *, name: str = "the file") -> str:
    """`text` with one value set. `where` is the tables' names and the key. Raises ConfigError."""
    wanted = _changed(_parse(text, name), where, value, name)
    for edited in _edits(text, where, value):
        try:
            if tomllib.loads(edited) == wanted:
                return edited
        except ValueError:
            continue
    table, line = ".".join(where[:-1]), _line(where[-1], value)
    raise ConfigError(f"{name}: cannot set {'.'.join(where)} without rewriting the file: put {line} into [{table}]")


def _edits(text: str, where: tuple[str, ...], value: Value) -> list[str]:
    """The texts that may be the wanted one, the likeliest first."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    header = re.compile(r"\s*\[\s*" + r"\s*\.\s*".join(_name(part) for part in where[:-1]) + r"\s*\]\s*(#.*)?$")
    key = re.compile(rf"(\s*{_name(where[-1])}\s*=\s*)(\"[^\"]*\"|'[^']*'|[^#\s]*)(\s*(?:#.*)?)$")
    edits = []
    for at, line in enumerate(lines):
        if not header.match(line.rstrip("\r\n")):
            continue
        for inside in range(at + 1, len(lines)):
            bare = lines[inside].rstrip("\r\n")
            if bare.lstrip().startswith("["):
                break
            if found := key.match(bare):
                changed = f"{found[1]}{_literal(value)}{found[3]}{newline}"
                edits.append("".join([*lines[:inside], changed, *lines[inside + 1 :]]))
        ended = line if line.endswith("\n") else line + newline
        edits.append("".join([*lines[:at], ended, _line(where[-1], value) + newline, *lines[at + 1 :]]))
    before = text if not text or text.endswith("\n") else text + newline
    table = ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in where[:-1])
    gap = newline if before else ""
    edits.append(f"{before}{gap}[{table}]{newline}{_line(where[-1], value)}{newline}")
    return edits


def _changed(data: dict[str, Any], where: tuple[str, ...], value: Value, name: str) -> dict[str, Any]:
    head, *rest = where
    if not rest:
        return {**data, head: value}
    inner = data.get(head, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"{name}: {head} is not a table")
    return {**data, head: _changed(inner, tuple(rest), value, name)}


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None


def _name(part: str) -> str:
    plain = re.escape(part)
    return rf"(?:{plain}|\"{plain}\"|'{plain}')"


def _line(key: str, value: Value) -> str:
    return f"{key} = {_literal(value)}"


def _literal(value: Value) -> str:
    # JSON's strings without escapes of non-ASCII are TOML's basic strings
    return json.dumps(value, ensure_ascii=False)
