"""`harness results DIR...`: what was measured, filtered, as a table or an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import Names
from harness.commands.perform import warn
from harness.errors import UsageError

STATUSES = ("ok", "mismatch", "skipped", "failed")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--engine", type=Names(), default=(), help="Only these, as in all filters: a comma list.")
@click.option("--model", type=Names(), default=(), help="Names as in the records.")
@click.option("--precision", type=Names(), default=(), help="bf16, fp8, ...")
@click.option("--workload", type=Names(), default=(), help="perf, ppl, ...")
@click.option("--status", type=Names(), default=(), help=", ".join(STATUSES) + ".")
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only records with this value in a column of the CSV, e.g. batch_size=16. Repeatable: all must hold.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "md", "parquet", "json"]),
    default="table",
    show_default=True,
    help="md: a table per model, with links to traces; the others have every value.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file instead of stdout.")
def results(folders: tuple[Path, ...], form: str, output: Path | None, where: tuple[str, ...], **filters: Any) -> None:
    """Show the records of output folders, or export them.

    Every record is a row, failed tries of cells that were measured before too. What was not measured is empty, or
    null; never 0. Exit code: 0, also where no record matches; 2 wrong usage.
    """
    from harness.judging import results as rows_of
    from harness.names import check_known
    from harness.recording.records import write_text

    for name in filters["status"]:
        check_known("status", name, STATUSES)
    if form == "parquet" and output is None:
        raise UsageError("--format parquet is not for a terminal: give --output FILE")
    chosen = rows_of.Filter(**filters, where=tuple(map(_condition, where)))
    rows, notes = rows_of.read(folders, chosen)
    for note in notes:
        warn(note)
    if not rows:
        warn("no record matches")
    if form == "parquet":
        rows_of.write_parquet(rows, output)
        return
    if form == "md":
        text = rows_of.markdown(rows, output.parent if output else Path.cwd())
    else:
        text = {"table": rows_of.table, "csv": rows_of.as_csv, "json": rows_of.as_json}[form](rows)
    if output:
        try:
            write_text(output, text)
        except OSError as error:
            raise UsageError(f"{output}: cannot be written: {error.strerror or error}") from error
    else:
        click.echo(text, nl=False)


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--where {text}: expected NAME=VALUE")
    return name, value
