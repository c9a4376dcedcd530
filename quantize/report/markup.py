"""HTML and SVG as balanced, escaped text.

Names in a report come from users' models. Whatever is a plain `str` is escaped here, and only here; `Markup` is text
that already is markup, and only `element` makes it. So a page cannot be unbalanced, and a name cannot become a tag.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

VOID = frozenset({"meta", "br", "hr"})
MAX_NAME_CHARS = 300


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable[str] | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """One element. An attribute's last `_` is dropped, other `_` become `-`; None leaves an attribute or child out."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


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
    """`text` with everything invisible spelled out: control characters and those that reorder text or join letters."""
    return "".join(_spelled(char) if unicodedata.category(char) in _INVISIBLE else char for char in text)


def one_line(text: str, *, most: int = MAX_NAME_CHARS) -> str:
    """`text` without line breaks, at most `most` characters long: its middle is left out."""
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    half = (most - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _spelled(char: str) -> str:
    return char if char in "\n\t" else f"\\u{ord(char):04x}"


def _attribute(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(visible(str(value)))
