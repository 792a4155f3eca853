"""`harness analyze-all`: everything there is to measure of one model on one engine, and the report of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from harness.commands.options import Numbers, loading, precisions
from harness.commands.perform import absolute_dataset, perform, perform_plan, run_options, warn

MOST_BATCH = {"cuda": 256, "cpu": 16}
SIZES = ("input_len", "output_len", "num_iterations", "warmup_iterations", "num_chunks")
QUICK = {"output_len": (32,), "num_iterations": (3,), "warmup_iterations": (1,), "num_chunks": (8,)}
ROUNDS = 3


@click.command("analyze-all")
@click.option("--engine", default="hf", show_default=True, help="The engine.")
@click.option("--model", "--model-path", default="tinymoe", show_default=True, help="Known name, folder or hub id.")
@precisions("The first is that of batches and optimisations.")
@click.option("--input-len", type=Numbers(1), help="Tokens per prompt or window.  [512; tinymoe: 128 and 256]")
@click.option("--output-len", type=Numbers(1), help="Tokens generated per request.  [256; tinymoe: 32]")
@click.option("--num-iterations", type=Numbers(1), help="Timed iterations.  [20; tinymoe: 10]")
@click.option("--warmup-iterations", type=Numbers(0), help="Iterations before those.  [5; tinymoe: 2]")
@click.option("--num-chunks", type=Numbers(1), help="Windows scored, at most.  [100; tinymoe: 64]")
@click.option("--dataset", help="stdlib, wikitext or file:PATH.  [stdlib]")
@click.option("--max-batch-size", type=click.IntRange(1), help="Last batch size to try.  [256; on a CPU 16]")
@click.option("--weights", type=click.Choice(["real", "dummy"]), default="real", show_default=True)
@click.option("--quick", is_flag=True, help="Few short iterations, one round: on a CPU with tinymoe a few minutes.")
@loading
@click.option("--output", type=click.Path(path_type=Path), help="The report: .html, or .md.  [OUTPUT_DIR/report.html]")
def analyze_all(output: Path | None, **given: Any) -> None:
    """Measure all of it in one go: speed, accuracy, precisions, batches, optimisations, kernels; and write the report.

    In turn: every precision with its kernels and its share of the hardware's limit, batch sizes until memory ends, the
    ladder of optimisations, and where there are several GPUs tensor parallelism. A part that is not possible here is
    said and passed over. Exit code: 0 all measured or skipped, 1 a cell failed, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    from harness.commands.page import check_page, write_page
    from harness.errors import UsageError

    asked = _asked(given)
    folder = asked.options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    page = output or folder / "report.html"
    try:
        check_page(page)
    except UsageError:
        if output:
            raise
        page = folder / "report.md"  # needs nothing that may be missing
    began, code = time.monotonic(), 0
    measured: list[Any] = []
    for name, part in PARTS.items():
        click.echo(f"\n{name}\n{'=' * len(name)}")
        try:
            found = part(asked, measured)
        except UsageError as error:  # of this part; what the options say was checked by the first
            if not measured:
                raise
            click.echo(f"passed over: {error}")
            continue
        for problem in found.problems:
            warn(problem)
        measured += found.records
        code = max(code, found.exit_code)
        sys.stdout.flush()
        if code == 130:
            break
    folders = [place for place in _folders(folder) if any((place / "records").glob("*.json"))]
    if folders:
        write_page(folders, page)
        click.echo(f"\nreport: {page}")
    click.echo(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(code)


@dataclass(frozen=True)
class _Asked:
    options: Any  # a planning.plan.Options that goes for every part
    is_quick: bool
    most: int  # the last batch size


def _precisions(asked: _Asked, measured: Sequence[Any]) -> Any:
    """Speed, accuracy, kernels and roofline of every precision at batch 1."""
    from dataclasses import replace

    from harness.judging.breakdown import print_breakdown
    from harness.judging.table import print_verdict

    options = asked.options
    result = perform(replace(options, profiler="torch", parameters={**options.parameters, "batch_size": (1,)}))
    print_verdict(result.records, sys.stdout)
    print_breakdown(result.records, sys.stdout)
    return result


def _batches(asked: _Asked, measured: Sequence[Any]) -> Any:
    """Batch 1 is the record that the precisions left: measured anew, it would lose its profile."""
    from dataclasses import replace

    from harness.ladder.batches import sweep

    first = asked.options.precisions[:1]
    known = [record for record in measured if record["workload"] == "perf" and record["precision"] in first]
    found = sweep(replace(asked.options, precisions=first), asked.most, perform, known)
    for line in found.lines():
        click.echo(line)
    return found


def _ladder(asked: _Asked, measured: Sequence[Any]) -> Any:
    from dataclasses import replace

    from harness.commands.ladder import QUICK_LOGITS
    from harness.ladder.climb import Asked, climb
    from harness.ladder.ledger import text
    from harness.ladder.show import print_ladder
    from harness.ladder.steps import CUMULATIVE, KINDS
    from harness.planning.schedule import Policy

    options, is_quick = asked.options, asked.is_quick
    rounds = 1 if is_quick else ROUNDS
    wanted = options.precisions[:1] if is_quick else options.precisions
    batches = tuple(size for size in ((1,) if is_quick else (1, 16, 64)) if size <= asked.most)
    again = replace(
        options,
        policy=Policy(rounds, rounds),
        precisions=wanted,
        parameters={**options.parameters, "batch_size": batches},
        output_dir=options.output_dir / LADDER,
    )
    steps = Asked((CUMULATIVE,), logits=QUICK_LOGITS) if is_quick else Asked(KINDS, profiler="torch")
    climbed = climb(again, steps, perform_plan, warn)
    print_ladder(climbed.result.records, sys.stdout)
    click.echo(text(climbed.profiled.records, again.output_dir / PROFILES), nl=bool(climbed.profiled.records))
    return climbed


def _scaling(asked: _Asked, measured: Sequence[Any]) -> Any:
    from dataclasses import replace

    from harness import device
    from harness.cells import AND
    from harness.columns import columns
    from harness.errors import UsageError
    from harness.judging.table import print_verdict
    from harness.plugins import discover
    from harness.report.scaling import rows

    here = device.detect()
    ranks = tuple(tp for tp in (1, 2, 4, 8) if tp <= here.count)
    if here.kind != "cuda" or len(ranks) < 2:
        raise UsageError("one GPU or none here: there is nothing to scale over")
    options = asked.options
    engine = discover().engines[options.engines[0]]
    if "tp" not in engine.options:
        raise UsageError(f"{engine.name} has no tensor parallelism")
    alike = engine.rungs_with_tp  # one rank and several must run the same
    result = perform(
        replace(
            options,
            tp=ranks,
            rungs=options.rungs if alike is None else (AND.join(alike),),
            precisions=options.precisions[:1],
            workloads=("perf",),
            profiler="torch",
            parameters={**options.parameters, "batch_size": (1, min(16, asked.most))},
        )
    )
    print_verdict(result.records, sys.stdout)
    click.echo(columns(rows(result.records)))
    return result


PARTS = {
    "Precisions, kernels and the hardware's limit": _precisions,
    "Batch sizes": _batches,
    "Optimisations": _ladder,
    "Scaling over GPUs": _scaling,
}
LADDER, PROFILES = "ladder", "profiles"  # folders inside the output folder, of records with other rounds


def _folders(root: Path) -> Iterator[Path]:
    yield from (root, root / LADDER, root / LADDER / PROFILES)


def _asked(given: dict[str, Any]) -> _Asked:
    """From the command's options. Raises UsageError."""
    from harness import device
    from harness.errors import UsageError

    is_quick = given.pop("quick")
    if given["rungs"] != ("default",) or given["tp"] != (1,):
        raise UsageError("--rungs and --tp: analyze-all takes several of its own accord")
    most = given.pop("max_batch_size") or MOST_BATCH.get(device.detect().kind, 16)
    said = {name: values for name in SIZES if (values := given.pop(name)) is not None}
    dataset = given.pop("dataset")
    parameters = {
        **(QUICK if is_quick else {}),
        **said,
        **({"dataset": (absolute_dataset(dataset),)} if dataset else {}),
    }
    workloads = ("perf",) if given["weights"] == "dummy" else ("perf", "ppl")
    return _Asked(run_options(parameters, {**given, "workloads": workloads}), is_quick, most)
