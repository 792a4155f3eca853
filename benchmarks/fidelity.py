"""Does `harness run --engine vllm` measure what `vllm bench latency` measures? Both in turn (ABAB), ratio of medians.

    python benchmarks/fidelity.py                                   # tinymoe's shape, on this machine
    python benchmarks/fidelity.py --config FOLDER --batch-size 1,16 --input-len 512 --output-len 128

Same shape (a folder with config.json, random weights), lengths, batch, limits and environment; no prefix cache, no
detokenisation. vLLM's benchmark samples at temperature 1 and has no option against it; the harness takes the likeliest
token. So its sampling parameters are made greedy here, unless --temperature 1 leaves them alone. It draws token ids
below 10,000, for which a smaller vocabulary is widened.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import device, interpreters, models

LOWEST, HIGHEST = 0.98, 1.02
VOCABULARY = 10_240  # holds every id vLLM's benchmark draws
CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}  # what the plugin chooses there
LATENCY = """
import vllm
from vllm.benchmarks.latency import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    vllm.LLM  # imports what needs the class itself
    plain = vllm.SamplingParams
    vllm.SamplingParams = lambda **given: plain(**{**given, "temperature": TEMPERATURE})
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""  # the `vllm` command itself does not start where vLLM was installed as vllm-cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=models.resolve("tinymoe").path, help="folder with config.json  [tinymoe]")
    parser.add_argument("--batch-size", default="1,8", help="[1,8]")
    parser.add_argument("--input-len", type=int, default=128, help="[128]")
    parser.add_argument("--output-len", type=int, default=32, help="[32]")
    parser.add_argument("--num-iterations", type=int, default=30, help="of each run  [30]")
    parser.add_argument("--temperature", type=float, default=0.0, help="of vLLM's benchmark  [0]")
    parser.add_argument("--rounds", type=int, default=2, help="[2]")
    parser.add_argument("--python", help="interpreter that has vLLM  [as harness run finds it]")
    options = parser.parse_args()
    python = options.python or interpreters.python_for("vllm", {})
    is_cpu = device.detect().kind == "cpu"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONSAFEPATH": "1"}
    env = {**(CPU if is_cpu else {}), **env}
    batches = [int(size) for size in options.batch_size.split(",")]
    theirs: dict[int, list[list[float]]] = {batch: [] for batch in batches}
    ours: dict[int, list[list[float]]] = {batch: [] for batch in batches}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        widen(Path(options.config), folder)
        for _ in range(options.rounds):
            for batch in batches:
                theirs[batch].append(vllm_latencies(python, env, folder, batch, options, is_cpu))
            for batch, latencies in harness_latencies(python, env, folder, batches, options).items():
                ours[batch].append(latencies)
    print_ratios(theirs, ours)


def widen(source: Path, folder: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["vocab_size"] = max(config["vocab_size"], VOCABULARY)
    (folder / "config.json").write_text(json.dumps(config))


def vllm_latencies(
    python: str, env: dict[str, str], folder: Path, batch: int, options: Any, is_cpu: bool
) -> list[float]:
    """Seconds of each timed iteration of `vllm bench latency`."""
    script, result = folder / "latency.py", folder / "latency.json"
    script.write_text(LATENCY.replace("TEMPERATURE", str(options.temperature)))
    lengths = ["--input-len", options.input_len, "--output-len", options.output_len, "--batch-size", batch]
    iterations = ["--num-iters", options.num_iterations, "--num-iters-warmup", 5, "--output-json", result]
    model = ["--model", folder, "--load-format", "dummy", "--dtype", "bfloat16", "--seed", 0]
    limits = ["--max-model-len", options.input_len + options.output_len + 1, "--skip-tokenizer-init"]
    rest = ["--disable-detokenize", *(["--enforce-eager"] if is_cpu else [])]
    call([python, script, *lengths, *iterations, *model, *limits, *rest], env)
    return json.loads(result.read_text())["latencies"]


def harness_latencies(
    python: str, env: dict[str, str], folder: Path, batches: list[int], options: Any
) -> dict[int, list[float]]:
    """The same of `harness run`, by batch size."""
    sizes = ["--input-len", options.input_len, "--output-len", options.output_len]
    sizes += ["--batch-size", ",".join(map(str, batches)), "--num-iterations", options.num_iterations]
    what = ["--engine", "vllm", "--model", folder, "--weights", "dummy", "--precision", "bf16", "--workload", "perf"]
    output = ["--warmup-iterations", 5, "--output-dir", folder / "results", "--json"]
    command = [sys.executable, "-m", "harness", "run", *what, "--python", f"vllm={python}", *sizes, *output]
    records = json.loads(call(command, env))
    return {record["batch_size"]: [ns / 1e9 for ns in record["raw"]["latency_ns"]] for record in records}


def call(command: list[Any], env: dict[str, str]) -> str:
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def print_ratios(theirs: dict[int, list[list[float]]], ours: dict[int, list[list[float]]]) -> None:
    print("batch   vllm bench latency ms   harness ms   harness / vllm   medians of the runs, in turn")
    for batch in theirs:
        pooled = [statistics.median(sum(side[batch], [])) * 1e3 for side in (theirs, ours)]
        ratio = pooled[1] / pooled[0]
        runs = [f"{statistics.median(run) * 1e3:.2f}" for pair in zip(theirs[batch], ours[batch]) for run in pair]
        verdict = "" if LOWEST <= ratio <= HIGHEST else f"   outside {LOWEST} to {HIGHEST}"
        print(f"{batch:>5}   {pooled[0]:>21.3f}   {pooled[1]:>10.3f}   {ratio:>14.4f}   {' '.join(runs)}{verdict}")


if __name__ == "__main__":
    main()
