"""Holds every rung that can be on here against plain eager, on a small model: python -m harness_hf.check

For each rung with what it needs: whether it is in force, how many greedy tokens are eager's, and the mean KL divergence
of the first token's distribution from eager's. Exit code 1 where one is not in force, or moves KL beyond LIMIT without
saying that it changes the output.
"""

from __future__ import annotations

import sys

import torch

from harness import device
from harness.cells import Cell, Load, Setup
from harness.engine import Rung
from harness.model import models
from harness.precision import Support
from harness_hf import fp8
from harness_hf.rungs import LADDER
from harness_hf.session import HfSession

LENGTH, OUT, ROWS, SHARED = 320, 16, 4, 32  # tokens of a prompt, generated; prompts; what they share
LIMIT = 0.02  # nats; BF16 kernels of another shape move tinymoe's KL by a few 1e-3


def main(model: str = models.DEFAULT, precision: str = "bf16") -> int:
    """Prints a line per rung; returns the exit code."""
    here, failures = device.detect(), 0
    expected = _answers(model, precision, "none")[1:]
    for rung in LADDER:
        wanted = "fp8" if rung.name == "fp8" else precision
        if why := rung.problem(wanted, here):
            print(f"{rung.name:18} off: {why}")
            continue
        session, tokens, logits = _answers(model, wanted, "+".join(_with_needs(rung)))
        facts = session.facts()
        kl = float((expected[1].exp() * (expected[1] - logits)).sum(-1).mean())
        equal = sum(a == b for ours, theirs in zip(tokens, expected[0]) for a, b in zip(ours, theirs))
        how = facts["rungs_in_force"].get(rung.name)
        wrong = how is None or kl > LIMIT and not rung.changes_output
        failures += wrong
        state = how or f"NOT IN FORCE: {facts['rungs_off'].get(rung.name)}"
        print(f"{rung.name:18} {'WRONG' if wrong else 'ok':5} tokens {equal}/{ROWS * OUT}, KL {kl:.2e}; {state}")
        if rung.name == "fp8":
            worst = max(share for _, share in fp8.differences(session._model))
            print(f"{'':18} kernel against FP32 reference: {worst:.1e} of the largest value")
        session.close()
    return int(failures > 0)


def _answers(model: str, precision: str, rungs: str) -> tuple[HfSession, list[tuple[int, ...]], torch.Tensor]:
    found = models.resolve(model)
    setup = Setup("hf", found.name, found.path, precision, rungs=rungs)
    cell = Cell(setup, "perf", {"input_len": LENGTH, "output_len": OUT}, Support("native"))
    session = HfSession(Load(setup, (cell,), "native"))
    prompts = [[((row * (step >= SHARED)) * 31 + step * 7) % 2000 + 1 for step in range(LENGTH)] for row in range(ROWS)]
    list(session.score(prompts))
    generated = session.generate_logits(prompts, OUT, 0)
    first_RV = torch.stack([piece.values[0] for _, piece in generated]).double().log_softmax(-1)
    return session, [tokens for tokens, _ in generated], first_RV


def _with_needs(rung: Rung) -> list[str]:
    """In the ladder's order, what those need included."""
    wanted, rungs = {rung.name}, {each.name: each for each in LADDER}
    for name in reversed(rungs):
        if name in wanted:
            wanted.update(rungs[name].needs)
    return [name for name in rungs if name in wanted]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
