"""Holds every rung that can be on here against plain eager, on a small model: python -m harness_hf.check

For each rung with what it needs: whether it is in force, how many greedy tokens are eager's, and the mean KL divergence
of the first token's distribution from eager's. FP8 per tensor and in blocks, of experts and of every linear layer,
eager, compiled and in the fused step. Exit code 1 where one is not in force, moves KL beyond LIMIT without saying that
it changes the output, or has a kernel that is off by more than rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from harness import device
from harness.cells import Cell, Load, Setup
from harness.engine import Rung
from harness.model import models
from harness.precision import Support
from harness_hf import fp8
from harness_hf.rungs import FP8, LADDER
from harness_hf.session import HfSession

LENGTH, OUT, ROWS, SHARED = 320, 16, 4, 32  # tokens of a prompt, generated; prompts; what they share
LIMIT = 0.02  # nats; BF16 kernels of another shape move tinymoe's KL by a few 1e-3
ROUNDING = 2**-7  # of the largest value: results round to BF16, and sums to fewer bits where they are fast


@dataclass(frozen=True)
class Case:
    rung: Rung
    precision: str
    scope: str = "experts"
    beside: tuple[str, ...] = ()  # rungs that are on, too

    @property
    def label(self) -> str:
        said = {self.precision: self.precision in FP8, "linear": self.scope == "linear"}
        said |= {"compiled": any(name.startswith("compile") for name in self.beside)}
        return " ".join((self.rung.name, *(word for word, is_said in said.items() if is_said)))


def main(model: str = models.DEFAULT, precision: str = "bf16") -> int:
    """Prints a line per rung; returns the exit code."""
    here, failures = device.detect(), 0
    expected = _answers(model, precision, "none")[1:]
    for case in _cases(precision):
        if why := case.rung.why_off(case.precision, here):
            print(f"{case.label:24} off: {why}")
            continue
        session, tokens, logits = _answers(model, case.precision, "+".join(_with_needs(case)), case.scope)
        facts = session.facts()
        kl = float((expected[1].exp() * (expected[1] - logits)).sum(-1).mean())
        equal = sum(a == b for ours, theirs in zip(tokens, expected[0]) for a, b in zip(ours, theirs))
        how = facts["rungs_in_force"].get(case.rung.name)
        may_change = case.rung.changes_output or case.precision != precision
        wrong = how is None or kl > LIMIT and not may_change
        failures += wrong
        state = how or f"NOT IN FORCE: {facts['rungs_off'].get(case.rung.name)}"
        print(f"{case.label:24} {'WRONG' if wrong else 'ok':5} tokens {equal}/{ROWS * OUT}, KL {kl:.2e}; {state}")
        if case.rung.name == "fp8":
            worst = max(share for _, share in fp8.differences(session._model))
            failures += not worst <= ROUNDING
            verdict = "" if worst <= ROUNDING else "WRONG "
            print(f"{'':24} {verdict}{facts['moe_kernel']} against FP32: {worst:.1e} of the largest value")
        session.close()
    return int(failures > 0)


def _cases(precision: str) -> Iterator[Case]:
    compiled = ("sdpa", "static_cache", "compile", "cuda_graphs")
    for rung in LADDER:
        if rung.name == "fp8":
            for each in FP8:
                yield from (Case(rung, each), Case(rung, each, "linear"), Case(rung, each, beside=compiled))
        else:
            yield Case(rung, precision)
            if rung.name == "fused_step":
                yield Case(rung, precision, beside=("compiled_prefill",))
                yield from (Case(rung, each, beside=("fp8",)) for each in FP8 if each != precision)


def _answers(
    model: str, precision: str, rungs: str, scope: str = "experts"
) -> tuple[HfSession, list[tuple[int, ...]], torch.Tensor]:
    found = models.resolve(model)
    setup = Setup("hf", found.name, found.path, precision, rungs=rungs, quantize=scope)
    cell = Cell(setup, "perf", {"input_len": LENGTH, "output_len": OUT}, Support("native"))
    session = HfSession(Load(setup, (cell,), "native"))
    prompts = [[((row * (step >= SHARED)) * 31 + step * 7) % 2000 + 1 for step in range(LENGTH)] for row in range(ROWS)]
    list(session.score(prompts))
    generated = session.generate_logits(prompts, OUT, 0)
    first_RV = torch.stack([piece.values[0] for _, piece in generated]).double().log_softmax(-1)
    return session, [tokens for tokens, _ in generated], first_RV


def _with_needs(case: Case) -> list[str]:
    """In the ladder's order, what those need included."""
    wanted, rungs = {case.rung.name, *case.beside}, {each.name: each for each in LADDER}
    for name in reversed(rungs):
        if name in wanted:
            wanted.update(rungs[name].needs)
    return [name for name in rungs if name in wanted]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
