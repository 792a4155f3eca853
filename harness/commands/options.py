"""Option types the commands share, and the options of every command that loads a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.kernels.taxonomy import Rule


class Names(click.ParamType):
    """A comma list of words, each once, in the order given."""

    name = "list"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        return words or self.fail("is empty", parameter, context)


class Numbers(click.ParamType):
    """A comma list of whole numbers, none below `least`."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = Names().convert(value, parameter, context)
        for word in words:
            if not word.isdecimal() or int(word) < self.least:
                self.fail(f"{word!r} is not a whole number of at least {self.least}", parameter, context)
        return tuple(dict.fromkeys(map(int, words)))


ENGINES = click.option(
    "--engine", "engines", type=Names(), default="hf", show_default=True, help="Engines, e.g. hf,vllm."
)


def precisions(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that takes several."""
    names = ("--precision", "--precisions", "precisions")
    return click.option(*names, type=Names(), default="bf16,fp8,nvfp4", show_default=True, help=help)


python_of_engine = click.option(
    "--python", "pythons", multiple=True, metavar="ENGINE=PATH", help="Interpreter an engine runs in. Repeatable."
)
output_dir = click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default="benchmark_results",
    show_default=True,
    help="Everything is written here.",
)


def launching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where workers run, and how many at once."""
    options = [
        click.option("--launcher", default="local", show_default=True, help="See harness list launchers."),
        click.option(
            "--launcher-option", "launcher_options", multiple=True, metavar="NAME=VALUE", help="For it. Repeatable."
        ),
        click.option("--address", metavar="ADDRESS", help="Same as --launcher-option address=ADDRESS."),
        click.option(
            "--workers", type=click.IntRange(1), help="Loads at once, each with GPUs or cores of its own.  [1]"
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds a worker may go without a sign of life.  [3600]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def loading(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is loaded, and where what comes of it goes."""
    options = [
        click.option(
            "--checkpoint",
            "checkpoints",
            multiple=True,
            metavar="PRECISION=PATH",
            help="Checkpoint of the model in that precision. Repeatable.",
        ),
        click.option("--fp8-model-path", metavar="PATH", help="Same as --checkpoint fp8=PATH."),
        click.option("--nvfp4-model-path", metavar="PATH", help="Same as --checkpoint nvfp4=PATH."),
        click.option(
            "--quantize",
            type=click.Choice(["experts", "linear"]),
            default="experts",
            show_default=True,
            help="Which products a quantised precision reaches.",
        ),
        click.option("--tp", type=Numbers(1), default="1", show_default=True, help="Tensor parallel ranks."),
        click.option("--ep", type=Numbers(1), default="1", show_default=True, help="Expert parallel ranks."),
        click.option(
            "--moe-backend",
            "moe_backends",
            type=Names(),
            default="auto",
            show_default=True,
            help="The engine's MoE kernels.",
        ),
        click.option(
            "--rungs",
            type=Names(),
            default="default",
            show_default=True,
            help="The engine's optimisations: default, none (plain eager) or names joined by +; see harness list rungs.",
        ),
        click.option("--disable-fusion", is_flag=True, help="Ask the engine not to fuse kernels around the experts."),
        click.option("--skip-compile", is_flag=True, help="Load what was compiled before; never compile."),
        click.option("--trust-remote-code", is_flag=True, help="Let the model's repository run its own Python code."),
        python_of_engine,
        launching,
        output_dir,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def all_rules(file: Path | None) -> tuple[Rule, ...]:
    """Kernel rules that come before the built-in ones: the user's, then those of plugins. Raises UsageError."""
    from harness.kernels.taxonomy import read_rules
    from harness.plugins import discover

    return (*(read_rules(file) if file else ()), *discover().rules)
