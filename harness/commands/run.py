"""`harness run`: measure, and print one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import ENGINES, Names, Numbers, loading, precisions
from harness.commands.perform import absolute_dataset, perform, run_options, warn
from harness.errors import UsageError

OWN_COMMANDS = frozenset({"baseline", "validate", "generate", "evaluate"})
PARAMETERS = ("batch_size", "input_len", "output_len", "num_iterations", "warmup_iterations", "num_chunks", "dataset")


@click.command()
@ENGINES
@click.option(
    "--model",
    "--model-path",
    "models",
    type=Names(),
    default="tinymoe",
    show_default=True,
    help="Known name, folder or hub id.",
)
@precisions("bf16, fp8, fp8_block, nvfp4, mxfp4.")
@click.option("--workload", "workloads", type=Names(), default="perf,ppl", show_default=True, help="What to measure.")
@click.option("--batch-size", type=Numbers(1), help="Requests at once.  [perf: 1]")
@click.option("--input-len", type=Numbers(1), help="Tokens per prompt or window.  [512; tinymoe: 128 and 256]")
@click.option("--output-len", type=Numbers(1), help="Tokens generated per request.  [perf: 256; tinymoe: 32]")
@click.option("--num-iterations", type=Numbers(1), help="Timed iterations.  [perf: 20; tinymoe: 10]")
@click.option("--warmup-iterations", type=Numbers(0), help="Iterations before those.  [perf: 5; tinymoe: 2]")
@click.option("--num-chunks", type=Numbers(1), help="Windows scored, at most.  [ppl: 100; tinymoe: 64]")
@click.option("--dataset", type=Names(), help="stdlib, wikitext or file:PATH.  [ppl: stdlib]")
@click.option(
    "--weights",
    type=click.Choice(["real", "dummy"]),
    default="real",
    show_default=True,
    help="dummy: random, seeded, full size.",
)
@click.option(
    "--profile", "profiler", metavar="PROFILER", help="Add one profiled pass per cell; see harness list profilers."
)
@click.option(
    "--show-command", is_flag=True, help="With --profile nsys: print the line that does it by hand, and do no more."
)
@loading
@click.option("--json", "as_json", is_flag=True, help="Print the records as a JSON array, and nothing else, on stdout.")
def run(as_json: bool, show_command: bool, **given: Any) -> None:
    """Measure a model on engines at precisions, and print one table.

    Without options: the embedded model tinymoe on hf, at bf16, fp8 and nvfp4, speed and perplexity. Options that take
    a list take comma lists; every combination is measured. Exit code: 0 all measured or skipped, 1 a cell failed,
    2 wrong usage, 130 stopped by Ctrl-C.
    """
    options = _options(given)
    if show_command:
        click.echo(_by_hand(options))
        return
    result = perform(options)
    if as_json:
        click.echo(json.dumps(result.records, indent=1))
    else:
        _print_table(result.records)
        click.echo(f"records: {options.output_dir / 'records'}")
    for problem in result.problems:
        warn(problem)
    sys.stdout.flush()
    sys.exit(result.exit_code)


def _by_hand(options: Any) -> str:
    """Raises UsageError where there is no such line."""
    from harness import device
    from harness.profilers.nsys import by_hand

    if options.profiler != "nsys":
        raise UsageError("--show-command goes with --profile nsys: no other profiler is started from outside")
    if len(options.precisions) * len(options.engines) > 1:
        raise UsageError("--show-command: one engine and one --precision, please: nsys records one capture range")
    name = f"profile_{options.precisions[0]}_{device.detect().label}"
    words = [word for word in sys.argv[1:] if word != "--show-command"]
    return by_hand(Path.cwd() / name, words)


def _options(given: dict[str, Any]) -> Any:
    parameters = {name: given.pop(name) for name in PARAMETERS}
    if parameters["dataset"]:
        parameters["dataset"] = tuple(map(absolute_dataset, parameters["dataset"]))
    for name in OWN_COMMANDS.intersection(given["workloads"]):
        raise UsageError(f"--workload {name}: that is a command of its own, harness {name}")
    return run_options({name: values for name, values in parameters.items() if values is not None}, given)


def _print_table(records: list[dict[str, Any]]) -> None:
    from harness.judging.breakdown import print_breakdown
    from harness.judging.table import print_verdict

    if records:
        print_verdict(records, sys.stdout)
        print_breakdown(records, sys.stdout)
