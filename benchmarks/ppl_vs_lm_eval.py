"""Perplexity tokens/s of the hf engine against lm-evaluation-harness: same model, text and window, one process.

    pip install lm-eval accelerate        # beside moe-harness[hf]
    python benchmarks/ppl_vs_lm_eval.py

Both read windows of `--window` tokens in BF16. The harness scores every token of a window but the first. lm-eval
scores all of them: its first window begins with a prefix token (tinymoe's end-of-text), each later one with the last
token of the window before. So each side's speed counts the tokens it scored itself. Loading, tokenising and progress
bars are left out on both sides.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import torch
from harness_hf.session import HfSession

from harness import Cell, Load, Session, Setup, Support, models
from harness.inputs import Request, make

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    sys.exit(f"lm-evaluation-harness is not here ({error}): pip install lm-eval accelerate")

TARGET = 1.5


class Harness:
    """This project's hf engine, loaded as a worker would load it."""

    name = "harness"

    def __init__(self, model: models.Model, windows: tuple[tuple[int, ...], ...]) -> None:
        setup = Setup(engine="hf", model=model.name, path=model.path, precision="bf16")
        cell = Cell(setup, "ppl", {"input_len": len(windows[0])}, Support("native"))
        self._windows = windows
        self._session: Session = HfSession(Load(setup, (cell,), "native"))

    def nlls(self) -> tuple[float, int]:
        """Sum of negative log-likelihoods in nats, and how many tokens it is of."""
        scores = [value for window in self._session.score(self._windows) for value in window]
        return -math.fsum(scores), len(scores)


class LmEval:
    """`lm-eval --model hf --model_args dtype=bfloat16,max_length=WINDOW`, its rolling log-likelihood of one text."""

    def __init__(self, model: models.Model, windows: tuple[tuple[int, ...], ...], batch_size: str) -> None:
        self.name = f"lm-eval, batch {batch_size}"
        self._ids = [token for window in windows for token in window]
        self._lm = HFLM(
            pretrained=model.path,
            dtype="bfloat16",
            max_length=len(windows[0]),
            batch_size=batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        self._lm.tok_encode = lambda text: self._ids  # the same ids, and no time spent on making them

    def nlls(self) -> tuple[float, int]:
        request = Instance("loglikelihood_rolling", {}, ("",), 0)
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):  # a bar per batch
            (loglikelihood,) = self._lm.loglikelihood_rolling([request], disable_tqdm=True)
        return -loglikelihood, len(self._ids)


def main() -> None:
    options = _options()
    model = models.resolve(options.model)
    windows = make(Request(model.path, "windows", options.windows, options.window, "stdlib")).ids
    print(f"{model.name}, {len(windows)} windows of {options.window} tokens, {torch.get_num_threads()} threads")
    ours = Harness(model, windows)
    theirs = [LmEval(model, windows, size) for size in options.lm_eval_batch_size.split(",")]
    speeds: dict[str, list[float]] = {}
    for side in (ours, *theirs):  # the warm-up, and what each makes of the text
        nll, tokens = side.nlls()
        print(f"  {side.name:<20} perplexity {math.exp(nll / tokens):.4f} over {tokens} scored tokens")
    for number in range(1, options.rounds + 1):
        for other in theirs:
            for side in (ours, other):
                speeds.setdefault(side.name, []).append(tokens_per_second(side))
        latest = "   ".join(f"{name} {values[-1]:.0f}" for name, values in speeds.items())
        print(f"  round {number}, scored tokens/s: {latest}", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    fastest = max((side.name for side in theirs), key=medians.__getitem__)
    for side in theirs:
        about = " (target 1.5)" if side is theirs[0] else ""
        about += " (its fastest)" if side.name == fastest and len(theirs) > 1 else ""
        print(f"harness / {side.name}: {medians[ours.name] / medians[side.name]:.2f}{about}")


def tokens_per_second(side: Harness | LmEval) -> float:
    started = time.perf_counter()
    _, tokens = side.nlls()
    return tokens / (time.perf_counter() - started)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tinymoe", help="known name or folder  [tinymoe]")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window  [256]")
    parser.add_argument("--windows", type=int, default=64, help="windows of the text, at most  [64]")
    parser.add_argument("--rounds", type=int, default=7, help="[7]")
    parser.add_argument(
        "--lm-eval-batch-size",
        default="1,8,auto",
        help="comma list, each measured; lm-eval's own default is 1  [1,8,auto]",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
