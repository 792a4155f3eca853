"""`harness compare A B`: are these comparable, and what is the difference?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import Names

if TYPE_CHECKING:
    from harness.judging.pairs import Pairs

NOT_COMPARABLE = 3
FINDINGS = {
    "regressed": "a metric of B is worse beyond noise and tolerance",
    "incomparable": "a pair is not comparable, or there is none",
    "missing": "a cell of A is not in B",
    "failed": "a cell of B failed",
    "unknown": "the noise of a metric is unknown",
}


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="A metric may be worse by this share: 0.02 is two percent.",
)
@click.option(
    "--assume",
    type=Names(),
    default=(),
    help="Conditions taken to agree where one side does not know them; noise, taken as none; or all.",
)
@click.option(
    "--fail-on",
    type=Names(),
    default=(),
    metavar="LIST",
    help="Exit with 1 on these and with 0 on all else: "
    + "; ".join(f"{name}, {meaning}" for name, meaning in FINDINGS.items())
    + ".",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def compare(
    a: Path, b: Path, tolerance: float, assume: tuple[str, ...], fail_on: tuple[str, ...], as_json: bool
) -> None:
    """Say whether two measurements are comparable, and how B differs from A.

    A and B are records, output folders of `harness run`, or results of vllm bench latency, vllm bench serve,
    trtllm-bench and AIPerf. Exit code: 0 no regression, 1 B is worse beyond noise and tolerance, 3 not comparable; with
    --fail-on 0 or 1.
    """
    from harness.judging.compare import NOISE
    from harness.judging.pairs import pair_up, read
    from harness.names import check_known
    from harness.recording.conditions import CONDITIONS

    for name in assume:
        check_known("condition", name, (*CONDITIONS, NOISE, "all"))
    for name in fail_on:
        check_known("finding", name, FINDINGS)
    pairs = pair_up(read(a), read(b), assume)
    click.echo(json.dumps(pairs.to_json(), indent=1) if as_json else pairs.text(tolerance))
    if fail_on:
        found = _findings(pairs, tolerance).intersection(fail_on)
        if found:
            click.echo(f"fails: {', '.join(name for name in FINDINGS if name in found)}", err=True)
        sys.exit(1 if found else 0)
    sys.exit(1 if pairs.regressions(tolerance) else 0 if pairs.comparable else NOT_COMPARABLE)


def _findings(pairs: Pairs, tolerance: float) -> set[str]:
    from harness.judging.compare import UNKNOWN

    theirs = [pair.b for pair in pairs.pairs] + [record for side, record in pairs.alone if side == "B"]
    verdicts = {found.verdict for pair in pairs.pairs for found in pair.comparison.metrics.values()}
    found = {
        "regressed": pairs.regressions(tolerance),
        "incomparable": not pairs.pairs or not all(pair.comparison.comparable for pair in pairs.pairs),
        "missing": any(side == "A" for side, _ in pairs.alone),
        "failed": any(record["status"] == "failed" for record in theirs),
        "unknown": UNKNOWN in verdicts,
    }
    return {name for name, is_so in found.items() if is_so}
