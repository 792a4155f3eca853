"""`harness generate`: prompts in, text out, on any engine at any precision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import loading
from harness.commands.perform import give_up_on, perform, prompts_of, run_options, warn
from harness.errors import UsageError


@click.command()
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt. Repeatable.")
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), help="File of prompts, blank lines between."
)
@click.option("--engine", default="hf", show_default=True, help="The engine.")
@click.option("--model", "--model-path", default="tinymoe", show_default=True, help="Known name, folder or hub id.")
@click.option("--precision", default="bf16", show_default=True, help="bf16, fp8, fp8_block, nvfp4, mxfp4.")
@click.option("--num-tokens", type=click.IntRange(1), default=128, show_default=True, help="At most, of each prompt.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token; as --temperature 0.")
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.6, show_default=True, help="0: greedy.")
@click.option("--top-k", type=click.IntRange(0), default=20, show_default=True, help="Likeliest tokens. 0: all.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True, help="Their mass."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn.")
@loading
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, and nothing else, on stdout.")
def generate(prompts: tuple[str, ...], prompts_file: Path | None, greedy: bool, as_json: bool, **given: Any) -> None:
    """Continue prompts by sampling, and print the text.

    Nothing is timed; it is for reading what a precision makes of a prompt. With the same seed, an engine repeats itself;
    two engines draw different tokens.
    """
    from harness.model import models

    texts = prompts_of(prompts, prompts_file)
    if not texts:
        raise UsageError("no prompt: give --prompt TEXT or --prompts FILE")
    model = models.resolve(given["model"])
    parameters = {name: given.pop(name) for name in ("temperature", "top_k", "top_p", "seed")}
    parameters |= {"texts": texts, "model": model.path, "output_len": given.pop("num_tokens")}
    parameters |= {"temperature": 0.0} if greedy else {}
    axes = {name: (value,) for name, value in parameters.items()}
    result = perform(run_options(axes, {**given, "workloads": ("generate",)}))
    for problem in result.problems:
        warn(problem)
    give_up_on(result)
    (record,) = result.records
    if as_json:
        click.echo(json.dumps(record, indent=1))
    else:
        for found in record["generated"]:
            click.echo(
                f"{found['prompt']}{found['text']}\n[{len(found['token_ids'])} tokens, ended by {found['ended']}]\n"
            )
    sys.exit(result.exit_code)
