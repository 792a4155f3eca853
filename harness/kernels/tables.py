"""Answers as text: a table for the terminal, CSV and Markdown, and sentences of conclusion. Names come from files: they
may hold markup, control characters and any length, and none of it reaches a terminal or a page."""

from __future__ import annotations

import csv
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from harness.errors import UsageError
from harness.kernels.analysis import EXPERT, QUANT, Analysis, ceiling, coarse
from harness.kernels.ledger import OUTSIDE, UNCLASSIFIED, WHOLE, Ledger
from harness.lint.findings import printable
from harness.recording.records import write_json

WIDTH = 200  # columns, whatever the terminal has
SHOWN = 60  # characters of a name in a table
WORDS = {
    "expert_gemm": "Expert GEMMs",
    "gate_gemm": "Router GEMMs",
    "dense_gemm": "Dense GEMMs",
    "attention": "Attention",
    "comm": "Communication",
    "routing_permute": "Routing",
    "quant_dequant": "Quantisation",
}


@dataclass(frozen=True)
class Table:
    """Rows of None, text and numbers. `left`: columns of text. `form`: how a number of a column is shown to people."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple]
    left: frozenset[str] = frozenset()
    form: str = ".3f"

    def texts(self, row: Sequence[object]) -> list[str]:
        return [_text(value, ".1f" if name.startswith("%") else self.form) for name, value in zip(self.columns, row)]


def tables(analysis: Analysis, coarsely: bool = False) -> list[Table]:
    """One per phase of the device that answers; of the whole window where there are no phases, or one was asked for."""
    return [_of_ledger(ledger, coarsely) for ledger in shown(analysis)]


def shown(analysis: Analysis) -> list[Ledger]:
    if analysis.ledger is None:
        return []
    known = [ledger for ledger in analysis.phases if ledger.phase != OUTSIDE]
    return analysis.phases if analysis.ledger.phase == WHOLE and known else [analysis.ledger]


def conclusion(analysis: Analysis) -> list[str]:
    """One or two sentences per phase: what expert GEMMs have, and what faster ones could give."""
    if analysis.ledger is None:
        return [f"no answer: {analysis.problem}"]
    return [_sentence(ledger) for ledger in shown(analysis) if ledger.phase != OUTSIDE]


def kernel_table(title: str, columns: Sequence[str], rows: list[tuple]) -> Table:
    return Table(title, tuple(columns), rows, frozenset(("category", "found_by", "name")))


def print_table(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Rich

    console = Console(file=stream, width=WIDTH, highlight=False)
    console.print(escape(printable(table.title)), soft_wrap=True)
    drawn = Rich(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in table.columns:
        drawn.add_column(name, justify="left" if name in table.left else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(escape(printable(_cut(text))) for text in table.texts(row)))
    console.print(drawn)


def print_lines(lines: Sequence[str], stream: TextIO) -> None:
    for line in lines:
        stream.write(printable(line) + "\n")


def markdown(tables: Sequence[Table], lines: Sequence[str]) -> str:
    parts = []
    for table in tables:
        ruler = ["---" if name in table.left else "---:" for name in table.columns]
        rows = [table.columns, ruler, *([_cell(_cut(text)) for text in table.texts(row)] for row in table.rows)]
        parts += [_cell(table.title), "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    return "\n".join([*parts, *(f"{_cell(line)}  " for line in lines)]) + "\n"


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Numbers as they are. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(value) if isinstance(value, str) else value for value in row])
    return file.getvalue()


def category_rows(analysis: Analysis, coarsely: bool = False) -> tuple[tuple[str, ...], list[tuple]]:
    """Every ledger's categories and idle time, flat: for CSV."""
    columns = "device", "phase", "category", "time_ms", "percent", "charged_ms", "percent_of_window", "exclusive_ms"
    asked = analysis.ledger.phase if analysis.ledger else None
    rows = [
        (ledger.device, ledger.phase, *row)
        for ledger in analysis.ledgers
        if asked in (WHOLE, ledger.phase)
        for row in _rows(ledger, coarsely)
    ]
    return (*columns, "union_ms", "ms_per_step", "kernel_count", "sample"), rows


