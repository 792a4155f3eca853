"""What an evaluation of many prompts reads: the prompts, and the base latency and throughput each is scored against."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError


@dataclass(frozen=True)
class BaseData:
    """What the contest's own baseline did on one prompt."""

    prompt_id: int  # position in the prompts' file, from 0
    context_length: int  # prompt tokens
    sequence_length: int  # prompt and output tokens; the contest never reads it
    base_latency_ms: float  # p99
    base_throughput: float  # prompt and output tokens per second


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts separated by blank lines; a blank line may hold spaces, and Windows line ends are fine."""
    prompts = tuple(part.strip() for part in re.split(r"\n[^\S\n]*\n", _text(path)) if part.strip())
    if not prompts:
        raise UsageError(f"{path}: no prompt in it; expected text, prompts separated by blank lines")
    return prompts


def read_base_data(path: Path) -> tuple[BaseData, ...]:
    """The rows of a CSV with the columns of COLUMNS, in any order. Raises UsageError that names line and column."""
    reader = csv.reader(io.StringIO(_text(path)), skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise UsageError(f"{path}: empty; expected the columns {', '.join(COLUMNS)}")
    header = [cell.strip() for cell in rows[0][1]]
    for column in COLUMNS:
        if header.count(column) != 1:
            problem = "is missing" if column not in header else "is there twice"
            raise UsageError(f"{path}, line {rows[0][0]}: column {column!r} {problem}; expected {', '.join(COLUMNS)}")
    found: dict[int, BaseData] = {}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise UsageError(f"{path}, line {line}: {len(row)} cells, but the header has {len(header)}")
        cells = dict(zip(header, row))
        data = BaseData(*(_value(path, line, column, cells[column], read) for column, read in COLUMNS.items()))
        if data.prompt_id in found:
            raise UsageError(f"{path}, line {line}, column 'Prompt ID': {data.prompt_id} was there before")
        found[data.prompt_id] = data
    if not found:
        raise UsageError(f"{path}: a header and no row")
    return tuple(found.values())


def _position(cell: str) -> int:
    value = int(cell)
    if value < 0:
        raise ValueError
    return value


def _length(cell: str) -> int:
    return _position(cell) or int("")  # no length is 0


def _rate(cell: str) -> float:
    value = float(cell)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


COLUMNS: dict[str, Callable[[str], float]] = {
    "Prompt ID": _position,
    "Context Length": _length,
    "Sequence Length": _length,
    "Base latency": _rate,
    "Base throughput": _rate,
}
_EXPECTED = {_position: "a whole number from 0", _length: "a whole number above 0", _rate: "a number above 0"}


def _value(path: Path, line: int, column: str, cell: str, read: Callable[[str], float]) -> float:
    try:
        return read(cell)
    except ValueError:
        raise UsageError(
            f"{path}, line {line}, column {column!r}: expected {_EXPECTED[read]}, got {cell[:40]!r}"
        ) from None


def _text(path: Path) -> str:
    """The file's text; line ends as "\\n", and no byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from error
