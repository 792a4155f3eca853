"""`harness run`: measure, and print one table."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import Names, Numbers
from harness.errors import UsageError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a batch system's or a terminal's stop is as orderly as Ctrl-C
PARAMETERS = ("batch_size", "input_len", "output_len", "num_iterations", "warmup_iterations", "num_chunks", "dataset")


@click.command()
@click.option("--engine", "engines", type=Names(), default="hf", show_default=True, help="Engines, e.g. hf,vllm.")
@click.option(
    "--model",
    "--model-path",
    "models",
    type=Names(),
    default="tinymoe",
    show_default=True,
    help="Known name, folder or hub id.",
)
@click.option(
    "--precision",
    "--precisions",
    "precisions",
    type=Names(),
    default="bf16,fp8,nvfp4",
    show_default=True,
    help="bf16, fp8, fp8_block, nvfp4, mxfp4.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="PRECISION=PATH",
    help="Checkpoint of the model in that precision. Repeatable.",
)
@click.option("--fp8-model-path", metavar="PATH", help="Same as --checkpoint fp8=PATH.")
@click.option("--nvfp4-model-path", metavar="PATH", help="Same as --checkpoint nvfp4=PATH.")
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
    "--quantize",
    type=click.Choice(["experts", "linear"]),
    default="experts",
    show_default=True,
    help="Which products a quantised precision reaches.",
)
@click.option("--tp", type=Numbers(1), default="1", show_default=True, help="Tensor parallel ranks.")
@click.option("--ep", type=Numbers(1), default="1", show_default=True, help="Expert parallel ranks.")
@click.option(
    "--moe-backend", "moe_backends", type=Names(), default="auto", show_default=True, help="The engine's MoE kernels."
)
@click.option("--disable-fusion", is_flag=True, help="Ask the engine not to fuse kernels around the experts.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own Python code.")
@click.option(
    "--profile", "profiler", metavar="PROFILER", help="Add one profiled pass per cell; see harness list profilers."
)
@click.option(
    "--python", "pythons", multiple=True, metavar="ENGINE=PATH", help="Interpreter an engine runs in. Repeatable."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds a worker may go without a sign of life.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default="benchmark_results",
    show_default=True,
    help="Everything is written here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as a JSON array, and nothing else, on stdout.")
def run(as_json: bool, **given: Any) -> None:
    """Measure a model on engines at precisions, and print one table.

    Without options: the embedded model tinymoe on hf, at bf16, fp8 and nvfp4, speed and perplexity. Options that take
    a list take comma lists; every combination is measured. Exit code: 0 all measured or skipped, 1 a cell failed,
    2 wrong usage, 130 stopped by Ctrl-C.
    """
    from harness.plugins import discover
    from harness.progress import Progress
    from harness.run import execute, make_plan

    options = _options(given)
    for problem in discover().problems:  # before the plan, which may miss what was left out
        _warn(problem)
    plan = make_plan(options, _warn)
    progress = Progress(total=sum(cell.skip is None for cell in plan.cells))
    for number in STOPS:
        signal.signal(number, _interrupt)
    try:
        result = execute(plan, options, progress.on_event, _warn)
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps(result.records, indent=1))
    else:
        _print_table(result.records)
        click.echo(f"records: {options.output_dir / 'records'}")
    for problem in result.problems:
        _warn(problem)
    sys.stdout.flush()
    sys.exit(result.exit_code)


def _options(given: dict[str, Any]) -> Any:
    from harness.run import Options, parse_pairs

    parameters = {name: given.pop(name) for name in PARAMETERS}
    if parameters["dataset"]:
        parameters["dataset"] = tuple(map(_absolute_dataset, parameters["dataset"]))
    checkpoints = dict(parse_pairs("--checkpoint", given.pop("checkpoints")))
    for precision in ("fp8", "nvfp4"):
        path = given.pop(f"{precision}_model_path")
        if path == "":
            raise UsageError(f"--{precision}-model-path is empty")
        if path:
            if checkpoints.setdefault(precision, path) != path:
                raise UsageError(f"two checkpoints for {precision}: {checkpoints[precision]} and {path}")
    return Options(
        parameters={name: values for name, values in parameters.items() if values is not None},
        checkpoints=checkpoints,
        pythons=dict(parse_pairs("--python", given.pop("pythons"))),
        **given,
    )


def _absolute_dataset(name: str) -> str:
    """The job that reads it runs in another folder."""
    from harness.corpus import DATASETS
    from harness.names import check_known

    if name.startswith("file:"):
        path = os.path.abspath(os.path.expanduser(name.removeprefix("file:")))
        if not os.path.isfile(path):
            raise UsageError(f"dataset {name!r}: no such file")
        return f"file:{path}"
    return check_known("dataset", name, DATASETS)


def _print_table(records: list[dict[str, Any]]) -> None:
    from harness.table import print_verdict

    if records:
        print_verdict(records, sys.stdout)


def _interrupt(number: int, frame: Any) -> None:
    for each in STOPS:  # an impatient second one must not tear what the first is writing
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)
