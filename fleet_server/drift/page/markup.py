"""HTML and SVG as balanced, escaped text.

Invariant: whatever is a plain `str` is escaped here and only here, for names come from models and devices; `Markup` is
text that is markup already, and beside the page's own style and script only `element` and `joined` make it. So a page
is balanced, and a name cannot become a tag, hide a line or reorder one.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

MAX_NAME_CHARS = 200
_VOID = frozenset({"meta", "col"})
_KEPT = frozenset("\n\t")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable[str] | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """One element: an attribute loses a last `_`, other `_` become `-`; a child or attribute that is None is left out.

    Numbers are written with at most two decimals.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>" if tag in _VOID else f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: Child) -> Markup:
    """The children one after another, each escaped unless it is markup."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(visible(child)))
        elif child is not None:
            parts += [joined(one) for one in child]
    return Markup("".join(parts))


def visible(text: str) -> str:
    """`text` with control characters, and those that reorder or join letters, spelled out."""
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char)[0] == "C" and char not in _KEPT else char for char in text
    )


def short(text: str, *, most: int = MAX_NAME_CHARS) -> str:
    """`text` on one line, `most` characters at most: its middle is left out, for long names differ at their ends."""
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    front = most // 3
    return f"{line[:front]}…{line[len(line) - (most - 1 - front) :]}"


def _value(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(visible(str(value)))