def write(path: Path, value: object) -> None:
    """A text as it is, all else as JSON; whole or not at all. Raises UsageError when it cannot be written."""
    try:
        if not isinstance(value, str):
            write_json(path, value)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(value, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _of_ledger(ledger: Ledger, coarsely: bool) -> Table:
    columns = "category", "sum ms", "% of sum", "wall ms", "% of window", "alone ms", "union ms", "ms/step", "calls"
    columns += ("most time",)
    steps = f"{len(ledger.steps)} step{'s' * (len(ledger.steps) != 1)}, " if ledger.steps else ""
    title = f"device {ledger.device}, {ledger.phase}: {steps}{ledger.count} operations, sum {ledger.sum / 1e6:.3f} ms"
    if ledger.window is None:
        title += f"; {ledger.reason}"
    else:
        title += f", {ledger.wall} window {ledger.window / 1e6:.3f} ms, busy {ledger.busy / 1e6:.3f} ms"
        title += f" ({_percent(ledger.busy, ledger.window):.1f} %)" if ledger.window else ""
        if ledger.gaps is not None and ledger.window:
            title += f", launch-bound {_percent(ledger.gaps, ledger.window):.1f} %"
    rows = _rows(ledger, coarsely)
    unused = {name for index, name in enumerate(columns) if all(row[index] is None for row in rows)}
    if ledger.sum == ledger.busy:
        unused |= {"alone ms", "union ms"}  # nothing overlaps: they are the sum
    kept = [index for index, name in enumerate(columns) if name not in unused]
    names = tuple(columns[index] for index in kept)
    return Table(title, names, [tuple(row[i] for i in kept) for row in rows], frozenset(("category", "most time")))


def _rows(ledger: Ledger, coarsely: bool) -> list[tuple]:
    """Category, sum and percent of it, charged and percent of window, exclusive, union, per step, calls, a name."""
    steps = len(ledger.steps) or None
    rows = []
    for name, share in (coarse(ledger) if coarsely else ledger.categories).items():
        own = share.sum if share.charged is None else share.charged
        wall = _ms(share.charged), _percent(share.charged, ledger.window), _ms(share.exclusive), _ms(share.union)
        step = own / steps / 1e6 if steps else None
        rows.append(
            (name, share.sum / 1e6, _percent(share.sum, ledger.sum), *wall, step, share.count, share.samples[0])
        )
    if ledger.idle is not None:
        step = ledger.idle / steps / 1e6 if steps else None
        wall = ledger.idle / 1e6, _percent(ledger.idle, ledger.window)
        rows.append(("idle", None, None, *wall, None, None, step, None, None))
    return rows


def _sentence(ledger: Ledger) -> str:
    where = f"a {ledger.phase} step" if ledger.phase != WHOLE else "the trace" if ledger.reason else "the whole window"
    expert = ledger.categories.get(EXPERT)
    if expert is None:
        unknown = ledger.categories.get(UNCLASSIFIED)
        rest = f"; {_percent(unknown.sum, ledger.sum):.1f} % is unclassified" if unknown and ledger.sum else ""
        return f"No expert GEMM was recognised in {where}: what faster ones could give is unknown{rest}."
    found = ceiling(ledger)
    share = _percent(expert.sum, ledger.sum)
    said = f"{WORDS[EXPERT]} have " + ("no time" if share is None else f"{share:.1f} % of the summed time of {where}")
    if found.lower is None:
        reason = f"; its wall time is unknown: {found.reason}" if ledger.window is None else f"; {found.reason}"
        return f"{said}{reason}."
    window = _percent(expert.charged, ledger.window)
    low, high = f"{found.lower:.2f}", f"{found.upper:.2f}"
    times = f"{low} times" if low == high else f"{low} to {high} times"
    said += f" and {window:.1f} % of its wall time; infinitely fast ones would make it at most {times} as fast"
    said += f" (the kernels alone {found.max_speedup:.2f} times)"
    quant = ledger.categories.get(QUANT)
    cost = f" Quantising costs {_percent(quant.charged, ledger.window):.1f} % of it." if quant else ""
    idle = _percent(ledger.idle, ledger.window)
    return f"{said}.{cost}" + (f" Nothing runs for {idle:.1f} % of it." if idle >= 1 else "")


def _text(value: object, form: str) -> str:
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _cell(text: str) -> str:
    """One cell of Markdown: no HTML, no markup, no column of its own."""
    safe = html.escape(printable(text), quote=False)
    return "".join(f"\\{letter}" if letter in "|\\`*_[]" else letter for letter in safe)


def _plain(text: str) -> str:
    safe = printable(text)
    return f"'{safe}" if safe.startswith(("=", "+", "-", "@")) else safe


def _ms(time: int | None) -> float | None:
    return None if time is None else time / 1e6


def _percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole
