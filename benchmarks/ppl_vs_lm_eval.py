"""Perplexity tokens/s of the hf engine against lm-evaluation-harness: same model, ids and window, one process.

    pip install lm-eval accelerate        # beside moe-harness[hf]
    python benchmarks/ppl_vs_lm_eval.py

Both read windows of `--window` tokens in BF16. The harness scores every token of a window but the first. lm-eval
scores all of them: its first window begins with a prefix token (tinymoe's end-of-text), each later one with the last
token of the window before. So each side's speed counts the tokens it scored itself. Loading and tokenising are left
out on both sides. lm-eval takes its log-softmax in BF16, the harness in FP32: the perplexities agree to about 1 %.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    sys.exit(f"lm-evaluation-harness is not installed ({error}): pip install lm-eval accelerate")

import torch
from harness_hf.session import HfSession

from harness import Cell, Load, Setup, Support
from harness.model import models
from harness.working.inputs import Request, make

TARGET = 1.5  # times lm-eval at its own default, batch 1

Windows = Sequence[Sequence[int]]  # windows x tokens


class Harness:
    """This project's hf engine, loaded as a worker would load it."""

    name = "harness"

    def __init__(self, model: models.Model, windows: Windows) -> None:
        setup = Setup(engine="hf", model=model.name, path=model.path, precision="bf16")
        cell = Cell(setup, "ppl", {"input_len": len(windows[0])}, Support("native"))
        self._session, self._windows = HfSession(Load(setup, (cell,), "native")), windows

    def score(self) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and the number of tokens it is of."""
        scores = [value for window in self._session.score(self._windows) for value in window]
        return -math.fsum(scores), len(scores)


class LmEval:
    """`lm-eval --model hf --model_args dtype=bfloat16,max_length=WINDOW`: its rolling log-likelihood of one text."""

    def __init__(self, model: models.Model, windows: Windows, batch_size: str, threads: int) -> None:
        self.name, self.is_default = f"lm-eval at batch {batch_size}", batch_size == "1"
        self._ids = [token for window in windows for token in window]
        self._lm = HFLM(
            pretrained=model.path,
            dtype="bfloat16",
            max_length=len(windows[0]),
            batch_size=batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self._threads = threads
        self._lm.tok_encode = lambda text: self._ids  # the same ids as the harness, and no time spent on making them

    def score(self) -> tuple[float, int]:
        torch.set_num_threads(self._threads)
        request = Instance("loglikelihood_rolling", {}, ("",), 0)
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):  # a bar per batch
            (log_likelihood,) = self._lm.loglikelihood_rolling([request], disable_tqdm=True)
        return -log_likelihood, len(self._ids)


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = models.resolve(options.model)
    windows = make(Request(model.path, "windows", options.windows, options.window, "stdlib")).ids
    print(f"{model.name}, {len(windows)} windows of {options.window} tokens, {torch.get_num_threads()} threads")
    threads = torch.get_num_threads()
    ours = Harness(model, windows)
    theirs = [LmEval(model, windows, size, threads) for size in options.lm_eval_batch_size.split(",")]
    for side in (ours, *theirs):  # this is the warm-up, too
        nll, tokens = side.score()
        print(f"  {side.name:<20} perplexity {math.exp(nll / tokens):.3f} over {tokens} scored tokens")
    for other in theirs:
        compare(ours, other, options.rounds, f" (target {TARGET})" if other.is_default else "")


def compare(ours: Harness, other: LmEval, rounds: int, note: str) -> None:
    """Both in turn. Where the two ratios at the end disagree, something else was using the machine."""
    print(f"\nround   harness tokens/s   {other.name} tokens/s   ratio")
    pairs = []
    for number in range(1, rounds + 1):
        pairs.append((tokens_per_second(ours), tokens_per_second(other)))
        print(
            f"{number:>5}   {pairs[-1][0]:>16.0f}   {pairs[-1][1]:>25.0f}   {pairs[-1][0] / pairs[-1][1]:>5.2f}",
            flush=True,
        )
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    middle = statistics.median(a / b for a, b in pairs)
    print(f"harness / {other.name}: ratio of medians {ratio:.2f}{note}, median of the rounds' ratios {middle:.2f}")


def tokens_per_second(side: Harness | LmEval) -> float:
    started = time.perf_counter()
    _, tokens = side.score()
    return tokens / (time.perf_counter() - started)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tinymoe", help="known name, folder or hub id  [tinymoe]")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window  [256]")
    parser.add_argument("--windows", type=int, default=64, help="windows of the text, at most  [64]")
    parser.add_argument("--rounds", type=int, default=7, help="[7]")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; one is the steadiest on a machine others use  [torch's]"
    )
    parser.add_argument(
        "--lm-eval-batch-size", default="1,8,16", help="comma list, each measured; lm-eval's default is 1  [1,8,16]"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
