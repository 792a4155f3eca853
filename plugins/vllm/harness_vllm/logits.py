"""vLLM's log-probabilities as rows of distributions."""

from __future__ import annotations

from typing import Any

import torch

from harness import BadOutput, Logits


def rows(flat: Any, first: int, vocabulary: int) -> Logits:
    """Of vLLM's FlatLogprobs, positions from `first` on: each holds the token that follows, then the likeliest in order
    (so the former may be there twice). A row of the whole vocabulary is put in the vocabulary's order."""
    starts, ends = flat.start_indices[first:], flat.end_indices[first:]
    widths = {end - start for start, end in zip(starts, ends)}
    if len(widths) != 1:
        raise BadOutput(f"vLLM gave rows of {sorted(widths)} log-probabilities, they should be equally long")
    whole = slice(starts[0], ends[-1])
    ids_RN = torch.tensor(flat.token_ids[whole]).view(len(starts), -1)
    values_RN = torch.tensor(flat.logprobs[whole], dtype=torch.float32).view(len(starts), -1)
    given_R, ids_RN, values_RN = values_RN[:, 0], ids_RN[:, 1:], values_RN[:, 1:]
    if ids_RN.shape[1] == vocabulary:
        return Logits(torch.empty_like(values_RN).scatter_(1, ids_RN, values_RN))
    return Logits(values_RN, ids_RN, given_R)
