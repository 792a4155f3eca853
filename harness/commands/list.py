"""`harness list`: what there is to choose from. Imports nothing that a person would have to wait for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from harness.columns import columns
from harness.precision import PRECISIONS


@click.group("list")
def list_group() -> None:
    """Show engines, workloads, profilers, launchers, precisions, rungs, models, metrics or plugins."""


def _command(name: str, summary: str, rows_of) -> None:
    @list_group.command(name, help=summary)
    @click.option("--json", "as_json", is_flag=True, help="A JSON array, and nothing else, on stdout.")
    def command(as_json: bool) -> None:
        show(rows_of(), as_json)


def show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Rows as JSON or as aligned columns, with the plugins that were left out on stderr."""
    from harness.plugins import discover

    for problem in discover().problems:
        click.echo(f"warning: {problem}", err=True)
    click.echo(json.dumps(rows, indent=1) if as_json else columns(rows))


def _engines() -> list[dict[str, Any]]:
    from harness.planning import interpreters
    from harness.plugins import discover

    rows = []
    for engine in discover().engines.values():
        there = interpreters.look(engine, {})
        state = ", ".join(f"{name} {version}" for name, version in there.found.items())
        if there.problem:
            state = there.problem if there.is_broken else f"missing: {', '.join(there.missing)}"
        rows.append(
            {
                "engine": engine.name,
                "here": state,
                "can": ", ".join(sorted(engine.capabilities)),
                "summary": engine.summary,
            }
        )
    return rows


def _workloads() -> list[dict[str, Any]]:
    from harness.plugins import discover

    return [
        {
            "workload": w.name,
            "measures": w.measures,
            "summary": w.summary,
            "defaults": ", ".join(f"{k}={v}" for k, v in w.parameters.items()),
        }
        for w in discover().workloads.values()
    ]


def _profilers() -> list[dict[str, Any]]:
    from harness.plugins import discover

    return [{"profiler": profiler.name, "summary": profiler.summary} for profiler in discover().profilers.values()]


def _launchers() -> list[dict[str, Any]]:
    from harness.plugins import discover

    return [{"launcher": launcher.name, "summary": launcher.summary} for launcher in discover().launchers.values()]


def _models() -> list[dict[str, Any]]:
    from harness.model.models import known

    return [{"model": m.name, "path": m.path, "summary": m.summary} for m in known().values()]


def _metrics() -> list[dict[str, Any]]:
    from harness.recording.metrics import DEFINITIONS

    return [{"metric": name, "definition": text} for name, text in DEFINITIONS.items()]


def _plugins() -> list[dict[str, Any]]:
    from harness.plugins import discover

    return [
        {"plugin": p.name, "provides": ", ".join(p.provides), "source": p.source, "problem": p.problem}
        for p in discover().plugins
    ]


_command("engines", "Engines, and whether what they need is installed.", _engines)
_command("workloads", "Workloads and their default parameters.", _workloads)
_command("profilers", "Profilers for --profile.", _profilers)
_command("launchers", "Launchers for --launcher: where workers run.", _launchers)
_command("models", "Models that have a short name; any folder or hub id works too.", _models)
_command("metrics", "Every metric and its one definition.", _metrics)
_command("plugins", "Plugins found, and those left out with the reason.", _plugins)


@list_group.command("rungs")
@click.option("--engine", help="Only this engine.  [all]")
@click.option("--precision", default="bf16", show_default=True, help="What could be on at it.")
@click.option("--sm", type=int, help="Compute capability of a GPU, e.g. 90.  [this machine]")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, and nothing else, on stdout.")
def rungs(engine: str | None, precision: str, sm: int | None, as_json: bool) -> None:
    """Each engine's optimisations for --rungs, in the order of its ladder, and why one cannot be on here."""
    from harness.engine import rung_problem, with_needs
    from harness.names import check_known
    from harness.plugins import discover

    engines, where = discover().engines, _machine(sm)
    check_known("precision", precision, PRECISIONS)
    if engine is not None:
        check_known("engine", engine, engines)
    rows = [
        {
            "engine": spec.name,
            "rung": rung.name,
            "changes output": "yes" if rung.changes_output else "",
            "needs": ", ".join(rung.needs),
            "replaces": ", ".join(rung.replaces),
            "here": rung_problem(spec, with_needs(spec, [rung.name]), precision, where) or "can be on",
            "summary": rung.summary,
        }
        for spec in ([engines[engine]] if engine else engines.values())
        for rung in spec.rungs
    ]
    show(rows, as_json)


@list_group.command("precisions")
@click.option("--engine", help="Only this engine.  [all]")
@click.option("--sm", type=int, help="Compute capability of a GPU, e.g. 90.  [this machine]")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, and nothing else, on stdout.")
def precisions(engine: str | None, sm: int | None, as_json: bool) -> None:
    """What each engine does with each precision: native, weight_only, emulated or unsupported, and why."""
    rows = support_rows(engine, sm)
    if not as_json:
        text = [
            {"precision": p.name, "bits/weight": f"{p.bits:g}", "weights": p.weights, "activations": p.activations}
            for p in PRECISIONS.values()
        ]
        click.echo(columns(text) + "\n")
    show(rows, as_json)


def support_rows(engine: str | None = None, sm: int | None = None) -> list[dict[str, Any]]:
    """`{engine, precision, sm, compute_mode, reason}` for a GPU of compute capability `sm`, or for this machine."""
    from harness.engine import support_of
    from harness.names import check_known
    from harness.planning import interpreters
    from harness.plugins import discover

    engines = discover().engines
    if engine is not None:
        check_known("engine", engine, engines)
    where = _machine(sm)
    rows = []
    for spec in [engines[engine]] if engine else engines.values():
        version = interpreters.look(spec, {}).version
        for name in PRECISIONS:
            support = support_of(spec, name, where, version)
            rows.append(
                {
                    "engine": spec.name,
                    "precision": name,
                    "sm": where.sm,
                    "compute_mode": support.mode,
                    "reason": support.reason,
                }
            )
    return rows


def _machine(sm: int | None) -> Any:
    """A GPU of compute capability `sm`, or this machine, as a `harness.device.Device`."""
    from harness import device

    return device.detect() if sm is None else device.Device("cuda", f"a GPU of SM {sm}", 1, None, sm)
