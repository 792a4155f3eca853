"""What every command that runs workers does around them: options, warnings, progress, and an orderly stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.planning.plan import Options, Plan
    from harness.working.run import Result

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a batch system's or a terminal's stop is as orderly as Ctrl-C


def run_options(parameters: dict[str, tuple[Any, ...]], given: dict[str, Any]) -> Options:
    """From the options of a command, those of `harness.commands.options.loading` among them; one engine, model or
    precision is a list of one. Raises UsageError."""
    from harness.planning.plan import Options, parse_pairs

    for one in ("engine", "model", "precision"):
        if one in given:
            given[f"{one}s"] = (given.pop(one),)
    checkpoints = dict(parse_pairs("--checkpoint", given.pop("checkpoints")))
    for precision in ("fp8", "nvfp4"):
        path = given.pop(f"{precision}_model_path")
        if path == "":
            raise UsageError(f"--{precision}-model-path is empty")
        if path:
            if checkpoints.setdefault(precision, path) != path:
                raise UsageError(f"two checkpoints for {precision}: {checkpoints[precision]} and {path}")
    given |= launch_options(given)
    return Options(parameters=parameters, checkpoints=checkpoints, **given)


def launch_options(given: dict[str, Any]) -> dict[str, Any]:
    """Taken from the options of `launching` and `python_of_engine`: interpreters, launcher, workers, timeout. What was
    not said is left to what goes for every run. Raises UsageError."""
    from harness.planning.plan import parse_pairs

    pairs = [*given.pop("launcher_options"), *(f"address={address}" for address in [given.pop("address")] if address)]
    found = {
        "pythons": dict(parse_pairs("--python", given.pop("pythons"))),
        "launcher_options": dict(parse_pairs("--launcher-option", pairs)),
        "workers": given.pop("workers"),
        "timeout": given.pop("timeout"),
    }
    return {name: value for name, value in found.items() if value is not None}


def perform(options: Options) -> Result:
    """Plans and runs, with progress on stderr. Raises UsageError before any worker exists."""
    from harness.planning.plan import make_plan
    from harness.plugins import discover

    for problem in discover().problems:  # before the plan, which may miss what was left out
        warn(problem)
    return perform_plan(make_plan(options, warn), options)


def perform_plan(plan: Plan, options: Options) -> Result:
    from harness.working.progress import Progress
    from harness.working.run import execute

    progress = Progress(total=sum(cell.skip is None for cell in plan.cells))
    for number in STOPS:
        signal.signal(number, _interrupt)
    try:
        return execute(plan, options, progress.on_event, warn)
    finally:
        progress.close()


def give_up_on(result: Result) -> None:
    """Ends the command when a cell that it cannot do without was not measured. Raises UsageError or HarnessError with
    the reason: bad output and what an engine cannot do are the asker's to mend."""
    if result.was_interrupted:
        raise SystemExit(result.exit_code)
    for record in result.records:
        what = f"{record['engine']} {record['precision']} on {record['model']}"
        if record["status"] == "skipped":
            raise UsageError(f"{what}: {record['reason']}")
        if record["status"] == "failed":
            failure = record["failure"]
            kind = UsageError if failure["class"] in ("bad_output", "unsupported") else HarnessError
            raise kind(f"{what}: {failure['class']}: {failure['message']}")


def prompts_of(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    """Those given one by one, then those of a file. Raises UsageError for a file without any."""
    from harness.evaluation.prompts import read_prompts

    return [*prompts, *(read_prompts(file) if file else ())]


def absolute_dataset(name: str) -> str:
    """The job that reads it runs in another folder. Raises UsageError for a name or file nobody knows."""
    from harness.names import check_known
    from harness.working.corpus import DATASETS

    if name.startswith("file:"):
        path = os.path.abspath(os.path.expanduser(name.removeprefix("file:")))
        if not os.path.isfile(path):
            raise UsageError(f"dataset {name!r}: no such file")
        return f"file:{path}"
    return check_known("dataset", name, DATASETS)


def warn(text: str) -> None:
    """On stderr."""
    click.echo(f"warning: {text}", err=True)


def _interrupt(number: int, frame: Any) -> None:
    for each in STOPS:  # an impatient second one must not tear what the first is writing
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
