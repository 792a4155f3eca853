"""What lies in output folders, as rows: filtered, for a terminal, Markdown with links to traces, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import html
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.errors import UsageError
from harness.lint.findings import printable
from harness.names import check_known
from harness.precision import EMULATED
from harness.recording.ledger import about_newer
from harness.recording.metrics import DEFINITIONS
from harness.recording.records import Record, is_newer, is_record, read_files

FIRST = (
    *("folder", "key", "status", "reason", "failure.class", "failure.message", "engine", "engine_version", "model"),
    *("weights", "precision", "compute_mode", "config", "workload", "batch_size", "input_len", "output_len", "dataset"),
)  # columns that every export begins with
LEFT_OUT = frozenset(("raw", "requested", "effective", "failure.log_tail", "schema_version", "rounds"))
SPEED = tuple(name for name in DEFINITIONS if name.endswith(("_ms", "_per_sec", "_token"))) + (
    "mean_latency_ms",
    "std_latency_ms",
)
SHOWN = {  # column of a table for people -> form of its numbers, or None for text
    **dict.fromkeys(("engine", "precision", "config", "batch x in+out", "compute mode", "MoE backend")),
    **{"latency ms": ".1f", "TTFT ms": ".2f", "ITL ms": ".2f", "output tok/s": ".1f", "perplexity": ".4f"},
    **dict.fromkeys(("folder", "status")),
}
PHASES = {"prefill": "prefill (extend)", "decode": "decode"}
TRACES = (".json", ".json.gz", ".sqlite", ".nsys-rep")
LONGEST = 120  # characters of a reason in a table

Row = dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """An empty one lets everything through. `where`: a column's name, and the text its value must have."""

    engine: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    precision: tuple[str, ...] = ()
    workload: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()

    def lets_through(self, row: Row) -> bool:
        named = ("engine", "model", "precision", "workload", "status")
        return all(not getattr(self, name) or row[name] in getattr(self, name) for name in named) and all(
            _is(row.get(name), text) for name, text in self.where
        )


def read(folders: Sequence[Path], chosen: Filter) -> tuple[list[Row], list[str]]:
    """A row for every record, failed tries too, and lines on what was left out. Each file is read once. Raises
    UsageError for a folder without records, and for a column in a filter that no record has."""
    rows: list[Row] = []
    notes: list[str] = []
    columns: set[str] = set(FIRST)
    for folder in folders:
        newer, found = [], 0
        for path, value in read_files(folder):
            if is_newer(value):
                newer.append(path.name)
            elif is_record(value):
                found += 1
                row = as_row(value, folder)
                columns |= row.keys()
                if chosen.lets_through(row):
                    rows.append(row)
        if not found and not newer:
            raise UsageError(f"{str(folder)!r}: no records in it; give an output folder of `harness run`")
        notes += about_newer(folder, newer)
    for name, _ in chosen.where:
        check_known("column", name, sorted(columns))
    return rows, notes


def as_row(record: Record, folder: Path) -> Row:
    """Every single value of a record under its path, e.g. `latency_ms.p50`; lists, and times of emulated arithmetic,
    are left out. `folder`: the output folder it lies in."""
    hidden = {*LEFT_OUT, "profile", *(SPEED if record["compute_mode"] == EMULATED else ())}
    row: Row = {**dict.fromkeys(FIRST), "folder": str(folder), **dict(_leaves(record, "", hidden))}
    row["profile"] = _traces(record, folder)
    return row


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Of all rows together: what a record is, then its numbers in the order they first come."""
    found = dict.fromkeys(FIRST)
    for row in rows:
        found |= dict.fromkeys(row)
    parents = {name.rpartition(".")[0] for name in found}  # null here, an object elsewhere
    return [name for name in found if name != "profile" and name not in parents]


def table(rows: Sequence[Row]) -> str:
    """For a terminal: aligned, a part per model."""
    parts = []
    for title, names, lines in _grids(rows):
        shown = [[printable(text) for text in line[: len(names)]] for line in [tuple(names), *lines]]
        widths = [max(len(line[column]) for line in shown) for column in range(len(names))]
        parts.append(printable(title))
        for line in shown:
            cells = [_aligned(text, width, SHOWN[name]) for text, width, name in zip(line, widths, names)]
            parts.append(f"  {'  '.join(cells)}".rstrip())
        parts.append("")
    return "\n".join([*parts, *map(printable, _reasons(rows))]).rstrip() + "\n"


def markdown(rows: Sequence[Row], beside: Path) -> str:
    """A table per model. `beside`: the folder that the page will lie in; links to traces are relative to it."""
    parts = []
    for title, names, lines in _grids(rows):
        ruler = [*("---:" if SHOWN[name] else "---" for name in names), "---"]
        cells = [[*map(escaped, texts), _links(row, beside)] for *texts, row in lines]
        parts += [f"## {escaped(title)}", ""]
        parts += ["| " + " | ".join(line) + " |" for line in ([*names, "profile"], ruler, *cells)] + [""]
    return "\n".join([*parts, *(f"* {escaped(line)}" for line in _reasons(rows))]).rstrip() + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """One line per record; what was not measured is an empty cell. A text that a spreadsheet would take for a formula
    gets an apostrophe before it."""
    columns = columns_of(rows)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_harmless, columns))
    for row in rows:
        writer.writerow([_harmless(row.get(name)) for name in columns])
    return file.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """An array of objects with every column; what was not measured is null."""
    columns = columns_of(rows)
    return json.dumps([{name: row.get(name) for name in columns} for row in rows], indent=1) + "\n"


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Raises UsageError without polars, and when it cannot be written."""
    try:
        import polars
    except ImportError as error:
        raise UsageError("Parquet needs polars: pip install 'moe-harness[profile]'") from error
    kinds = {bool: polars.Boolean, int: polars.Int64, float: polars.Float64, _text_of: polars.String}
    columns = {}
    for name in columns_of(rows):
        values = [row.get(name) for row in rows]
        kind = _common_type(values)
        columns[name] = polars.Series(name, [None if v is None else kind(v) for v in values], kinds[kind])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        polars.DataFrame(columns).write_parquet(part)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def escaped(text: str) -> str:
    """For one cell of Markdown: no HTML, no markup, no column of its own."""
    safe = html.escape(printable(text), quote=False)
    return "".join(f"\\{letter}" if letter in "|\\`*_[]#" else letter for letter in safe)


