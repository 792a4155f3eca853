"""`harness explain A B`: from one trace to another, which kind of work gained and which lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.jsonfile import Node
    from harness.kernels.tables import Table
    from harness.kernels.taxonomy import Rule
    from harness.kernels.waterfall import Explanation

FORMATS = ("table", "json", "csv", "md")
COLUMNS = "category", "A ms", "B ms", "B - A ms"
READ = 64 << 20  # bytes; what `harness analyze` writes is far smaller


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Also write it there: .csv, .md, anything else JSON.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Of stdout.")
@click.option(
    "--rules", type=click.Path(path_type=Path), help="JSON file of kernel rules, asked before the built-in ones."
)
@click.option("--device", type=int, help="Compare this device.  [in each the one with the longest window]")
def explain(a: Path, b: Path, output: Path | None, form: str, rules: Path | None, device: int | None) -> None:
    """Say where the time between two traces went, per step and kind of work; the bars add up to the wall time.

    A and B are traces, records of `harness run --profile`, whose wall time is that of the run without profiler, or what
    `harness analyze --output` wrote as JSON. Exit code: 0 explained, 1 explained and not to
    be believed, or nothing to explain, 2 no trace.
    """
    from harness.commands.options import all_rules
    from harness.kernels.tables import print_lines, print_table, write
    from harness.kernels.waterfall import conclusion
    from harness.kernels.waterfall import explain as explained

    asked = all_rules(rules)
    (name_a, node_a), (name_b, node_b) = (_analysis(path, asked, device) for path in (a, b))
    names = (name_a, name_b) if name_a != name_b else (str(a), str(b)) if a != b else ("A", "B")
    found = explained(node_a, node_b, names)
    if output:
        suffix = output.suffix.lower().lstrip(".")
        write(output, _rendered(found, suffix if suffix in FORMATS else "json"))
    if form == "table":
        print_lines([f"A: {found.names[0]}", f"B: {found.names[1]}"], sys.stdout)
        for table in _tables(found):
            print_table(table, sys.stdout)
        print_lines([*conclusion(found), *_notes(found)], sys.stdout)
    else:
        content = _rendered(found, form)
        click.echo(content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False))
    sys.exit(1 if found.problems else 0)


def _analysis(path: Path, rules: tuple[Rule, ...], device: int | None) -> tuple[str, Node]:
    """A name for sentences, and what `harness analyze` says of a trace, or said of that of a record."""
    from harness.jsonfile import Node, load
    from harness.kernels.analysis import analyse
    from harness.recording.profiling import analysis_of

    if path.suffix == ".json" and path.is_file() and path.stat().st_size <= READ:
        with path.open("rb") as file:
            is_trace = b'"traceEvents"' in file.read(READ)
        if not is_trace:
            content = load(path)[1][0]
            return analysis_of(content, path) if content.at("profile").value else (path.name, content)
    return path.name, Node(analyse(path, rules, device=device).to_json(), str(path))


def _tables(found: Explanation) -> list[Table]:
    from harness.kernels.tables import Table

    tables = []
    for fall in found.waterfalls:
        per = f"{fall.measure} per step, {fall.steps[0]} and {fall.steps[1]} steps" if fall.steps else fall.measure
        rows = [(bar.category, bar.a / 1e6, bar.b / 1e6, bar.difference / 1e6) for bar in fall.bars]
        rows.append(("all", fall.a / 1e6, fall.b / 1e6, (fall.b - fall.a) / 1e6))
        tables.append(Table(f"{fall.phase}: {per}", COLUMNS, rows, frozenset(("category",))))
    return tables


def _rendered(found: Explanation, form: str) -> object:
    from harness.kernels.tables import as_csv, markdown
    from harness.kernels.waterfall import conclusion

    if form == "csv":
        bars = [(fall, bar) for fall in found.waterfalls for bar in fall.bars]
        rows = [(fall.phase, fall.measure, bar.category, bar.a, bar.b, bar.difference) for fall, bar in bars]
        return as_csv(("phase", "measure", "category", "a_ns", "b_ns", "difference_ns"), rows)
    if form in ("md", "table"):
        names = [f"A: {found.names[0]}", f"B: {found.names[1]}"]
        return markdown(_tables(found), [*names, *conclusion(found), *_notes(found)])
    return found.to_json()


def _notes(found: Explanation) -> list[str]:
    return [*(f"not valid: {problem}" for problem in found.problems), *(f"note: {note}" for note in found.notes)]
