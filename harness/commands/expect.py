"""`harness expect record DIR` and `harness expect check DIR`: a gate against what a device measured before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import Names
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.judging.expectations import Finding
    from harness.recording.records import Record


@click.group()
def expect() -> None:
    """Keep what a device measured as expectations, and check later runs against them."""


@expect.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to keep.")
@click.option("--metric", "metrics", type=Names(), help="[latency_ms,ttft_ms,itl_ms,perplexity]")
@click.option(
    "--tolerance",
    "tolerances",
    multiple=True,
    metavar="[METRIC=]PCT",
    help="Percent a metric may be worse. Repeatable.  [speed: 5; perplexity: 0.5]",
)
@click.option("--update", is_flag=True, help="Change a file that exists, and print what changes.")
def record(
    folder: Path, output: Path, metrics: tuple[str, ...] | None, tolerances: tuple[str, ...], update: bool
) -> None:
    """Make expectations of what the records in DIR measured.

    Speed is taken from native and weight-only cells, perplexity from real weights. With --update what DIR did not
    measure stays as it is, other devices' expectations too, and so do tolerances that are not given. Exit code: 0
    written, 2 wrong usage, also for a file that exists without --update.
    """
    from harness.judging.compare import METRICS
    from harness.judging.expectationfile import read, text
    from harness.judging.expectations import DEFAULT_METRICS, changes, expected_of, merged
    from harness.names import check_known
    from harness.recording.records import write_text

    for name in metrics or ():
        check_known("metric", name, METRICS)
    if output.exists() and not update:
        raise UsageError(f"{output} exists: --update changes it, and prints what changes")
    given = _shares(tolerances)
    old = read(output) if output.exists() else []
    found, left_out = expected_of(_records(folder), metrics or DEFAULT_METRICS, given, _commit())
    if not found:
        raise UsageError(f"{str(folder)!r}: nothing to expect: {'; '.join(left_out)}")
    new = merged(old, found, set(METRICS) - given.keys())
    lines = changes(old, new)
    try:
        write_text(output, text(new))
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror or error}") from error
    _say([*(f"left out {line}" for line in left_out), *lines])
    _say([f"{output}: {len(new)} expectations, {len(new) - len(lines)} of them as they were"])


@expect.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--expectations",
    "file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="As `record` wrote it.",
)
@click.option("--fail-on-unknown", is_flag=True, help="What cannot be judged fails, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def check(folder: Path, file: Path, fail_on_unknown: bool, as_json: bool) -> None:
    """Say how the records in DIR stand to expectations: improved, regressed, unchanged or unknown.

    A change is one beyond the tolerance and the noise of both runs. What was measured under other conditions is
    unknown, and so is what the noise would hide. Exit code: 0 nothing regressed, 1 something did, or is unknown with
    --fail-on-unknown (expectations of other devices only where there are none of this one), 2 wrong usage.
    """
    from harness.judging import expectations
    from harness.judging.expectationfile import read

    records = _records(folder)
    found, others = expectations.check(read(file), records)
    counts = Counter(one.status for one in found)
    summary = {status: counts[status] for status in expectations.STATUSES}
    unknown = [one for one in found if one.status == expectations.UNKNOWN and not one.is_elsewhere]
    nothing_here = all(one.is_elsewhere for one in found)
    is_bad = bool(summary[expectations.REGRESSED] or fail_on_unknown and (unknown or nothing_here))
    if as_json:
        answer = {"passed": not is_bad, "summary": summary, "findings": [one.to_json() for one in found]}
        click.echo(json.dumps({**answer, "without_expectation": others}, indent=1))
    else:
        _say(_lines(found))
        _say([f"no expectation of {cell}" for cell in others])
        _say([", ".join(f"{n} {status}" for status, n in summary.items())])
    sys.stdout.flush()
    sys.exit(1 if is_bad else 0)


def _say(lines: list[str]) -> None:
    from harness.lint.findings import printable

    for line in lines:
        click.echo(printable(line))


def _lines(found: list[Finding]) -> list[str]:
    """One for each; those of other devices together."""
    lines, elsewhere = [], Counter(one.expectation.device for one in found if one.is_elsewhere)
    for one in found:
        e = one.expectation
        if one.is_elsewhere:
            continue
        numbers = "" if one.ratio is None else f" {e.value:.4f} -> {one.value:.4f} ({one.ratio - 1:+.2%}"
        numbers += "" if one.ratio is None else f", tolerance {e.tolerance:.1%}"
        numbers += "" if one.noise is None else f", noise {one.noise:.1%}"
        reason = f": {one.reason}" if one.reason else ""
        lines.append(f"{one.status:<9}  {e.label}{numbers}{')' if numbers else ''}{reason}")
    return [*lines, *(f"unknown    {n} expectations of another device, {device}" for device, n in elsewhere.items())]


def _records(folder: Path) -> list[Record]:
    from harness.recording.records import is_record, read_files

    if not (folder / "records").is_dir():
        raise UsageError(f"{str(folder)!r}: no output folder of `harness run`: it has no records/")
    found = [value for _, value in read_files(folder) if is_record(value)]
    if found := [one for one in found if all(isinstance(one.get(n), dict) for n in ("requested", "environment"))]:
        return found
    raise UsageError(f"{str(folder)!r}: no records in it that this version reads")


def _shares(tolerances: tuple[str, ...]) -> dict[str, float]:
    """By metric, from percent; one without a name is for every metric that has none of its own."""
    from harness.judging.compare import METRICS
    from harness.names import check_known

    found: dict[str, float] = {}
    for words in sorted(tolerances, key=lambda words: "=" in words):
        name, _, percent = words.rpartition("=")
        try:
            share = float(percent) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share < 10:
            raise UsageError(f"--tolerance {words}: expected percent from 0 to 1000, or METRIC=PERCENT")
        found |= dict.fromkeys([check_known("metric", name, METRICS)] if name else METRICS, share)
    return found


def _commit() -> str | None:
    """Of the repository this is run in."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
