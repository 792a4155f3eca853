"""`harness sweep`: many cells from one file; what was measured before is left as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import Names, launching, output_dir, python_of_engine


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print cells, loads, memory and verdicts, and measure nothing.")
@click.option(
    "--on", metavar="NxSM:GIB", help="With --dry-run: as on N such GPUs, e.g. 8x90:80; engines taken to be there."
)
@click.option("--rerun", is_flag=True, help="Measure cells again that were measured before.")
@click.option("--fail-fast", is_flag=True, help="The first failure ends the sweep.")
@click.option("--retry", type=Names(), help="Failure classes to try again, e.g. crashed,timeout.")
@click.option("--retries", type=click.IntRange(1), help="How often, at most.  [1]")
@click.option("--repeats", type=click.IntRange(1), help="Rounds of every speed cell, in turns.  [1]")
@click.option("--max-repeats", type=click.IntRange(1), help="Rounds at most, with --ci-width.  [10]")
@click.option(
    "--ci-width",
    type=click.FloatRange(min=0, min_open=True),
    help="Go on until the interval of the median latency is at most this wide: 0.02 is two percent.",
)
@click.option("--profile", "profiler", metavar="PROFILER", help="Add one profiled pass per cell.")
@click.option("--yes", "is_meant", is_flag=True, help="Yes, more than 100,000 cells are meant.")
@launching
@python_of_engine
@output_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON array, and nothing else, on stdout.")
def sweep(file: Path, dry_run: bool, on: str | None, rerun: bool, is_meant: bool, as_json: bool, **given: Any) -> None:
    """Measure every cell of a sweep file: a matrix of models, engines, precisions, parallelism and sizes.

    Cells that were measured before, with the same engine version on the same device, are left as they are; a failure
    costs only its cell. An option given here goes before the file's settings. Exit code: 0 all measured or skipped,
    1 a cell failed, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    from harness.commands.perform import perform_plan, warn
    from harness.sweep import document, planning, show

    read = document.read(file)
    options = _options(read, {**given, "resume": not rerun, "device": _device(on, dry_run)})
    plan = planning.make_plan(read, options, is_meant, warn)
    if dry_run:
        click.echo(json.dumps(show.verdicts(plan, options), indent=1) if as_json else show.text(plan, options))
        return
    result = perform_plan(plan, options)
    if as_json:
        click.echo(json.dumps(result.records, indent=1))
    else:
        click.echo(show.summary(result.records))
        click.echo(f"records: {options.output_dir / 'records'}")
    for problem in result.problems:
        warn(problem)
    sys.stdout.flush()
    sys.exit(result.exit_code)


def _device(on: str | None, dry_run: bool) -> Any:
    """Raises UsageError."""
    import re

    from harness.device import Device
    from harness.errors import UsageError

    if on is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+):(\d+(?:\.\d+)?)", on)
    if not found or not dry_run:
        raise UsageError(f"--on {on}: expected COUNTxSM:GIB, e.g. 8x90:80, and --dry-run with it")
    return Device("cuda", f"a GPU of SM {found[2]}", int(found[1]), int(float(found[3]) * (1 << 30)), int(found[2]))


def _options(read: Any, given: dict[str, Any]) -> Any:
    """The command line before the file's settings, and those before what goes for every run. Raises UsageError."""
    from harness.commands.perform import launch_options
    from harness.failures import CLASSES
    from harness.names import check_known
    from harness.planning.plan import Options
    from harness.planning.schedule import Policy

    said = read.value.get("settings", {})

    def value(name: str, otherwise: Any, key: str | None = None) -> Any:
        typed = given.pop(key or name, None)
        return typed if typed not in (None, ()) else said.get(name, otherwise)

    ci_width = value("ci_width", None)
    rounds = value("repeats", 3 if ci_width else 1)
    most = value("max_repeats", max(rounds, 10) if ci_width else rounds)
    retry = value("retry", ())
    for name in retry:
        check_known("failure class", name, CLASSES)
    policy = Policy(
        rounds=rounds,
        max_rounds=max(rounds, most),
        ci_width=ci_width,
        retry=frozenset(retry),
        retries=value("retries", 1),
        fail_fast=given.pop("fail_fast"),
    )
    profiler = value("profile", None, "profiler")
    told = {name: said[name] for name in ("timeout", "workers") if name in said} | launch_options(given)
    return Options(policy=policy, profiler=profiler, **told, **given)
