"""Reads a policy file: JSON or YAML into plain values, before anybody looks at what it says.

Invariants:
1. a file is read only up to MAX_POLICY_BYTES, MAX_DEPTH and MAX_VALUES; an alias counts with all that it stands for,
   so that a few lines of YAML never become a billion values;
2. a key that is there twice is refused, in either form: which of two margins holds must not be a matter of luck;
3. YAML is read by the core schema of YAML 1.2: 22:00 and 2026-03-01 are texts, `no` is a text, and no tag makes an
   object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fleet_server.errors import ConfigError, InvalidRequestError

MAX_POLICY_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_VALUES = 20_000

_CORE_SCHEMA = (
    ("null", r"null|Null|NULL|~|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
)
"""YAML 1.2, 10.3.2: tag, expression, first characters. YAML 1.1 would read 22:00 as 1320."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the library's own way to name a schema

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"line {key.start_mark.line + 1}"
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key.value, str):
                raise InvalidRequestError(f"policy: {where}: a key is not a text; put it in quotes if it is meant so")
            if key.value in seen:
                raise InvalidRequestError(f"policy: {where}: `{key.value[:80]}` is there twice, keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


for _tag, _expression, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_expression})$"), list(_first))
# an empty plain scalar is null, and the library looks it up under ""
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def read_policy_file(path: Path) -> dict[str, Any]:
    """The object in a JSON or YAML file. Raises ConfigError, or InvalidRequestError for what is in it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
    is_json = path.suffix == ".json" or (path.suffix not in (".yaml", ".yml") and data.lstrip()[:1] == b"{")
    try:
        return read_json_object(data) if is_json else read_yaml_object(data)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path}: {error}") from None


def read_json_object(document: bytes | str) -> dict[str, Any]:
    """The object in a JSON text. Raises InvalidRequestError."""
    _check_size(document)
    try:
        return _plain(json.loads(document, object_pairs_hook=_without_repeats))
    except (ValueError, RecursionError) as error:  # a text that is not UTF-8 is a ValueError as well
        raise InvalidRequestError(f"policy: not JSON: {error}") from None


def read_yaml_object(document: bytes | str) -> dict[str, Any]:
    """The object in a YAML text. Raises InvalidRequestError."""
    _check_size(document)
    try:
        _check_events(document)
        return _plain(yaml.load(document, Loader=_Loader))  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidRequestError(f"policy: not YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"policy: not YAML: {' '.join(str(error).split())}") from None


def _check_size(document: bytes | str) -> None:
    if len(document) > MAX_POLICY_BYTES:
        raise InvalidRequestError(f"policy: {len(document)} bytes exceed the limit of {MAX_POLICY_BYTES}")


def _check_events(document: bytes | str) -> None:
    """Refuse what would be dear to build: depth, and merge keys, which copy where an alias only points."""
    depth = 0
    for event in yaml.parse(document, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequestError(f"policy: nested deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequestError(f"policy: `{name[:80]}` is there twice, keep one")
        found[name] = value
    return found


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"policy: an object is expected, not {type(value).__name__}")
    left = MAX_VALUES
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        left -= 1
        if left < 0:
            raise InvalidRequestError(f"policy: more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"policy: nested deeper than {MAX_DEPTH}")
        if isinstance(item, Mapping):
            waiting += [(each, depth + 1) for each in item.values()]
        elif isinstance(item, list):
            waiting += [(each, depth + 1) for each in item]
        elif not (item is None or isinstance(item, str | int | float)):
            raise InvalidRequestError(f"policy: a value of type {type(item).__name__} has no place in a policy")
    return value
