"""`harness report DIR...`: one page about records, to read, to print and to send."""

from __future__ import annotations

import gc
from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="The file to write.  [html: report.html; md: stdout]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md"]),
    help="html, or md for a comment on a pull request.  [by the suffix of --output, else html]",
)
def report(folders: tuple[Path, ...], output: Path | None, form: str | None) -> None:
    """Write one page about records: the verdict, charts, tables, failures and provenance.

    FOLDERS are output folders of `harness run`, records, or results of other tools. The page is one file that needs no
    network; `pip install 'moe-harness[report]'` has what it is made with. `--format md` needs nothing more.
    """
    from harness import report as reports
    from harness.errors import UsageError

    is_markdown = form == "md" or form is None and output is not None and output.suffix.lower() in (".md", ".markdown")
    gc.disable()  # thousands of records are millions of objects, and all of them live until the text is there
    try:
        text = reports.markdown(folders) if is_markdown else reports.html(folders)
    finally:
        gc.enable()
    if is_markdown and output is None:
        click.echo(text, nl=False)
        return
    path = output or Path("report.html")
    try:
        _write(path, text)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    click.echo(str(path))


def _write(path: Path, text: str) -> None:
    """All of it or none of it."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
