"""The `harness` command: its subcommands, and how errors reach the person who typed it."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from harness import __version__
from harness.errors import HarnessError

COMMANDS = {  # name -> (module:attribute, the line in --help); a module is imported when its command is used
    "analyze": (
        "harness.commands.analyze:analyze",
        "Break a profiler's trace down by kind of work, and say what the ceiling of faster expert GEMMs is.",
    ),
    "analyze-all": (
        "harness.commands.analyze_all:analyze_all",
        "Measure all of it in one go: speed, accuracy, precisions, batches, optimisations, kernels; and write the report.",
    ),
    "baseline": ("harness.commands.baseline:baseline", "Run a reference, and keep its logits for `harness validate`."),
    "compare": (
        "harness.commands.compare:compare",
        "Say whether two measurements are comparable, and how B differs from A.",
    ),
    "doctor": (
        "harness.commands.doctor:doctor",
        "Show what this machine and its interpreters can run, and what is missing.",
    ),
    "ladder": (
        "harness.commands.ladder:ladder",
        "Measure an engine's optimisations one on another and one by one, each beside plain eager.",
    ),
    "lint-checkpoint": (
        "harness.commands.lint_checkpoint:lint_checkpoint",
        "Check a checkpoint's formats, scales and configuration without loading weights.",
    ),
    "evaluate": (
        "harness.commands.evaluate:evaluate",
        "Check an engine's logits, time it as the NKI-MoE contest does, and score both.",
    ),
    "expect": (
        "harness.commands.expect:expect",
        "Keep what a device measured as expectations, and check later runs against them.",
    ),
    "explain": (
        "harness.commands.explain:explain",
        "Say where the time between two traces went, per step and kind of work; the bars add up to the wall time.",
    ),
    "generate": ("harness.commands.generate:generate", "Continue prompts by sampling, and print the text."),
    "kernels": ("harness.commands.kernels:kernels", "What the kernels of an engine do."),
    "list": (
        "harness.commands.list:list_group",
        "Show engines, workloads, profilers, launchers, precisions, rungs, models, metrics or plugins.",
    ),
    "report": (
        "harness.commands.report:report",
        "Write one page about records: the verdict, charts, tables, failures and provenance.",
    ),
    "results": ("harness.commands.results:results", "Show the records of output folders, or export them."),
    "run": ("harness.commands.run:run", "Measure a model on engines at precisions, and print one table."),
    "sweep": (
        "harness.commands.sweep:sweep",
        "Measure every cell of a sweep file: a matrix of models, engines, precisions, parallelism and sizes.",
    ),
    "validate": (
        "harness.commands.validate:validate",
        "Say how far engines and precisions lie from a baseline, and what is to blame.",
    ),
}


class Cli(click.Group):
    """Imports a command when it is used, and prints what a user can mend as one line; a bug keeps its traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except HarnessError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(error.exit_code)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="harness")
def cli() -> None:
    """Is FP8 or nvFP4 worth it for my Mixture-of-Experts model, on my GPU, with which engine, and why?"""


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal cannot show must not cost the table
    sys.exit(cli())
