"""`harness lint-checkpoint PATH`: what is wrong with these weights, before a GPU hour goes into them?"""

from __future__ import annotations

import json
import sys

import click

from harness.errors import UsageError


@click.command("lint-checkpoint")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def lint_checkpoint(path: str, as_json: bool) -> None:
    """Check a checkpoint's formats, scales and configuration without loading weights.

    PATH is a folder, or a hub id whose files are in the local cache. Headers and scales are read, weights never.
    Exit code: 0 no error, 1 an error, 2 no checkpoint.
    """
    from harness.lint.report import lint, show
    from harness.model.weights import folder_of

    try:
        folder = folder_of(path)
    except OSError as error:  # a name no file system takes
        raise UsageError(f"{path[:80]}: {error.strerror or error}") from error
    report = lint(folder)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        show(report, sys.stdout)
    sys.exit(1 if report.has_error else 0)
