"""`harness evaluate`: accuracy check, latency and score of prompts, as the NKI-MoE contest has them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from harness.accuracy.tolerances import DEFAULT
from harness.commands.options import loading
from harness.commands.perform import give_up_on, perform, prompts_of, run_options, warn
from harness.errors import UsageError
from harness.evaluation.score import BASE_LATENCY_MS, BASE_THROUGHPUT


@click.command()
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Evaluate this prompt.")
@click.option("--all", "all_of_them", is_flag=True, help="Evaluate every prompt of --prompts.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    default="prompts.txt",
    show_default=True,
    help="Of --all: prompts, blank lines between.",
)
@click.option("--base-data", type=click.Path(path_type=Path), help="CSV of base latency and throughput per prompt.")
@click.option("--base-latency", type=float, default=BASE_LATENCY_MS, show_default=True, help="p99, ms.")
@click.option(
    "--base-throughput", type=float, default=BASE_THROUGHPUT, show_default=True, help="Prompt and output tokens/s."
)
@click.option("--engine", default="hf", show_default=True, help="The engine.")
@click.option("--model", "--model-path", default="tinymoe", show_default=True, help="Known name, folder or hub id.")
@click.option("--precision", default="bf16", show_default=True, help="bf16, fp8, fp8_block, nvfp4, mxfp4.")
@click.option("--baseline", "file", type=click.Path(path_type=Path), help="Of these prompts.  [hf bf16, made first]")
@click.option("--seq-len", type=click.IntRange(2), default=640, show_default=True, help="Prompt and output tokens.")
@click.option("--num-iterations", type=click.IntRange(1), default=20, show_default=True, help="Timed runs per prompt.")
@click.option("--warmup-iterations", type=click.IntRange(0), default=1, show_default=True, help="Runs before those.")
@click.option("--tol-map", default=DEFAULT, show_default=True, help="{k: (absolute, relative)} of logit matching.")
@click.option("--divergence-difference-tol", type=click.FloatRange(min=0), default=0.001, show_default=True)
@click.option("--num-tokens-to-check", type=click.IntRange(1), default=32, show_default=True, help="Of each prompt.")
@click.option(
    "--kernel-flop-ratio", type=click.FloatRange(0, 1), help="Share of MACs in your own kernels, if you know it."
)
@click.option("--flop-provider", default="hlo", show_default=True, help="What counts it in --flop-source.")
@click.option(
    "--flop-source", type=click.Path(path_type=Path), help="What the provider reads, e.g. the compiler's folder."
)
@click.option("--team-id", help="First word of the CSV's name, and a column of it.")
@click.option("--member-id", help="A column of the CSV.")
@loading
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def evaluate(as_json: bool, **given: Any) -> None:
    """Check an engine's logits, time it as the NKI-MoE contest does, and score both.

    score = accuracy x base_latency / p99 x throughput / base_throughput x (1 + kernel_flop_ratio). Throughput counts prompt
    and output tokens here. A failed accuracy check scores 0. Writes benchmark_report.json and appends to the score CSV in
    the output folder. Exit code: 0 the logits match, 1 they do not or a cell failed, 2 wrong usage.
    """
    from harness.evaluation.run import Question, evaluate_prompts

    question = _question(given, Question)
    result, evaluations = evaluate_prompts(question, perform, give_up_on)
    for problem in result.problems:
        warn(problem)
    if as_json:
        click.echo(json.dumps([asdict(evaluation) for evaluation in evaluations], indent=1))
    else:
        for evaluation in evaluations:
            click.echo(evaluation.text())
        if len(evaluations) > 1:
            click.echo(_total(evaluations))
    sys.exit(result.exit_code or (0 if all(found.score.accuracy for found in evaluations) else 1))


def _question(given: dict[str, Any], kind: Any) -> Any:
    """Everything checked that can be before a model is loaded."""
    from harness.accuracy.tolerances import parse
    from harness.evaluation.prompts import read_base_data
    from harness.evaluation.score import csv_path, score
    from harness.plugins import discover

    prompts, all_of_them, prompts_file = (given.pop(name) for name in ("prompts", "all_of_them", "prompts_file"))
    if bool(prompts) == all_of_them:
        raise UsageError("give --prompt TEXT, or --all for every prompt of --prompts")
    texts = prompts_of(prompts, prompts_file if all_of_them else None)
    base_data = given.pop("base_data")
    if base_data and not all_of_them:
        raise UsageError(
            "--base-data is of the prompts of --all; for one prompt give --base-latency and --base-throughput"
        )
    bases = read_base_data(base_data) if base_data else ()
    parse(given["tol_map"])
    score(True, None, 1.0, 1.0, given["base_latency"], given["base_throughput"])  # refuses bases that cannot be
    csv_path(given["output_dir"], given["team_id"])
    ratio, source = given.pop("kernel_flop_ratio"), given.pop("flop_source")
    provider, why_no_ratio = given.pop("flop_provider"), "give --flop-source, or --kernel-flop-ratio if you know it"
    if source is not None:
        from harness.names import check_known

        if ratio is not None:
            raise UsageError("--kernel-flop-ratio and --flop-source: one of them, please")
        providers = discover().kernel_flop_providers
        counted = providers[check_known("kernel FLOP provider", provider, providers)].ratio(source)
        ratio, why_no_ratio = counted.ratio, f"{provider} counted nothing in {source}"
        for note in counted.notes:
            warn(f"{provider}: {note}")
    names = ("tol_map", "divergence_difference_tol", "num_tokens_to_check", "num_iterations", "warmup_iterations")
    measuring = {name: given.pop(name) for name in names}
    own = {
        name: given.pop(name) for name in ("file", "seq_len", "base_latency", "base_throughput", "team_id", "member_id")
    }
    return kind(
        texts=tuple(texts),
        bases=bases,
        measuring=measuring,
        kernel_flop_ratio=ratio,
        why_no_ratio=why_no_ratio,
        options=run_options({}, given),
        **own,
    )


def _total(evaluations: list[Any]) -> str:
    scores = [found.score.score for found in evaluations]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return f"no total: {len(scores) - len(known)} of {len(scores)} scores are not known"
    return f"total score of {len(scores)} prompts: {sum(known):.4f}"
