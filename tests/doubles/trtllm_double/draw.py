"""The next token of the double, by what SamplingParams say."""

from __future__ import annotations

from typing import Any

import torch


def drawn(row_V: torch.Tensor, sampling: dict[str, Any], step: int) -> int:
    """From the `top_k` likeliest (0 or None: all) whose mass reaches `top_p`, at a temperature; the likeliest where the
    sampling is greedy. The same seed draws the same."""
    if sampling["is_greedy"]:
        return int(row_V.argmax())
    temperature = 1.0 if sampling["temperature"] is None else sampling["temperature"]
    ranked_V, ids_V = (row_V / temperature).softmax(-1).sort(descending=True)
    kept = sampling["top_k"] or len(row_V)
    mass_V = ranked_V.cumsum(-1) - ranked_V
    top_p = 1.0 if sampling["top_p"] is None else sampling["top_p"]
    ranked_V = torch.where((mass_V < top_p) & (torch.arange(len(row_V)) < kept), ranked_V, 0.0)
    generator = torch.Generator().manual_seed((sampling["seed"] or 0) * 1_000_003 + step)
    return int(ids_V[torch.multinomial(ranked_V, 1, generator=generator)])
