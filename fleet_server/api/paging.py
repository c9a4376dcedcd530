"""Lists come in pages: `limit` and `cursor` in, `items` and `next_cursor` out.

A cursor is the last item's key, in an opaque form; it stays good while items come and go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Query

from fleet_server.errors import InvalidRequestError

MAX_PAGE_ITEMS = 500
MAX_CURSOR_CHARS = 512
T = TypeVar("T")


class Page:
    """What part of a list is asked for; `after` is "" for its start."""

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS)] = 100,
        cursor: Annotated[str, Query(max_length=MAX_CURSOR_CHARS)] = "",
    ) -> None:
        self.limit = limit
        self.after = _decode(cursor)

    def at_most(self, limit: int) -> Page:
        """The same page with no more than `limit` items."""
        return Page(min(self.limit, limit), _encode(self.after) if self.after else "")

    def answer(self, found: Sequence[T], key: Callable[[T], str]) -> dict[str, Any]:
        """A page of plain JSON. `found` holds up to `limit` + 1 items: the one too many tells that there are more."""
        items = found[: self.limit]
        more = len(found) > self.limit
        return {
            "items": msgspec.to_builtins(list(items)),
            "next_cursor": _encode(key(items[-1])) if more and items else None,
        }


PageOf = Annotated[Page, Depends()]


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidRequestError("the cursor is not one of this server: start again without it") from None
