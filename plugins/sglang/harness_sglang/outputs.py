"""SGLang's answers, which are dictionaries, as scores, tokens and rows of distributions; what is wrong is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness import BadOutput, Logits

Answer = Mapping[str, Any]


def tokens_of(answer: Answer, output_len: int) -> tuple[int, ...]:
    """Exactly `output_len` token ids. Raises BadOutput when the engine stopped early."""
    ids, reason = answer["output_ids"], answer["meta_info"]["finish_reason"]
    if len(ids) != output_len or reason is None or reason["type"] != "length":
        raise BadOutput(f"SGLang gave {len(ids)} of {output_len} tokens and ended with {reason}")
    return tuple(ids)


def until_stop(answer: Answer) -> tuple[int, ...]:
    """The token ids of an answer, with the stop token that ended it, if one did."""
    ids, reason = answer["output_ids"], answer["meta_info"]["finish_reason"] or {}
    stop = reason.get("matched") if reason.get("type") == "stop" else None
    return (*ids, *([stop] if type(stop) is int and ids[-1:] != [stop] else []))


def given(answer: Answer, sequence: Sequence[int]) -> list[float]:
    """Natural-log probability of tokens 1..n-1 of a prompt. SGLang lists all n; the first has none."""
    entries = answer["meta_info"]["input_token_logprobs"]
    if [entry[1] for entry in entries] != list(sequence) or entries[0][0] is not None:
        raise BadOutput(
            f"SGLang scored {len(entries)} tokens of a prompt of {len(sequence)}, or others than its own, "
            "or the first: log-probabilities cannot be told apart from their neighbours'"
        )
    return [logprob for logprob, *_ in entries[1:]]


def prompt_rows(answer: Answer, sequence: Sequence[int], vocabulary: int) -> Logits:
    """The distributions that predict tokens 1..n-1 of a prompt."""
    values = given(answer, sequence)
    return _rows(answer["meta_info"]["input_top_logprobs"][1:], values, vocabulary)


def answer_rows(answer: Answer, vocabulary: int) -> Logits:
    """The distributions the generated tokens were the likeliest of."""
    meta = answer["meta_info"]
    entries = meta["output_token_logprobs"]
    if [entry[1] for entry in entries] != list(answer["output_ids"]):
        raise BadOutput(f"SGLang gave log-probabilities of {len(entries)} tokens, of others than it generated")
    return _rows(meta["output_top_logprobs"], [logprob for logprob, *_ in entries], vocabulary)


def _rows(top: Sequence[Sequence[tuple[float, int, None]]], given: Sequence[float], vocabulary: int) -> Logits:
    """Of lists of the likeliest tokens, one per position. A row of the whole vocabulary is put in its order."""
    widths = {len(entries) for entries in top}
    if len(widths) != 1 or len(top) != len(given):
        raise BadOutput(f"SGLang gave {len(top)} rows of {sorted(widths)} log-probabilities for {len(given)} positions")
    ids_RN = torch.tensor([[entry[1] for entry in entries] for entries in top])
    values_RN = torch.tensor([[entry[0] for entry in entries] for entries in top], dtype=torch.float32)
    if ids_RN.shape[1] == vocabulary:
        return Logits(torch.empty_like(values_RN).scatter_(1, ids_RN, values_RN))
    return Logits(values_RN, ids_RN, torch.tensor(given, dtype=torch.float32))
