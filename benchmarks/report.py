"""How fast a report of many records is written, and how fast a browser opens it.

    python benchmarks/report.py                      # 2,000 records
    python benchmarks/report.py --records 500 --keep folder

It makes the records itself, the same ones each time: engines, precisions and batches of several models at 1 to 8 ranks,
with the raw times of 6 iterations of 128 tokens, some of them failed or skipped. The report is written by a process of
its own. The page is opened by headless Chromium (`--chromium`), start to finish, and so is an empty page: the difference
is what the page costs; `ready` is the browser's own clock, from the start of navigation until the last chart is drawn.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from harness.cells import Cell, Setup
from harness.device import Device
from harness.engine import Generation, Response
from harness.failures import Failure
from harness.launcher import Outcome
from harness.precision import Support
from harness.recording.metrics import raw_times, speed
from harness.recording.records import Record, make, write_json
from harness.working.inputs import Inputs
from harness.workloads import ppl

TARGET_WRITE_S, TARGET_OPEN_S = 5, 3
GPU = Device("cuda", "NVIDIA H200", 8, 141 << 30, 90, "580.1", 700.0)
MODELS = tuple(f"org/model-{letter}" for letter in "abcdefghijkl")
ENGINES = ("hf", "vllm", "sglang", "trtllm")
FASTER = {"bf16": 1.0, "fp8": 0.8, "fp8_block": 0.75, "nvfp4": 0.7}
WORSE = {"bf16": 0.0, "fp8": 0.001, "fp8_block": 0.0015, "nvfp4": 0.02}
BATCHES, RANKS, TOKENS, ITERATIONS, CHUNKS = (1, 16, 64), (1, 2, 4, 8), 128, 6, 64
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
FLAGS += "--disable-component-update --disable-sync --virtual-time-budget=20000".split()


class Windows:
    """A session that finds the given mean NLL in each window."""

    def __init__(self, nlls: Iterator[float]) -> None:
        self.nlls = nlls

    def score(self, sequences: object) -> Iterator[list[float]]:
        for sequence in sequences:
            yield [-next(self.nlls)] * (len(sequence) - 1)


def cells() -> Iterator[tuple[Setup, int | None]]:
    """Setups, each with a batch, or with None for its perplexity."""
    for model, tp, engine, precision in product(MODELS, RANKS, ENGINES, FASTER):
        for batch in (*BATCHES, None):
            yield Setup(engine, model, model, precision, tp=tp), batch


def record(setup: Setup, batch: int | None, luck: random.Random) -> Record:
    facts = {"precision": setup.precision, "compute_mode": "native", "kv_dtype": "bf16", "cuda_graphs": True}
    facts |= {"prefix_cache_hits": 0, "compiled": True, "speculative_decoding": "off", "chunked_prefill": True}
    facts |= {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "cudagraph_mode": "full", "compile_mode": "full"}
    facts |= {"quantize": "experts", "moe_backend": "triton", "engine_version": "1.0"}
    parameters = {"batch_size": batch, "input_len": 512, "output_len": TOKENS, "num_iterations": ITERATIONS}
    if batch is None:
        parameters = {"dataset": "wikitext", "input_len": 512, "num_chunks": CHUNKS}
    workload = "perf" if batch else "ppl"
    cell = Cell(setup, workload, parameters, Support("native"))
    failure = (
        Failure("out_of_memory", "CUDA out of memory: tried to allocate 2.00 GiB") if luck.random() < 0.03 else None
    )
    results, conditions = ({}, {}) if failure else _measured(setup, batch, parameters, luck)
    outcome = Outcome(failure, "line of a log\n" * 20 if failure else "", facts, results, conditions, "cd" * 32, 9.0)
    return make(cell, outcome, "1.0", GPU)


def _measured(setup: Setup, batch: int | None, parameters: dict, luck: random.Random) -> tuple[dict, dict]:
    if batch is None:
        nlls = (2 + WORSE[setup.precision] + 0.05 * index / CHUNKS + luck.gauss(0, 0.001) for index in range(CHUNKS))
        windows = Inputs(((1,) * 512,) * CHUNKS, "ids", "ab" * 32, "ef" * 32)
        found = ppl.measure(Windows(nlls), windows, parameters, lambda *_: None)
        return found.results, {"token_ids_sha256": "ab" * 32, **found.conditions}
    step = 4e6 * FASTER[setup.precision] * (1 + 0.3 * ENGINES.index(setup.engine)) * batch**0.4 / setup.tp**0.8
    raw = {**raw_times([_generation(step, batch, luck) for _ in range(ITERATIONS)]), "energy_mj": None}
    conditions = {"token_ids_sha256": "ab" * 32, "sampling": "greedy", "ignore_eos": True}
    return {**speed(raw, batch, 512, TOKENS), "raw": raw}, conditions


def _generation(step: float, batch: int, luck: random.Random) -> Generation:
    """Two groups of requests, as where a prefill is cut in two."""
    timelines = []
    for start in (6 * step, 9 * step)[: 1 + (batch > 1)]:
        times, now = [], start
        for _ in range(TOKENS):
            times.append(round(now))
            now += step * luck.gauss(1, 0.02)
        timelines.append(tuple(times))
    responses = tuple(Response((1,) * TOKENS, timelines[i % len(timelines)]) for i in range(batch))
    return Generation(0, max(times[-1] for times in timelines), responses)


def make_records(folder: Path, count: int) -> None:
    luck = random.Random(0)
    for _, (setup, batch) in zip(range(count), cells()):
        found = record(setup, batch, luck)
        write_json(folder / "records" / f"{found['key']}.json", found)


def opened(chromium: str, page: str) -> tuple[float, str]:
    """Seconds of the whole browser, and the page as it then was."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the records and the page here, and leave them")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        if not (folder / "records").is_dir():
            make_records(folder, given.records)
        size = sum(path.stat().st_size for path in (folder / "records").iterdir())
        page = folder / "report.html"
        code = f"from harness.commands.report import report; report([{str(folder)!r}, '--output', {str(page)!r}])"
        writing = []
        for _ in range(given.rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            writing.append(time.perf_counter() - start)
        count = len(list((folder / "records").iterdir()))
        print(f"{count} records of {size / 1e6:.0f} MB: written in {_seconds(writing)} (goal {TARGET_WRITE_S})")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB")
        if given.chromium:
            pairs = [(opened(given.chromium, page.as_uri()), opened(given.chromium, "about:blank")) for _ in writing]
            ready = [int(found[1]) if (found := re.search(r'data-ready="(\d+)"', one[1])) else None for one, _ in pairs]
            print(f"opened in {_seconds([one[0] - blank[0] for one, blank in pairs])} (goal {TARGET_OPEN_S});", end=" ")
            print(f"an empty page takes {_seconds([blank[0] for _, blank in pairs])}; ready at {ready} ms")


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
