"""What a sweep costs beside its cells: seconds to plan and to see what is done, and how busy its workers are kept.

    python benchmarks/sweep.py

Planning: 10,000 cells, all measured before, so that each is looked for. Workers: 200 cells in 4 loads on two workers; the
engine sleeps 20 ms a batch, so the cells' own time is what their records say, and half of its sum is the ideal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAN_TARGET_S, BUSY_TARGET = 2.0, 0.9
ENGINE = """
import time
from harness import EngineSpec, Generation, Response, Support, hookimpl

@hookimpl
def harness_register_engines():
    can = frozenset({"generate"})
    return [EngineSpec("metronome", "sleeps 20 ms", (), can, lambda *_: Support("native"), lambda load: Session(load))]

class Session:
    def __init__(self, load):
        self.load = load

    def facts(self):
        return {"precision": self.load.setup.precision, "compute_mode": self.load.compute_mode}

    def generate(self, prompts, output_len):
        started = time.perf_counter_ns()
        time.sleep(0.02)
        now = time.perf_counter_ns()
        return Generation(started, now, tuple(Response((1,) * output_len, (now,) * output_len) for _ in prompts))

    def close(self):
        pass
"""
SWEEP = """
matrix:
  engine: metronome
  precision: {precisions}
  input_len: {lengths}
  output_len: 1
  num_iterations: 20
  warmup_iterations: 0
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(folder / "site")
        env = {**os.environ, "PYTHONPATH": str(folder / "site"), "PYTHONSAFEPATH": "1"}
        print_planning(folder, env)
        print_workers(folder, env)


def print_planning(folder: Path, env: dict[str, str]) -> None:
    file = folder / "many.yaml"
    file.write_text(SWEEP.format(precisions="[bf16, fp8, fp8_block, nvfp4, mxfp4]", lengths=list(range(1, 2001))))
    out = folder / "many"
    dry = ("sweep", file, "--output-dir", out, "--dry-run")
    keys = [cell["key"] for cell in json.loads(harness(env, *dry, "--json")[1])]
    (out / "records").mkdir(parents=True)
    for key in keys:
        record = {"schema_version": 2, "key": key, "status": "ok", "rest": list(range(2000))}
        (out / "records" / f"{key}.json").write_text(json.dumps(record, indent=1))
    seconds, shown = harness(env, *dry)
    print(shown.splitlines()[-1])
    print(
        f"plan and look for what is done: {seconds:.2f} s, {seconds / PLAN_TARGET_S:.2f} of the target {PLAN_TARGET_S:g} s"
    )


def print_workers(folder: Path, env: dict[str, str]) -> None:
    file = folder / "few.yaml"
    file.write_text(SWEEP.format(precisions="[bf16, fp8, fp8_block, nvfp4]", lengths=list(range(1, 51))))
    out = folder / "few"
    seconds, shown = harness(env, "sweep", file, "--output-dir", out, "--workers", 2, "--json")
    own = sum(sum(record["raw"]["latency_ns"]) for record in json.loads(shown)) / 1e9
    share = own / 2 / seconds
    print(f"{len(json.loads(shown))} cells of {own:.1f} s on 2 workers: {seconds:.1f} s, ideal {own / 2:.1f} s")
    print(f"throughput: {share:.1%} of the ideal, target {BUSY_TARGET:.0%}")


def harness(env: dict[str, str], *words: object) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "harness", *map(str, words)], env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, done.stdout


def install(site: Path) -> None:
    """The engine, as a distribution of two files."""
    about = site / "metronome-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "metronome.py").write_text(ENGINE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: metronome\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[harness]\nmetronome = metronome\n")


if __name__ == "__main__":
    main()
