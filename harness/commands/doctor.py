"""`harness doctor`: what was found, what is missing, and what would run here at which compute mode, and why not."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import click

from harness import __version__


@click.command()
@click.option(
    "--python", "pythons", multiple=True, metavar="ENGINE=PATH", help="Interpreter an engine runs in. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, and nothing else, on stdout.")
def doctor(pythons: tuple[str, ...], as_json: bool) -> None:
    """Show what this machine and its interpreters can run, and what is missing."""
    from harness.planning.plan import parse_pairs

    report = examine(dict(parse_pairs("--python", pythons)))
    click.echo(json.dumps(report, indent=1) if as_json else _text(report))


def examine(pythons: dict[str, str]) -> dict[str, Any]:
    from harness import device
    from harness.engine import support_of
    from harness.planning import interpreters
    from harness.plugins import discover
    from harness.precision import PRECISIONS
    from harness.serde import to_json

    here, registry = device.detect(), discover()
    engines = []
    for engine in registry.engines.values():
        there = interpreters.look(engine, pythons)
        support = {name: support_of(engine, name, here, there.version) for name in PRECISIONS}
        engines.append(
            {
                "engine": engine.name,
                "python": there.python,
                "found": there.found,
                "problem": there.problem,
                "precisions": {name: {"compute_mode": s.mode, "reason": s.reason} for name, s in support.items()},
            }
        )
    return {
        "harness": __version__,
        "installed_at": str(Path(__file__).parents[1]),
        "python": f"{platform.python_version()} ({sys.executable})",
        "device": to_json(here),
        "engines": engines,
        "problems": registry.problems,
    }


def _text(report: dict[str, Any]) -> str:
    device = report["device"]
    memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if device["memory_bytes"] else ""
    what = (
        f"SM {device['sm']}, driver {device['driver']}"
        if device["sm"]
        else "AWS Neuron"
        if device["kind"] == "neuron"
        else " ".join(device["flags"]) or "no known vector flags"
    )
    unit = {"cuda": "GPU", "neuron": "Neuron devices"}.get(device["kind"], "cores")
    lines = [
        f"harness {report['harness']} at {report['installed_at']}",
        f"python {report['python']}",
        f"device {device['name']}: {device['count']} {unit}{memory}, {what}",
    ]
    for engine in report["engines"]:
        found = (
            ", ".join(f"{name} {version}" for name, version in engine["found"].items() if version) or "nothing it needs"
        )
        lines += ["", f"{engine['engine']}: {found} in {engine['python']}"]
        if engine["problem"]:
            lines.append(f"  {engine['problem']}")
        for name, support in engine["precisions"].items():
            lines.append(f"  {name:<10}{support['compute_mode']:<13}{support['reason']}")
    if not report["engines"]:
        lines += ["", "no engine plugin is installed"]
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])] if report["problems"] else []
    return "\n".join(lines)
