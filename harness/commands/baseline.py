"""`harness baseline`: run a reference, and keep what it gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import loading
from harness.commands.perform import absolute_dataset, give_up_on, perform, prompts_of, run_options, warn
from harness.errors import UsageError


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The file.")
@click.option("--engine", default="hf", show_default=True, help="The reference's engine.")
@click.option("--model", "--model-path", default="tinymoe", show_default=True, help="Known name, folder or hub id.")
@click.option("--precision", default="bf16", show_default=True, help="The reference's precision: bf16 or fp32.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt to continue. Repeatable.")
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), help="File of prompts, blank lines between."
)
@click.option("--dataset", help="stdlib, wikitext or file:PATH, when no prompt is given.  [stdlib]")
@click.option("--num-chunks", type=click.IntRange(1), help="Windows of the dataset, at most.  [16]")
@click.option("--input-len", type=click.IntRange(2), help="Tokens of a window.  [512; tinymoe: 256]")
@click.option("--num-tokens", type=click.IntRange(1), default=32, show_default=True, help="Continuation of a prompt.")
@click.option("--top-k", type=click.IntRange(1), help="Tokens kept of each row.  [all; 64 above 256 MiB]")
@loading
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, and nothing else, on stdout.")
def baseline(
    output: Path,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    num_tokens: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a reference, and keep its logits for `harness validate`.

    Over windows of a dataset and greedy continuations of their beginnings, or over prompts. The file is safetensors and
    holds token ids, logits (or the likeliest tokens and the mass of the others) and hashes of model and tokenizer.
    """
    from harness.accuracy.baseline import is_baseline
    from harness.accuracy.subject import about
    from harness.model import models

    texts = _texts(prompts, prompts_file, given)
    if not texts and num_tokens >= (given["input_len"] or num_tokens + 1):
        raise UsageError(
            f"--num-tokens {num_tokens} leaves nothing of windows of {given['input_len']} tokens to continue"
        )
    path = output.expanduser().resolve()
    if not path.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {path.parent}")
    if path.exists() and not is_baseline(path):
        raise UsageError(f"--output {output} is there already and is no baseline; it is left as it is")
    model = models.resolve(given["model"])
    sizes = {name: given.pop(name) for name in ("num_chunks", "input_len", "top_k")}
    dataset = given.pop("dataset")
    parameters = {
        **{name: value for name, value in sizes.items() if value is not None},
        **({"dataset": absolute_dataset(dataset)} if dataset else {}),
        "num_tokens": num_tokens,
        "output_len": num_tokens if texts else 0,
        "texts": texts,
        "output": str(path),
        "about": about(model, given["engine"], given["precision"]),
    }
    options = run_options({name: (value,) for name, value in parameters.items()}, {**given, "workloads": ("baseline",)})
    result = perform(options)
    for problem in result.problems:
        warn(problem)
    give_up_on(result)
    (record,) = result.records
    click.echo(json.dumps(record, indent=1) if as_json else _line(record))
    sys.exit(result.exit_code)


def _texts(prompts: tuple[str, ...], file: Path | None, given: dict[str, Any]) -> list[str] | None:
    if not prompts and file is None:
        return None
    for name in ("dataset", "num_chunks", "input_len"):
        if given[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is of a dataset's windows; prompts were given, too")
    return prompts_of(prompts, file)


def _line(record: dict[str, Any]) -> str:
    parts = [
        f"{found['sequences']} {name if name == 'windows' else 'continuations'} ({found['tokens']} tokens, "
        f"{found['kept_of_each']} of each row)".replace("whole vocabulary of", "whole vocabulary in")
        for name, found in record["sections"].items()
    ]
    what = f"{record['engine']} {record['precision']} on {record['model']}"
    return f"baseline of {what}: {' and '.join(parts)}: {record['baseline']}, {record['baseline_bytes'] / 1e6:.1f} MB"
