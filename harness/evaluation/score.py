"""The contest's score, and the CSV that keeps every score of a team. Nothing here is measured.

score = accuracy x base_latency / p99 x throughput / base_throughput x (1 + kernel_flop_ratio)
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.names import safe_name

BASE_LATENCY_MS = 526.15  # p99 of the contest's own baseline, batch 1, 640 tokens in all
BASE_THROUGHPUT = 134.61  # its prompt and output tokens per second

# The contest's columns in its order; its name for kernel_flop_ratio stays in the file, so that old files go on.
COLUMNS = (
    "team_id",
    "member_id",
    "base_latency",
    "base_throughput",
    "accuracy",
    "latency",
    "throughput",
    "nki_flop_ratio",
    "increased_throughput",
    "reduced_latency",
    "final_score",
    "timestamp",
)
# Text that a spreadsheet would run and not show: at the start of a cell, or of what becomes a cell where the separator is
# another one. The last four are the same signs in full width.
_FORMULA = re.compile(r"""(^|[;,"'])\s*[=+\-@\uff1d\uff0b\uff0d\uff20]""")


@dataclass(frozen=True)
class Score:
    """The score and every factor of it; what is not known is None.

    `score_without_kernel_ratio` is the product of the other factors. As the ratio lies between 0 and 1, the full score
    lies between it and twice it.
    """

    score: float | None
    reason: str | None  # why the score is 0 or None
    accuracy: int  # 1 passed, 0 failed
    base_latency_ms: float
    latency_ms_p99: float
    reduced_latency: float  # base_latency_ms / latency_ms_p99
    base_throughput: float  # tokens/s; prompt and output tokens count, as in the report's e2e_model
    throughput: float
    increased_throughput: float  # throughput / base_throughput
    kernel_flop_ratio: float | None
    score_without_kernel_ratio: float


def score(
    accuracy_passed: bool,
    why: str | None,
    p99_ms: float,
    throughput: float,
    base_latency_ms: float = BASE_LATENCY_MS,
    base_throughput: float = BASE_THROUGHPUT,
    kernel_flop_ratio: float | None = None,
    why_no_ratio: str = "no provider measured it",
) -> Score:
    """The score of one evaluation. `why`: what the accuracy check said, wanted when it failed.

    An unknown kernel_flop_ratio is not 0: then there is no score, and its reason says what is missing. It is 0 only when a
    provider measured 0 or the user says 0. The product of what is known is `score_without_kernel_ratio`, under its own
    name, so an engine without a provider still has a figure to rank by and nobody takes it for the contest's.
    A failed accuracy check makes the score 0 whatever the other factors are. Raises UsageError for a number that cannot be.
    """
    factors = {
        "p99 latency": p99_ms,
        "throughput": throughput,
        "base latency": base_latency_ms,
        "base throughput": base_throughput,
    }
    for name, value in factors.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"score: {name} must be a number above 0, got {value}")
    if kernel_flop_ratio is not None and not 0 <= kernel_flop_ratio <= 1:
        raise UsageError(f"score: kernel FLOP ratio must lie between 0 and 1, got {kernel_flop_ratio}")
    accuracy = 1 if accuracy_passed else 0
    reduced_latency, increased_throughput = base_latency_ms / p99_ms, throughput / base_throughput
    without_ratio = accuracy * reduced_latency * increased_throughput
    if not math.isfinite(reduced_latency * increased_throughput * 2):
        given = ", ".join(f"{name} {value}" for name, value in factors.items())
        raise UsageError(f"score: {given} give no finite score")
    total, reason = None, None
    if not accuracy_passed:
        total, reason = 0.0, f"the accuracy check failed: {why or 'it gave no reason'}"
    elif kernel_flop_ratio is None:
        reason = f"kernel_flop_ratio is not known ({why_no_ratio}); score_without_kernel_ratio lacks that factor"
    else:
        total = without_ratio * (1 + kernel_flop_ratio)
    return Score(
        score=total,
        reason=reason,
        accuracy=accuracy,
        base_latency_ms=base_latency_ms,
        latency_ms_p99=p99_ms,
        reduced_latency=reduced_latency,
        base_throughput=base_throughput,
        throughput=throughput,
        increased_throughput=increased_throughput,
        kernel_flop_ratio=kernel_flop_ratio,
        score_without_kernel_ratio=without_ratio,
    )


