"""What the workload `kl` does with a session: KL of its logits beside a reference's. Imports torch; runs in workers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.accuracy.baseline import Baseline, open_baseline
from harness.accuracy.divergence import Divergence
from harness.accuracy.rows import Stored, align, following, rows_of
from harness.accuracy.scoring import ASKED_WHOLE, MOST_LISTED, make_baseline
from harness.engine import Session
from harness.errors import Unsupported
from harness.working.inputs import Inputs
from harness.workload import Progress

FLAT = 0.01  # nats; tinymoe trained 6.1, with the HF engine's random weights 1.2, with vLLM's 1e-5


def beside(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """`kl`: `{prefill, decode}`, each with tokens, KL and top-1 agreement, or None and `kl_problem` why. The reference is
    compared with itself, run again: what that gives is the noise of the rest. Raises Unsupported where the reference left
    no file."""
    path = Path(parameters["reference"])
    if parameters["is_reference"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        more = {"texts": None, "num_tokens": parameters["output_len"], "output": str(path)}
        make_baseline(session, inputs, {**parameters, **more}, progress)
    if not path.exists():
        raise Unsupported("plain eager, which it is compared with, left no logits")
    baseline = open_baseline(path)
    if (lead := _lead(baseline)) < FLAT:
        return {
            "kl": None,
            "kl_problem": f"with these weights all tokens are all but equally likely (the likeliest by {lead:.0e} nats), "
            "whatever the layers do",
        }
    found = {"prefill": _summary(_prefill(session, baseline)), "decode": _summary(_decode(session, baseline))}
    return {"kl": {"reference": baseline.reference, **found}}


def _lead(baseline: Baseline) -> float:
    """How much likelier the likeliest token of the first prompt's positions is than one of as many equal ones, in nats."""
    rows = Stored(baseline.path, "windows").rows(0, len(baseline.ids("windows")[0]) - 1)
    return float((rows.values.amax(-1) - rows.norm).mean()) + math.log(baseline.about["vocab_size"])


def _prefill(session: Session, baseline: Baseline) -> Divergence:
    """Every position of the prompts."""
    found, stored, sequences = Divergence(), Stored(baseline.path, "windows"), baseline.ids("windows")
    begins = [sum(len(ids) - 1 for ids in sequences[:index]) for index in range(len(sequences))]
    for index, token, rows in following(iter(session.score_logits(sequences, _top(baseline))), sequences):
        at = begins[index] + token - 1
        found.add(align(stored.rows(at, at + len(rows)), rows), index, token)
    return found


def _decode(session: Session, baseline: Baseline) -> Divergence:
    """Greedy steps, with the kernels of `generate`, as far as both saw the same tokens: up to the first that differs."""
    found, stored, row = Divergence(), Stored(baseline.path, "greedy"), 0
    for prompt, (sequence, begin) in enumerate(zip(baseline.ids("greedy"), baseline.first("greedy"))):
        length = len(sequence) - begin
        ((tokens, piece),) = session.generate_logits([sequence[:begin]], length, _top(baseline))
        actual = rows_of(piece, torch.tensor(tokens), f"prompt {prompt}")
        expected = stored.rows(row, row + length)
        differs = (torch.tensor(sequence[begin:]) != torch.tensor(tokens)).nonzero()[:, 0]
        count = int(differs[0]) + 1 if len(differs) else length  # that step still had the same tokens before it
        found.add(align(expected.part(0, count), actual.part(0, count)), prompt, begin)
        row += length
    return found


def _summary(found: Divergence) -> dict[str, Any]:
    whole = found.summary()
    return {name: whole[name] for name in ("tokens", "kl_is", "kl_forward", "top1_agreement")}


def _top(baseline: Baseline) -> int:
    """How many of the likeliest tokens to ask an engine for."""
    vocabulary = baseline.about["vocab_size"]
    is_whole = vocabulary <= ASKED_WHOLE and "windows.logits" in baseline.file.tensors
    return vocabulary if is_whole else min(vocabulary, MOST_LISTED)
