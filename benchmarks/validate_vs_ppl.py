"""What scoring against a stored baseline costs beside perplexity alone, in turn on one loaded engine. Target 1.3.

    python benchmarks/validate_vs_ppl.py                 # 100,000 tokens of tinymoe

The baseline keeps the 64 likeliest tokens of each position, as harness baseline does where whole rows would take more
than 256 MiB. Times are of the workloads' own scoring loops, reading of the baseline included.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from harness.accuracy.subject import about
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.plugins import discover
from harness.precision import Support
from harness.working.inputs import Request, make
from harness.workloads import baseline, ppl, validate

TARGET = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="hf", help="[hf]")
    parser.add_argument("--model", default="tinymoe", help="[tinymoe]")
    parser.add_argument("--precision", default="bf16", help="[bf16]")
    parser.add_argument("--tokens", type=int, default=100_000, help="[100000]")
    parser.add_argument("--length", type=int, default=256, help="of a window  [256]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    options = parser.parse_args()
    model = models.resolve(options.model)
    count = -(-options.tokens // options.length)
    inputs = make(Request(model.path, "windows", count, options.length, "stdlib"))
    again = tuple(itertools.islice(itertools.cycle(inputs.ids), count))  # the text may be shorter
    inputs = replace(inputs, ids=again)
    setup = Setup(options.engine, model.name, model.path, options.precision)
    parameters = {"input_len": options.length, "output_len": 8}
    load = Load(setup, (Cell(setup, "ppl", parameters, Support("native")),), "native")
    session = discover().engines[options.engine].load(load)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "baseline.safetensors"))
        kept = {"texts": None, "num_tokens": 8, "top_k": None, "output": file}
        made = baseline.measure(session, inputs, {**kept, "about": about(model, options.engine, "bf16")}, ignore)
        print(f"{made.results['sections']['windows']}, {made.results['baseline_bytes'] / 1e6:.1f} MB")
        wanted = {**validate.harness_register_workloads()[0].parameters, "baseline": file}
        alone, beside = [], []
        for _ in range(options.rounds):
            alone.append(ppl.measure(session, inputs, {}, ignore).results["scoring_seconds"])
            beside.append(validate.measure(session, inputs, wanted, ignore).results["scoring_seconds"])
    session.close()
    ratio = statistics.median(beside) / statistics.median(alone)
    rounds = " ".join(f"{b / a:.3f}" for a, b in zip(alone, beside))
    print(f"perplexity alone {statistics.median(alone):.3f} s, with the baseline {statistics.median(beside):.3f} s")
    print(f"ratio of medians {ratio:.3f} (target {TARGET}); of each round {rounds}")


def ignore(done: int, of: int) -> None:
    """No progress is shown."""


if __name__ == "__main__":
    main()
