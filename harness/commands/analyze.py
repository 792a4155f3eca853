"""`harness analyze TRACE`: where the time went, and how much faster expert GEMMs could make it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.precision import COMPUTE_MODES, PRECISIONS

if TYPE_CHECKING:
    from harness.kernels.analysis import Analysis
    from harness.kernels.tables import Table

FORMATS = ("table", "json", "csv", "md")


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Also write it there: .csv, .md, anything else JSON.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Of stdout.")
@click.option(
    "--rules", type=click.Path(path_type=Path), help="JSON file of kernel rules, asked before the built-in ones."
)
@click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Answer for this phase only.")
@click.option("--device", type=int, help="Answer for this device.  [the one with the longest window]")
@click.option("--layers", type=click.IntRange(1), help="Layers with experts: checks calls per step.")
@click.option("--ttft-ms", type=click.FloatRange(0, min_open=True), help="A prefill step without profiler.")
@click.option("--itl-ms", type=click.FloatRange(0, min_open=True), help="A decode step without profiler.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), help="The label the kernels must agree with.")
@click.option("--compute-mode", type=click.Choice(COMPUTE_MODES), help="How the label says products are computed.")
@click.option("--coarse", is_flag=True, help="Eight categories instead of twelve.")
@click.option("--kernels", is_flag=True, help="One step, kernel by kernel: the one whose time is the median.")
def analyze(trace: Path, output: Path | None, form: str, rules: Path | None, **given: Any) -> None:
    """Break a profiler's trace down by kind of work, and say what the ceiling of faster expert GEMMs is.

    TRACE is a trace of torch.profiler (JSON, gz), of Nsight Systems (sqlite, nsys-rep), or a CSV of nsys stats. Exit
    code: 0 answered, 1 answered and not to be believed, or no answer in it, 2 no trace.
    """
    from harness.commands.options import all_rules
    from harness.kernels.analysis import analyse
    from harness.kernels.tables import write
    from harness.kernels.validity import Given

    coarsely, kernels, device = given.pop("coarse"), given.pop("kernels"), given.pop("device")
    step_ms = {"prefill": given.pop("ttft_ms"), "decode": given.pop("itl_ms")}
    given["step_ms"] = {phase: time for phase, time in step_ms.items() if time is not None}
    found = analyse(trace, all_rules(rules), Given(**given), device)
    step = _one_step(found) if kernels and found.ledger else None
    if output:
        suffix = output.suffix.lower().lstrip(".")
        write(output, _rendered(found, suffix if suffix in FORMATS else "json", coarsely, step))
    if form == "csv" and found.problem:
        click.echo(f"no answer: {found.problem}", err=True)
    if form == "table":
        _show(found, coarsely, step)
    else:
        content = _rendered(found, form, coarsely, step)
        click.echo(content if isinstance(content, str) else json.dumps(content, indent=1, allow_nan=False))
    sys.exit(1 if found.problems else 0)


def _one_step(found: Analysis) -> Table:
    """Raises NoAnswer where the trace marks no step."""
    from harness.kernels.ledger import WHOLE, one_step
    from harness.kernels.tables import kernel_table

    phases = [ledger.phase for ledger in found.phases if ledger.steps]
    asked = found.ledger.phase
    phase = asked if asked != WHOLE else "decode" if "decode" in phases else "prefill" if "prefill" in phases else None
    step, rows = one_step(found.trace, found.labelled, found.ledger.device, phase)
    title = (
        f"device {found.ledger.device}, {phase or 'a step'}: step {step.index} ({step.label}), {step.time / 1e6:.3f} ms"
    )
    return kernel_table(title, rows.columns, rows.rows())


def _rendered(found: Analysis, form: str, coarsely: bool, step: Table | None) -> object:
    from harness.kernels.tables import as_csv, category_rows, conclusion, markdown, tables

    if form == "csv":
        return as_csv(step.columns, step.rows) if step else as_csv(*category_rows(found, coarsely))
    if form in ("md", "table"):
        return markdown([step] if step else tables(found, coarsely), _lines(found, conclusion(found)))
    kernels = {"kernels": [dict(zip(step.columns, row)) for row in step.rows]} if step else {}
    return {**found.to_json(), **kernels, "conclusion": conclusion(found)}


def _lines(found: Analysis, said: list[str]) -> list[str]:
    problems = [] if found.ledger is None else [f"not valid: {problem}" for problem in found.problems]
    devices = {ledger.device for ledger in found.ledgers}
    if found.ledger and len(devices) > 1:
        said = [*said, f"device {found.ledger.device} of {len(devices)} devices is shown; --device N shows another"]
    return [*said, *problems, *(f"warning: {warning}" for warning in found.warnings)]


def _show(found: Analysis, coarsely: bool, step: Table | None) -> None:
    from harness.kernels.tables import conclusion, print_lines, print_table, tables

    about = f"{found.source}: {found.trace.format}" if found.trace else found.source
    print_lines([about], sys.stdout)
    for table in [step] if step else tables(found, coarsely):
        print_table(table, sys.stdout)
    print_lines(_lines(found, conclusion(found)), sys.stdout)
