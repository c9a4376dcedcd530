"""What every section of the page is made of."""

from __future__ import annotations

from quantize.report.markup import Child, Markup, element


def section(anchor: str, title: str, said: str, *children: Child) -> Markup:
    """A titled section that links can lead to, with a few words before its content."""
    return element(
        "section", element("h2", title), element("p", said, class_="soft") if said else None, *children, id=anchor
    )


def key(look: str, text: str) -> Markup:
    """One entry of a legend: a mark that looks like `look`, and its meaning."""
    if look.startswith("column"):
        mark = element("rect", x=2, y=2, width=12, height=12, class_=look)
    else:
        mark = element("circle", cx=8, cy=8, r=6, class_=look)
    return element("li", element("svg", mark, viewBox="0 0 16 16", aria_hidden="true"), text)
