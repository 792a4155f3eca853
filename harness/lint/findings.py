"""A finding: how bad, what, where, and what to do about it. No check is in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")
SHOWN = 3  # names of a long list


@dataclass(frozen=True)
class Finding:
    """One thing a person should know of a checkpoint."""

    severity: str  # one of SEVERITIES
    code: str  # a kebab-case word that stays the same across versions
    where: str  # tensors, layers or a file; of a long list its number and first names
    what: str
    advice: str  # what to do


def some(names: Iterable[str], noun: str = "") -> str:
    """`a, b, c and 9 more`; with a noun, `12 tensors: a, b, c, ..` when there is more than one."""
    names = list(names)
    shown = ", ".join(printable(name) for name in names[:SHOWN])
    more = len(names) - SHOWN
    if noun and len(names) > 1:
        return f"{len(names)} {noun}s: {shown}{', ..' if more > 0 else ''}"
    return f"{shown} and {more} more" if more > 0 else shown


def printable(text: str) -> str:
    """A name from a file as one line of text: it may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; otherwise as they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def tally(findings: Sequence[Finding]) -> str:
    """`1 error, 2 warnings, 0 notes`."""
    counts = [(sum(finding.severity == word for finding in findings), word) for word in SEVERITIES]
    return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
