"""Hypothesis strategies for every message, built from the message types themselves.

A field's own constraints (pattern, range, length) make its strategy, so a new field is covered by existing.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Annotated, Any

import msgspec
from hypothesis import strategies as st

from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Desired, Event, Message, Presence, Reported, Stored, Window

MESSAGES: tuple[type[Message], ...] = (Window, Event, Presence, Reported, Desired, Stored)
_MAX_ITEMS = 4  # enough to see an order or a mix-up; more only slows the search


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Valid messages of one kind."""
    built = _structs(kind, schema=1)
    return built.filter(lambda window: window.end_ns >= window.start_ns) if kind is Window else built


def manifests() -> st.SearchStrategy[Manifest]:
    """Valid manifests."""
    return _structs(Manifest, schema=1)


def _structs(kind: type[Any], **fixed: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {
        entry.name: st.just(fixed[entry.name]) if entry.name in fixed else _values(hints[entry.name])
        for entry in msgspec.structs.fields(kind)
    }
    if kind is Window:  # an ordered span by construction: half of all random pairs would be thrown away
        fields["start_ns"] = st.integers(0, 10**18)
        fields["end_ns"] = st.integers(10**18, 2 * 10**18)
    return st.builds(kind, **fields)


def _values(kind: Any, meta: msgspec.Meta | None = None) -> st.SearchStrategy[Any]:  # noqa: PLR0912 - one case per type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _values(arguments[0], arguments[1])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_values(argument) for argument in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    least = (meta and meta.min_length) or 0
    most = max(least, min((meta and meta.max_length) or _MAX_ITEMS, _MAX_ITEMS))
    if origin is list:
        return st.lists(_values(arguments[0]), min_size=least, max_size=most)
    if origin is dict:
        return st.dictionaries(_values(arguments[0]), _values(arguments[1]), min_size=least, max_size=most)
    if origin is tuple:
        return st.tuples(*[_values(argument) for argument in arguments])
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        low = meta.ge if meta and meta.ge is not None else -(2**63)
        high = meta.le if meta and meta.le is not None else 2**63 - 1
        return st.integers(int(low), int(high))
    if kind is float:
        low = None if meta is None else meta.ge if meta.ge is not None else meta.gt
        return st.floats(
            min_value=low,
            max_value=meta.le if meta else None,
            exclude_min=bool(meta and meta.gt is not None),
            allow_nan=False,
            allow_infinity=False,
        )
    if kind is str:
        if meta and meta.pattern:
            return st.from_regex(meta.pattern)
        # lone surrogates are no text: neither encoding can carry them
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    if kind is bytes:
        return st.binary(max_size=32)
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    return _structs(kind)