def csv_row(result: Score, team_id: str | None, member_id: str | None) -> dict[str, object]:
    """A row of the score records, with the time of now. An unknown ratio, and then the final score, is an empty cell."""
    return {
        "team_id": team_id,
        "member_id": member_id,
        "base_latency": result.base_latency_ms,
        "base_throughput": result.base_throughput,
        "accuracy": result.accuracy,
        "latency": result.latency_ms_p99,
        "throughput": result.throughput,
        "nki_flop_ratio": result.kernel_flop_ratio,
        "increased_throughput": result.increased_throughput,
        "reduced_latency": result.reduced_latency,
        "final_score": result.score,
        "timestamp": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def csv_path(folder: Path, team_id: str | None) -> Path:
    """Where a team's score records lie. Raises UsageError for a team id that is no part of a file name: changed into one,
    the file would be found by nobody."""
    if team_id is not None and safe_name(team_id) != team_id:
        raise UsageError(
            f"team id {team_id!r} cannot be part of a file name: use at most 80 letters, digits, '.', '_' and '-', "
            "and begin with a letter, a digit or '_'"
        )
    return folder / f"{f'{team_id}_' if team_id is not None else ''}qwen3-30b-a3b_score_records.csv"


def append_csv(folder: Path, team_id: str | None, row: Mapping[str, object]) -> Path:
    """Appends one row to a team's score records, with a header when the file is new. Whole or not at all.

    Several processes may do so at once: each holds the file's lock while it looks and writes. A file with another header
    is not touched. Raises UsageError, one line, for that, for a cell a spreadsheet would run, and when it cannot write.
    """
    path = csv_path(folder, team_id)
    if row.keys() != set(COLUMNS):
        raise ValueError(f"a row of the score records has {COLUMNS}, got {tuple(row)}")
    line = _csv_line([_cell(name, row[name]) for name in COLUMNS])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go of it if we die
            _append(file, path, line)
        finally:
            os.close(file)
    except OSError as error:
        raise UsageError(f"score records {str(path)!r} cannot be written: {error.strerror or error}") from error
    return path


def _append(file: int, path: Path, line: bytes) -> None:
    """`file` is locked. One write, so that a reader or a kill between two finds no half; undone when the disk is full."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"score records {str(path)!r} cannot be written: not a regular file")
    header = _csv_line(COLUMNS)
    if found.st_size == 0:
        line = header + line
    else:
        start = os.pread(file, len(header) + 4, 0).removeprefix(b"\xef\xbb\xbf").split(b"\n")[0]
        if start.rstrip(b"\r") != header.rstrip(b"\r\n"):
            raise UsageError(f"score records {str(path)!r}: its header is not {','.join(COLUMNS)}; nothing written")
        if os.pread(file, 1, found.st_size - 1) != b"\n":  # an editor left the last line open
            line = b"\r\n" + line
    try:
        if os.write(file, line) != len(line):
            raise OSError("no room for a whole row")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, found.st_size)
        raise


def _csv_line(cells: object) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _cell(name: str, value: object) -> object:
    """Numbers as they are, None as an empty cell, text only where a spreadsheet shows it as text."""
    if isinstance(value, str) and (_FORMULA.search(value) or not value.isprintable()):
        raise UsageError(
            f"{name.replace('_', ' ')} {value!r}: must be one line of text that begins with none of = + - @, "
            "which a spreadsheet would run as a formula"
        )
    return value
