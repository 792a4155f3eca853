"""The report that a command writes at its end: looked after before it starts, for it may run for hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MARKDOWN = (".md", ".markdown")


def check_page(path: Path | None) -> None:
    """Raises UsageError where the page could not be written at the end: no such folder, or the extra is missing."""
    from importlib.util import find_spec

    from harness.errors import UsageError
    from harness.report.page import NEEDED

    if path is None:
        return
    if not path.expanduser().resolve().parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.expanduser().resolve().parent}")
    if path.suffix.lower() not in MARKDOWN and [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError("an HTML report needs pip install 'moe-harness[report]'; or give --output FILE.md")


def write_page(folders: Sequence[Path], path: Path) -> None:
    """HTML, or Markdown by its suffix, of the records in output folders. Raises UsageError when it cannot be written."""
    from harness import report
    from harness.errors import UsageError

    text = report.markdown(folders) if path.suffix.lower() in MARKDOWN else report.html(folders)
    try:
        path.expanduser().write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
