"""What the harness itself costs: seconds it adds to every load, and how long its commands take to start.

    python benchmarks/overhead.py

The loads are those of `echo`, the engine of tests/outside that holds no model. What it reports of itself, the seconds
of its load and of its measurements, is taken off; the rest is the harness: planning, token ids, worker start, events,
records, table. One, two and four loads are run in turn. The slope over them is the cost of a load, the rest is fixed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PRECISIONS = ("bf16", "fp8", "fp8_block", "nvfp4")
LOADS = (1, 2, 4)
OUTSIDE = Path(__file__).parents[1] / "tests" / "outside"
LOAD_TARGET_S, START_TARGET_S = 0.5, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="[7]")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": str(install_echo(Path(folder))), "PYTHONSAFEPATH": "1"}
        print_loads(rounds, Path(folder), env)
        print_starts(2 * rounds, env)


def print_loads(rounds: int, folder: Path, env: dict[str, str]) -> None:
    runs = [(loads, *run(loads, folder / f"{number}-{loads}", env)) for number in range(rounds + 1) for loads in LOADS]
    runs = runs[len(LOADS) :]  # the first round fills the disk's cache
    print("loads   wall s   of it the engine's   the harness's: median   fastest")
    medians, fastest = [], []
    for loads in LOADS:
        walls, engines = zip(*((wall, engine) for count, wall, engine in runs if count == loads))
        rest = [wall - engine for wall, engine in zip(walls, engines)]
        medians.append(statistics.median(rest))
        fastest.append(min(rest))
        wall, engine = statistics.median(walls), statistics.median(engines)
        print(f"{loads:>5}   {wall:>6.3f}   {engine:>18.3f}   {medians[-1]:>21.3f}   {fastest[-1]:>7.3f}")
    for name, seconds in (("medians", medians), ("fastest runs", fastest)):
        slope, fixed = statistics.linear_regression(LOADS, seconds)
        print(
            f"by the {name}: {slope:.3f} s added per load, {slope / LOAD_TARGET_S:.2f} of the target of "
            f"{LOAD_TARGET_S} s; {fixed:.3f} s added per run"
        )
    print()


def run(loads: int, output: Path, env: dict[str, str]) -> tuple[float, float]:
    """Wall seconds of a run of `loads` loads, and the seconds the engine reports for its loads and measurements."""
    precisions = ",".join(PRECISIONS[:loads])
    wall = wall_seconds(
        ["-m", "harness", "run", "--engine", "echo", "--precision", precisions, "--output-dir", output], env
    )
    records = [json.loads(path.read_text()) for path in (output / "records").glob("*.json")]
    loading = {record["precision"]: record["load_seconds"] for record in records}
    measuring = (
        sum(record.get("raw", {}).get("latency_ns", [])) / 1e9 + record.get("scoring_seconds", 0) for record in records
    )
    return wall, sum(loading.values()) + sum(measuring)


def print_starts(rounds: int, env: dict[str, str]) -> None:
    commands = {
        "harness --help": ["-m", "harness", "--help"],
        "harness list precisions": ["-m", "harness", "list", "precisions"],
        "python -c pass": ["-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            seconds[name].append(wall_seconds(arguments, env))
    print("start                      median s   fastest s")
    for name, values in seconds.items():
        median = statistics.median(values)
        about = (
            f"   {median / START_TARGET_S:.2f} of the target of {START_TARGET_S} s"
            if name.startswith("harness")
            else ""
        )
        print(f"{name:<25}  {median:>8.3f}  {min(values):>10.3f}{about}")


def wall_seconds(arguments: Sequence[object], env: dict[str, str]) -> float:
    """Of `python ARGUMENTS`. Ends the benchmark when it fails."""
    started = time.perf_counter()
    job = subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if job.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{job.stderr}")
    return seconds


def install_echo(folder: Path) -> Path:
    """The plugin of tests/outside, installed under `folder`. It is built from a copy, so the tree stays clean."""
    source = shutil.copytree(OUTSIDE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", source]
    if importlib.util.find_spec("setuptools"):
        command.append("--no-build-isolation")  # else pip fetches it
    subprocess.run(command, check=True)
    return folder / "site"


if __name__ == "__main__":
    main()
