"""What the doctor found, and how it is told: each finding has a grade, a fact and, unless all is well, what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec import Struct

MAX_COLUMNS = 100
_GRADE_COLUMNS = 5
_TOPIC_COLUMNS = 14


class Grade(StrEnum):
    """OK needs nothing, WARN costs speed or safety, FAIL keeps something from working."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One look at one thing. `advice` is empty only for what is OK."""

    grade: Grade
    topic: str
    fact: str
    advice: str = ""


def ok(topic: str, fact: str) -> Finding:
    """A finding that needs nothing."""
    return Finding(grade=Grade.OK, topic=topic, fact=fact)


def warn(topic: str, fact: str, advice: str) -> Finding:
    """A finding that costs speed or safety."""
    return Finding(grade=Grade.WARN, topic=topic, fact=fact, advice=advice)


def fail(topic: str, fact: str, advice: str) -> Finding:
    """A finding that keeps something from working."""
    return Finding(grade=Grade.FAIL, topic=topic, fact=fact, advice=advice)


def any_failed(findings: Sequence[Finding]) -> bool:
    """Whether something keeps the agent from working."""
    return any(finding.grade is Grade.FAIL for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a person, in lines of at most MAX_COLUMNS, with a summary at the end."""
    lines: list[str] = []
    for finding in findings:
        head = f"{finding.grade.value:<{_GRADE_COLUMNS}}{finding.topic:<{_TOPIC_COLUMNS}}"
        lines += _wrapped(head, finding.fact)
        if finding.advice:
            lines += _wrapped(" " * (_GRADE_COLUMNS + _TOPIC_COLUMNS) + "do: ", finding.advice)
    counts = {grade: sum(finding.grade is grade for finding in findings) for grade in Grade}
    lines.append(", ".join(f"{count} {grade.value}" for grade, count in counts.items()))
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> bytes:
    """The findings for a program: {"ok": bool, "findings": [{grade, topic, fact, advice?}]}."""
    return msgspec.json.encode({"ok": not any_failed(findings), "findings": list(findings)})


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, width=MAX_COLUMNS, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
