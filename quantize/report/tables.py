"""Tables of a page: cells that know their unit and how they sort, and bars inside of cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantize.report import words
from quantize.report.markup import Child, Markup, element, one_line

Row = tuple[Sequence[Markup], str | None]
"""A row's cells, and its class."""


def table(
    heads: Sequence[Child], rows: Iterable[Row], *, numbers: Sequence[int] = (), sortable: bool = False
) -> Markup:
    """A table in a frame that scrolls sideways where the page is narrow; the columns `numbers` are set to the right."""
    looks = ["n" if place in numbers else None for place in range(len(heads))]
    head = [element("th", one, class_=look, scope="col") for one, look in zip(heads, looks, strict=True)]
    body = [element("tr", *cells, class_=look) for cells, look in rows]
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *head)),
            element("tbody", *body),
            class_="sortable" if sortable else None,
        ),
        class_="scroll",
    )


def text_cell(*children: Child, look: str | None = None) -> Markup:
    """A cell of text, sorted by it."""
    return element("td", *children, class_=look)


def number_cell(text: str, value: float | None, *, below: Child = None, hint: str | None = None) -> Markup:
    """A number with its unit, sorted by its value; the sign for "not measured" where there is none."""
    if value is None or not words.is_known(value):
        return element("td", words.NOT_MEASURED, class_="n none", data_v="")
    return element("td", text, below, class_="n", data_v=f"{value:.12g}", title=hint)


def bar_cell(text: str, value: float | None, share: float, *, look: str) -> Markup:
    """A bar that fills `share` (0 to 1) of the cell, with its number."""
    if value is None or not words.is_known(value):
        return element("td", words.NOT_MEASURED, class_="bar none", data_v="")
    fill = element("i", class_=look, style=f"left:0;width:{100 * min(1.0, max(0.0, share)):.1f}%")
    return _bar(text, value, element("span", fill, class_="track"))


def difference_cell(text: str, value: float | None, share: float) -> Markup:
    """A bar from the cell's middle, to the left for a loss; `share` is -1 to 1."""
    if value is None or not words.is_known(value):
        return element("td", words.NOT_MEASURED, class_="bar none", data_v="")
    width = 50 * min(1.0, abs(share))
    left = 50 - width if share < 0 else 50.0
    fill = element("i", class_="less" if share < 0 else "more", style=f"left:{left:.1f}%;width:{width:.1f}%")
    track = element("span", fill if share else None, class_="track middle")
    return _bar(text, value, track)


def name_cell(name: str) -> Markup:
    """A name from a model: it may be long, so that it shows two lines and the rest on demand."""
    line = one_line(name)
    return element("td", element("span", line, class_="clamp", title=line), class_="name-cell")


def _bar(text: str, value: float, track: Markup) -> Markup:
    return element("td", element("div", element("b", text), track), class_="bar", data_v=f"{value:.12g}")
