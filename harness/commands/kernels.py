"""`harness kernels classify`: what kernels do, by their names alone."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import click

COLUMNS = ("name", "category", "found_by", "confidence")
LONGEST_LINE = 120_000  # characters: kernels have names of up to 100,000, readers of CSV stop at 131,072
MOST_KEPT = 100_000  # names whose label is remembered
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # what a terminal would act on


@click.group()
def kernels() -> None:
    """What the kernels of an engine do."""


@kernels.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--rules", type=click.Path(path_type=Path), help="JSON file of kernel rules, asked before the built-in ones."
)
@click.option("--coarse", is_flag=True, help="Eight categories instead of twelve.")
def classify(file: Path, rules: Path | None, coarse: bool) -> None:
    """Label kernels by name: CSV with name, category, found_by and confidence, in the order of FILE.

    FILE has one name a line, - is standard input. A name that no rule knows is "other", found by "none". Names alone
    say less than a trace: `harness analyze` also asks which module launched a kernel, and what came before it.
    """
    from harness.commands.options import all_rules
    from harness.errors import UsageError
    from harness.kernels.taxonomy import COARSE, Label, with_built_in
    from harness.kernels.taxonomy import classify as label_of

    asked = with_built_in(all_rules(rules))
    known: dict[str, Label] = {}
    for name in _names(file):
        if not known:
            click.echo(_row(COLUMNS))
        label = known.get(name) or label_of(name, asked)
        if len(known) < MOST_KEPT:
            known[name] = label
        category = COARSE[label.category] if coarse else label.category
        click.echo(_row((name.translate(_SHOWN), category, label.found_by, label.confidence)))
    if not known:
        raise UsageError(f"{file}: no kernel names; give one a line")


def _names(file: Path) -> Iterator[str]:
    """The lines of a file that are not empty; bytes that are no UTF-8 come as \\xNN. Raises UsageError."""
    from harness.errors import UsageError

    try:
        stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="backslashreplace", newline="\n") as lines:
            while line := lines.readline(LONGEST_LINE):
                rest = line
                while rest and rest[-1] != "\n":
                    rest = lines.readline(LONGEST_LINE)  # of a line that is too long
                if name := line.strip():
                    yield name
    except OSError as e:
        raise UsageError(f"{file}: cannot be read: {e.strerror or e}") from None


def _row(values: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
