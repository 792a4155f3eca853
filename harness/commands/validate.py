"""`harness validate`: engines and precisions beside a baseline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.accuracy.tolerances import DEFAULT
from harness.commands.options import ENGINES, loading, precisions
from harness.commands.perform import perform, run_options, warn

FAILED = 1


@click.command()
@click.option("--baseline", "file", type=click.Path(path_type=Path), required=True, help="File of harness baseline.")
@ENGINES
@click.option("--model", "--model-path", help="Known name, folder or hub id.  [the baseline's]")
@precisions("With bf16 among them the engine's error and the precision's are told apart.")
@click.option("--tol-map", default=DEFAULT, show_default=True, help="{k: (absolute, relative)} of logit matching.")
@click.option(
    "--divergence-difference-tol",
    type=click.FloatRange(min=0),
    default=0.001,
    show_default=True,
    help="How far apart the engine may hold the expected token and the one it chose.",
)
@click.option("--num-tokens-to-check", type=click.IntRange(1), help="Of each greedy continuation.  [all]")
@loading
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def validate(file: Path, model: str | None, as_json: bool, **given: Any) -> None:
    """Say how far engines and precisions lie from a baseline, and what is to blame.

    KL both ways, agreement and NLL over the baseline's tokens, routing drift, and the logit-matching test along its
    greedy continuations. Exit code: 0 logits match, 1 they do not or a cell failed, 2 wrong usage or unusable logits.
    """
    from harness.accuracy.baseline import check_same_model, open_baseline
    from harness.accuracy.ladder import climb
    from harness.accuracy.tolerances import parse
    from harness.accuracy.verdict import print_verdict, to_json
    from harness.model import models, weights

    parse(given["tol_map"])
    baseline = open_baseline(file.expanduser().resolve())
    chosen = models.resolve(model or _model_of(baseline.about))
    check_same_model(baseline, chosen.path, weights.fingerprint(chosen.path, "real", 0))
    longest = max(len(ids) for section in baseline.sections for ids in baseline.ids(section))
    names = ("tol_map", "divergence_difference_tol", "num_tokens_to_check")
    parameters = {"baseline": str(baseline.path), "input_len": longest, **{name: given.pop(name) for name in names}}
    options = run_options({}, {**given, "models": (chosen.name if chosen.name in models.known() else chosen.path,)})
    result = climb(baseline, options, parameters, perform)
    if as_json:
        click.echo(json.dumps(to_json(baseline, result.records), indent=1))
    else:
        print_verdict(baseline, result.records, sys.stdout)
    for problem in result.problems:
        warn(problem)
    sys.stdout.flush()
    sys.exit(_exit_code(result))


def _model_of(about: dict[str, Any]) -> str:
    from harness.model import models

    return about["model"] if about["model"] in models.known() else about["path"]


def _exit_code(result: Any) -> int:
    if any(record["status"] == "failed" and record["failure"]["class"] == "bad_output" for record in result.records):
        return 2
    passed = [record["logit_matching"] for record in result.records if record["status"] in ("ok", "mismatch")]
    if any(matching and matching["passed"] is False for matching in passed):
        return result.exit_code or FAILED
    return result.exit_code
