"""`harness ladder`: an engine's optimisations, one on another and one by one, beside plain eager."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import Names, Numbers, loading
from harness.commands.perform import absolute_dataset, perform_plan, run_options, warn

BATCHES = (1, 16, 64)  # on a GPU
SIZES = ("input_len", "output_len", "num_iterations", "warmup_iterations", "num_chunks")
QUICK = {"output_len": (32,), "num_iterations": (3,), "warmup_iterations": (1,), "num_chunks": (8,)}
# Decoding continues the first half of a prompt: 128 tokens, as many as tinymoe's speed is measured with, so that no step
# compiles its prefill for one more length.
QUICK_LOGITS = {"batch_size": 1, "input_len": 256, "output_len": 8}
REPEATS = 3  # rounds; fewer have no interval that covers the noise between starts


@click.command()
@click.option("--engine", default="hf", show_default=True, help="One that has rungs: see harness list rungs.")
@click.option("--model", "--model-path", default="tinymoe", show_default=True, help="Known name, folder or hub id.")
@click.option(
    "--precision",
    "--precisions",
    "precisions",
    type=Names(),
    default="bf16",
    show_default=True,
    help="The first has the whole ladder; each other is one more step at its top.",
)
@click.option("--batch-size", type=Numbers(1), help="Requests at once.  [1,16,64; on a CPU 1]")
@click.option("--input-len", type=Numbers(1), help="Tokens per prompt.  [512; tinymoe: 128]")
@click.option("--output-len", type=Numbers(1), help="Tokens generated per request.  [256; tinymoe: 32]")
@click.option("--num-iterations", type=Numbers(1), help="Timed iterations of each round.  [20; tinymoe: 10]")
@click.option("--warmup-iterations", type=Numbers(0), help="Iterations before those.  [5; tinymoe: 2]")
@click.option("--num-chunks", type=Numbers(1), help="Windows of the perplexity, at most.  [100; tinymoe: 64]")
@click.option("--dataset", help="Of the perplexity: stdlib, wikitext or file:PATH.  [stdlib]")
@click.option("--weights", type=click.Choice(["real", "dummy"]), default="real", show_default=True)
@click.option("--quick", is_flag=True, help="One round of a few short iterations, only rungs one on another.")
@click.option("--repeats", type=click.IntRange(1), help=f"Rounds, each step in turn.  [{REPEATS}; quick: 1]")
@click.option("--steps", "kinds", type=Names(), help="cumulative, single.  [cumulative,single; quick: cumulative]")
@click.option(
    "--resume", is_flag=True, help="Go on where a ladder in this folder stopped: what was measured there stays."
)
@click.option("--without", type=Names(), help="Rungs to leave out, with all that need them.")
@click.option(
    "--profile",
    "profiler",
    is_flag=False,
    flag_value="torch",
    metavar="[PROFILER]",
    help="Then profile each step of the ladder, and say what it did to the ledger.  [torch]",
)
@loading
@click.option("--output", type=click.Path(path_type=Path), help="Also write the report there: .html, or .md.")
@click.option("--json", "as_json", is_flag=True, help="The rows as a JSON array, and nothing else, on stdout.")
def ladder(output: Path | None, as_json: bool, **given: Any) -> None:
    """Measure an engine's optimisations one on another and one by one, each beside plain eager.

    Every step is a start of its own, and in each round all steps run in turn. What a rung changes in the output is
    measured, too: KL of the logits beside plain eager's, and perplexity where the weights are real. Exit code: 0 all
    measured or not possible here, 1 a cell failed, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    from harness.commands.page import check_page, write_page
    from harness.ladder.climb import PROFILES, climb
    from harness.ladder.ledger import text
    from harness.ladder.rows import ladders
    from harness.ladder.show import print_ladder

    check_page(output)
    options, asked = asked_for(given)
    climbed = climb(options, asked, perform_plan, warn)
    records = climbed.result.records
    if as_json:
        click.echo(json.dumps([row.to_json() for rows in ladders(records) for row in rows], indent=1))
    else:
        print_ladder(records, sys.stdout)
        click.echo(text(climbed.profiled.records, options.output_dir / PROFILES), nl=bool(climbed.profiled.records))
        click.echo(f"records: {options.output_dir / 'records'}")
    if output:
        folders = [options.output_dir, *([options.output_dir / PROFILES] if climbed.profiled.records else [])]
        write_page(folders, output)
        click.echo(str(output), err=as_json)
    for problem in climbed.problems:
        warn(problem)
    sys.stdout.flush()
    sys.exit(climbed.exit_code)


def asked_for(given: dict[str, Any]) -> tuple[Any, Any]:
    """`Options` and `Asked` from the command's options. Raises UsageError."""
    from harness import device
    from harness.errors import UsageError
    from harness.ladder.climb import Asked
    from harness.ladder.steps import CUMULATIVE, KINDS
    from harness.names import check_known
    from harness.planning.schedule import Policy

    is_quick, is_dummy = given.pop("quick"), given["weights"] == "dummy"
    if given.pop("rungs") != ("default",):
        raise UsageError("--rungs: a ladder takes every rung that can be on; --without leaves some out")
    if (given["workers"] or 1) > 1:
        raise UsageError("--workers: a ladder compares speeds, so its steps run one after another")
    kinds = given.pop("kinds") or ((CUMULATIVE,) if is_quick else KINDS)
    for kind in kinds:
        check_known("kind of step", kind, KINDS)
    without = dict.fromkeys(given.pop("without") or (), "")
    asked = Asked(kinds, without, given.pop("profiler"), QUICK_LOGITS if is_quick else {})
    rounds = given.pop("repeats") or (1 if is_quick else REPEATS)
    said = {name: given.pop(name) for name in SIZES}
    parameters = {**(QUICK if is_quick else {}), **{name: value for name, value in said.items() if value is not None}}
    batches = given.pop("batch_size")
    parameters["batch_size"] = batches or ((1,) if is_quick or device.detect().kind == "cpu" else BATCHES)
    if dataset := given.pop("dataset"):
        parameters["dataset"] = (absolute_dataset(dataset),)
    more = {"workloads": ("perf",) if is_dummy else ("perf", "ppl"), "policy": Policy(rounds, rounds)}
    return run_options(parameters, {**given, **more}), asked