def _leaves(value: Mapping[str, Any], path: str, hidden: set[str]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if (full := f"{path}{name}") in hidden:
            continue
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{full}.", hidden)
        elif not isinstance(inner, list):
            yield full, inner


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    safe = printable(value)
    return f"'{safe}" if safe.lstrip().startswith(("=", "+", "-", "@")) else safe


def _traces(record: Record, folder: Path) -> list[tuple[str, str]]:
    """Phases in words, and the path below the output folder, of every trace of a record."""
    profile = record.get("profile")
    if not isinstance(profile, dict) or not isinstance(profile.get("files"), list):
        return []
    known = [words for phase, words in PHASES.items() if phase in (profile.get("phases") or {})]
    found = []
    for file in profile["files"]:
        if isinstance(file, str) and file.isprintable() and file.endswith(TRACES):
            name = Path(file).name.lower()
            named = [PHASES[phase] for word, phase in _IN_NAMES if word in name]
            found.append((", ".join(dict.fromkeys(named or known)) or "trace", file))
    return found


_IN_NAMES = (("prefill", "prefill"), ("extend", "prefill"), ("decode", "decode"))


def _links(row: Row, beside: Path) -> str:
    root, links = Path(row["folder"]).resolve(), []
    for words, file in row["profile"]:
        path = (root / file).resolve()
        if not path.is_relative_to(root):
            continue  # a record may say anything
        there = quote(os.path.relpath(path, beside.resolve()).replace(os.sep, "/"))
        links.append(f"[{escaped(words)}]({there})" if path.is_file() else f"{escaped(words)}, no longer there")
    return "<br>".join(links) or "-"


def _grids(rows: Sequence[Row]) -> Iterator[tuple[str, list[str], list[tuple[Any, ...]]]]:
    """For each model a title, the names of columns that hold anything, and lines: their texts, and the row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        device = row.get("gpu_name") or row.get("environment.device.name") or "device unknown"
        groups.setdefault(f"{row['model']}, {row['weights']} weights, {device}", []).append(row)
    are_many = len({row["folder"] for row in rows}) > 1
    for title, group in groups.items():
        group.sort(key=_order)
        lines = [_shown(row, are_many) for row in group]
        used = [index for index in range(len(SHOWN)) if any(line[index] != "-" for line in lines)]
        names = [tuple(SHOWN)[index] for index in used]
        yield title, names, [(*(line[index] for index in used), row) for line, row in zip(lines, group)]


def _order(row: Row) -> tuple[str, ...]:
    numbers = (f"{row.get(name) or 0:>9}" for name in ("batch_size", "input_len", "output_len"))
    return (*(str(row[name]) for name in ("engine", "config", "workload")), *numbers, str(row["precision"]))


def _shown(row: Row, are_many: bool) -> tuple[str, ...]:
    """The texts of SHOWN. `are_many`: there is more than one folder."""
    batch = f"{row.get('batch_size')} x {row.get('input_len')}+{row['output_len']}" if row.get("output_len") else None
    values = (
        *(row["engine"], row["precision"], row["config"], batch, row["compute_mode"], row.get("moe_backend")),
        *(row.get(f"{name}_ms.mean") for name in ("latency", "ttft", "itl")),
        *(row.get("output_tokens_per_sec"), row.get("perplexity"), row["folder"] if are_many else None, row["status"]),
    )
    return tuple("-" if value is None else _text(value, form) for value, form in zip(values, SHOWN.values()))


def _text(value: Any, form: str | None) -> str:
    return format(value, form) if form and isinstance(value, (int, float)) else str(value)


def _aligned(text: str, width: int, form: str | None) -> str:
    return text.rjust(width) if form else text.ljust(width)


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why cells have no numbers, equal reasons together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            failure = f"{row.get('failure.class')}: {row.get('failure.message')}"
            why = failure if row["status"] == "failed" else str(row.get("reason"))
            why = why if len(why) <= LONGEST else why[: LONGEST - 3] + "..."
            what = f"{row['engine']} {row['model']} {row['precision']} {row['workload']}"
            reasons.setdefault((row["status"], why), []).append(what)
    return [f"{status} {', '.join(dict.fromkeys(cells))}: {why}" for (status, why), cells in reasons.items()]


def _is(value: Any, text: str) -> bool:
    """Whether a value is what was typed: 16 and 16.0 are one number, and null is nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return value == float(text)
        except ValueError:
            return False
    return text == ({None: "null", True: "true", False: "false"}[value] if value in (None, True, False) else str(value))


def _common_type(values: Iterable[Any]) -> Callable[[Any], Any]:
    """What makes one type of all values: a column of numbers and texts is one of texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        is_wide = any(type(value) is int and not -(2**63) <= value < 2**63 for value in values)
        return float if float in kinds or is_wide else int
    return bool if kinds == {bool} else _text_of


def _text_of(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
