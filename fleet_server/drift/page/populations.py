"""What was compared with what, side by side and in a few words."""

from __future__ import annotations

from collections.abc import Iterator

from fleet_server.drift.findings import DriftReport, Population
from fleet_server.drift.page import words
from fleet_server.drift.page.blocks import head, note, section, table
from fleet_server.drift.page.markup import Child, Markup, element, joined, short


def name_of(expected: Population, seen: Population) -> str:
    """What something is held against, in a word or two: "the reference", "version 1.0.0", "the same hours before"."""
    if expected.is_reference:
        return "the reference"
    if expected.same_hours:
        return "the same hours before"
    if expected.version and expected.version != seen.version:
        return f"version {short(expected.version, most=24)}"
    for name, here, there in _narrowed(expected, seen):
        if here and here != there:
            return short(here, most=24) if name != "device" else f"device {short(here, most=24)}"
    if (expected.start_ns, expected.end_ns) != (seen.start_ns, seen.end_ns):
        if expected.end_ns > seen.start_ns:
            return "the other time"
        return "the week before" if expected.end_ns - expected.start_ns == 7 * words.DAY_NS else "the time before"
    if seen.device and not expected.device:
        return "the other devices"
    return "the other side"


def compared(report: DriftReport, *, anchor: str) -> Markup:
    """The section that says what both sides are."""
    seen, expected = report.seen, report.expected
    rows = [
        element("tr", element("th", name, scope="row"), element("td", first), element("td", second))
        for name, first, second in (
            ("model", _version(seen), _version(expected)),
            ("which", _which(seen), _which(expected) if report.signals else _nothing(expected)),
            ("time", _time(seen), _time(expected)),
            ("devices", _count(seen.devices, seen), _count(expected.devices, expected)),
            ("windows", _count(seen.windows, seen), _count(expected.windows, expected)),
            ("values", f"{seen.values:,}", f"{expected.values:,}" if expected.values else words.NONE),
        )
    ]
    heads = [head(""), head("seen"), head(f"compared with: {name_of(expected, seen)}")]
    sides = table(heads, rows, caption="Both sides of the comparison", look="sides")
    pairing = f"{report.pairing[:1].upper()}{report.pairing[1:].removesuffix('.')}." if report.pairing else None
    return section(anchor, "What was compared", pairing, joined(_cautions(report)), sides)


def _cautions(report: DriftReport) -> Iterator[Markup]:
    if report.devices_sampled_of:
        yield note(
            "Note",
            f"A sample was read: {words.of(report.seen.devices, report.devices_sampled_of)} devices. What is said of "
            "devices is said of these.",
        )
    if report.read_from != "windows":
        yield note("Note", f"Read from {short(report.read_from)}: the span is whole hours.")
    if report.windows_truncated:
        yield note(
            "Note",
            f"Not all of the span was read: {words.plural(report.windows, 'window')} stand for it. "
            "Ask for a shorter span, or for fewer devices, to see all of one.",
        )


def _version(side: Population) -> Child:
    return f"{short(side.model, most=80)} {short(side.version) or '(any version)'}".strip()


def _which(side: Population) -> Child:
    if side.is_reference:
        return "the training data that the bundle carries"
    said = [f"{name} {short(value)}" for name, value, _ in _narrowed(side, side) if value]
    return ", ".join(said) or "all devices"


def _nothing(side: Population) -> Child:
    return "the bundle carries no reference" if side.is_reference else _which(side)


def _narrowed(side: Population, other: Population) -> list[tuple[str, str, str]]:
    return [
        ("device", side.device, other.device),
        ("selector", side.selector, other.selector),
        ("arm", side.arm, other.arm),
        ("variant", side.variant, other.variant),
    ]


def _time(side: Population) -> Child:
    if side.is_reference:
        return "when the model was made"
    if not side.end_ns:
        return words.NONE
    said = words.span(side.start_ns, side.end_ns)
    return f"{said}, the same hours of the week" if side.same_hours else said


def _count(value: int, side: Population) -> Child:
    return words.NONE if side.is_reference else f"{value:,}"
