"""Does `harness run --engine vllm` measure what `vllm bench latency` measures? Ratio of medians.

    python benchmarks/fidelity.py --in-turns                        # tinymoe's shape, on this machine
    python benchmarks/fidelity.py --config FOLDER --batch-size 1,16 --input-len 512 --output-len 128

One process of each after the other, --rounds times (ABAB); with --in-turns both stay loaded and alternate by iteration,
for machines whose own speed changes within a minute.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import device
from harness.model import models
from harness.planning import interpreters

LOWEST, HIGHEST = 0.98, 1.02
VOCABULARY = 10_240  # holds every id vLLM's benchmark draws
CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}  # what the plugin chooses there
TURNS = Path(__file__).parent / "turns"
LATENCY = """
import os
import vllm
from vllm.benchmarks import latency
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    vllm.LLM  # imports what needs the class itself
    plain = vllm.SamplingParams
    vllm.SamplingParams = lambda **given: plain(**{**given, "temperature": TEMPERATURE})
    if "TURNS" in os.environ:
        import turns
        latency.tqdm = turns.each
    parser = FlexibleArgumentParser()
    latency.add_cli_args(parser)
    latency.main(parser.parse_args())
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
    parser.add_argument("--in-turns", action="store_true", help="alternate by iteration, not by process")
    parser.add_argument("--python", help="interpreter that has vLLM  [as harness run finds it]")
    options = parser.parse_args()
    options.python = options.python or interpreters.python_for("vllm", {})
    options.is_cpu = device.detect().kind == "cpu"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONSAFEPATH": "1"}
    env = {**(CPU if options.is_cpu else {}), **env}
    batches = [int(size) for size in options.batch_size.split(",")]
    theirs: dict[int, list[list[float]]] = {batch: [] for batch in batches}
    ours: dict[int, list[list[float]]] = {batch: [] for batch in batches}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        widen(Path(options.config), folder)
        for _ in range(options.rounds):
            for batch in batches:
                commands = vllm_command(folder, batch, options), harness_command(folder, batch, options)
                run = run_in_turns if options.in_turns else run_one_by_one
                printed = run(commands, env, folder)
                theirs[batch].append(json.loads((folder / "latency.json").read_text())["latencies"])
                ours[batch].append([ns / 1e9 for ns in json.loads(printed)[0]["raw"]["latency_ns"]])
    print_ratios(theirs, ours)


def widen(source: Path, folder: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["vocab_size"] = max(config["vocab_size"], VOCABULARY)
    (folder / "config.json").write_text(json.dumps(config))


def vllm_command(folder: Path, batch: int, options: Any) -> list[str]:
    script, result = folder / "latency.py", folder / "latency.json"
    script.write_text(LATENCY.replace("TEMPERATURE", str(options.temperature)))
    lengths = ["--input-len", options.input_len, "--output-len", options.output_len, "--batch-size", batch]
    iterations = ["--num-iters", options.num_iterations, "--num-iters-warmup", 5, "--output-json", result]
    model = ["--model", folder, "--load-format", "dummy", "--dtype", "bfloat16", "--seed", 0]
    limits = ["--max-model-len", options.input_len + options.output_len + 1, "--skip-tokenizer-init"]
    rest = ["--disable-detokenize", *(["--enforce-eager"] if options.is_cpu else [])]
    return [str(word) for word in [options.python, script, *lengths, *iterations, *model, *limits, *rest]]


def harness_command(folder: Path, batch: int, options: Any) -> list[str]:
    sizes = ["--input-len", options.input_len, "--output-len", options.output_len, "--batch-size", batch]
    sizes += ["--num-iterations", options.num_iterations, "--warmup-iterations", 5]
    what = ["--engine", "vllm", "--model", folder, "--weights", "dummy", "--precision", "bf16"]
    what += ["--workload", "perf_in_turns" if options.in_turns else "perf", "--python", f"vllm={options.python}"]
    output = ["--output-dir", folder / "results", "--json"]
    return [str(word) for word in [sys.executable, "-m", "harness", "run", *what, *sizes, *output]]


def run_one_by_one(commands: Sequence[list[str]], env: dict[str, str], folder: Path) -> str:
    """What the last of them printed."""
    return [finish(start(command, env)) for command in commands][-1]


def run_in_turns(commands: Sequence[list[str]], env: dict[str, str], folder: Path) -> str:
    pipes = folder / "theirs", folder / "ours"
    for pipe in pipes:
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    held = [os.open(pipe, os.O_RDWR) for pipe in pipes]  # what is in a pipe that nobody holds is lost
    os.write(held[0], b"!")
    env = {**env, "PYTHONPATH": os.pathsep.join([str(TURNS), *filter(None, [env.get("PYTHONPATH")])])}
    order = pipes, pipes[::-1]
    started = [start(command, {**env, "TURNS": f"{a}:{b}"}) for command, (a, b) in zip(commands, order)]
    printed = [finish(process) for process in started]
    for descriptor in held:
        os.close(descriptor)
    return printed[-1]


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(process.args)} failed:\n{printed[-3000:]}\n{errors[-3000:]}")
    return printed


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
