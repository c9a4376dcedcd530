"""Where labels go beside their points: pure geometry, the first labels first, none over another one or off the page.

A label that finds no free place is left out; its point keeps its tooltip and its row in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHAR_WIDTH = 6.9
"""The width of a character of a label in units of the drawing, on the generous side."""
LINE_HEIGHT = 15.0


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two have a common area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def is_within(self, other: Box) -> bool:
        """Whether this lies inside of the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A point that wants a label: its centre, its radius, the text."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A label's text, from `box.left`, and whether a line must lead to its point."""

    anchor: Anchor
    box: Box
    is_far: bool


def place(anchors: Sequence[Anchor], frame: Box, taken: Sequence[Box] = ()) -> list[Placed]:
    """A free place inside `frame` for each label, near its point if it can be, clear of the boxes that are `taken`."""
    placed: list[Placed] = []
    filled = list(taken)
    for anchor in anchors:
        found = next(
            (
                (box, is_far)
                for box, is_far in _places(anchor)
                if box.is_within(frame) and not any(box.overlaps(other) for other in filled)
            ),
            None,
        )
        if found is not None:
            filled.append(found[0])
            placed.append(Placed(anchor=anchor, box=found[0], is_far=found[1]))
    return placed


def _places(anchor: Anchor) -> list[tuple[Box, bool]]:
    width = len(anchor.text) * CHAR_WIDTH + 6
    x, y, gap = anchor.x, anchor.y, anchor.radius + 4
    half = LINE_HEIGHT / 2
    places = [
        (_box(x - width / 2, y - gap - LINE_HEIGHT, width), False),
        (_box(x - width / 2, y + gap, width), False),
        (_box(x + gap, y - half, width), False),
        (_box(x - gap - width, y - half, width), False),
    ]
    for distance in (2, 3, 4, 5, 6, 8, 10, 12):
        rise = distance * LINE_HEIGHT
        for shift in (0.0, 0.5, -0.5, 0.9, -0.9):
            left = x - width / 2 + shift * width
            places += [
                (_box(left, y - gap - rise, width), True),
                (_box(left, y + gap + rise - LINE_HEIGHT, width), True),
            ]
    return places


def _box(left: float, top: float, width: float) -> Box:
    return Box(left=left, top=top, right=left + width, bottom=top + LINE_HEIGHT)
