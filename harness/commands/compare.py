"""`harness compare A B`: are these comparable, and what is the difference?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from harness.commands.options import Names

NOT_COMPARABLE = 3


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
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def compare(a: Path, b: Path, tolerance: float, assume: tuple[str, ...], as_json: bool) -> None:
    """Say whether two measurements are comparable, and how B differs from A.

    A and B are records, output folders of `harness run`, or results of vllm bench latency, vllm bench serve,
    trtllm-bench and AIPerf. Exit code: 0 no regression, 1 B is worse beyond noise and tolerance, 3 not comparable.
    """
    from harness.compare import NOISE
    from harness.conditions import CONDITIONS
    from harness.names import check_known
    from harness.pairs import pair_up, read

    for name in assume:
        check_known("condition", name, (*CONDITIONS, NOISE, "all"))
    pairs = pair_up(read(a), read(b), assume)
    click.echo(json.dumps(pairs.to_json(), indent=1) if as_json else pairs.text(tolerance))
    sys.exit(1 if pairs.regressions(tolerance) else 0 if pairs.comparable else NOT_COMPARABLE)
