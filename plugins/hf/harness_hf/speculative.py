"""Speculative decoding without a draft model: what followed the same n-gram earlier in the text is tried as the next
tokens, and kept as far as it is what greedy decoding gives (Saxena, "Prompt Lookup Decoding", 2023).

A: batch, T: tokens, K: tokens of a draft. The prompts of a batch go in step: a draft counts as far as all agree.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache

from harness_hf.caches import shorten
from harness_hf.generation import Run
from harness_hf.steps import Step

DRAFT = 7  # tokens of a draft: eight are fed at once
LENGTHS = (3, 2)  # of n-grams, the longest first
TIE = 2  # roundings of the highest logit; plugins/hf/README.md has what was seen


class Ngram:
    """Continues a run; `step` answers for every token fed."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.steps = self.tokens = 0

    def __call__(self, run: Run, ids_AT: torch.Tensor, cache: Cache, count: int) -> None:
        token_A, length = run.tokens[-1], ids_AT.shape[1]
        texts = [Text(row) for row in torch.cat([ids_AT, token_A[:, None]], dim=1).tolist()]
        while count:
            draft_AK = torch.tensor([text.draft() for text in texts], device=ids_AT.device)
            with run.step():
                value_AT, chosen_AT, logits_ATV = self.step(torch.cat([token_A[:, None], draft_AK], dim=1), cache)
                agreed = (chosen_AT[:, :-1] == draft_AK).all(0).cumprod(0).sum()
                good = min(int(agreed) + 1, count)
                for index in range(good):
                    run.took(value_AT[:, index], chosen_AT[:, index], logits_ATV[:, index])
            run.tick(good)
            length, count, token_A = length + good, count - good, chosen_AT[:, good - 1]
            shorten(cache, length)
            for text, row in zip(texts, chosen_AT[:, :good].tolist()):
                text.add(row)
            self.steps, self.tokens = self.steps + 1, self.tokens + good


class Text:
    """Token ids so far, and where each n-gram was last followed by something."""

    def __init__(self, ids: list[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.add(ids)

    def add(self, ids: list[int]) -> None:
        for token in ids:
            for length in LENGTHS:
                if len(self._ids) >= length:
                    self._after[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(token)

    def draft(self) -> list[int]:
        """DRAFT tokens; the last token over and over where nothing is known."""
        for length in LENGTHS:
            if place := self._after.get(tuple(self._ids[-length:])):
                found = self._ids[place : place + DRAFT]
                return found + found[-1:] * (DRAFT - len(found))
        return self._ids[-1:] * DRAFT


class Margin:
    """Looks at plain decoding, and keeps by how much it finds its own token likelier than that of `tokens_AT`: [A] of each
    step, in roundings of the logits' format."""

    def __init__(self, tokens_AT: torch.Tensor) -> None:
        self._tokens = iter(tokens_AT.unbind(1))
        self.found: list[torch.Tensor] = []

    def __call__(self, logits_AV: torch.Tensor) -> None:
        highest_A = logits_AV.max(-1).values.float()
        other_A = logits_AV.gather(1, next(self._tokens)[:, None])[:, 0].float()
        _, exponent_A = torch.frexp(highest_A)  # of a mantissa below 1
        rounding_A = torch.ldexp(torch.full_like(highest_A, torch.finfo(logits_AV.dtype).eps / 2), exponent_A)
        self.found.append((highest_A - other_A) / rounding_A)


def difference(tokens_AT: torch.Tensor, plain_AT: torch.Tensor, margin_AT: torch.Tensor) -> str | None:
    """Where speculative and plain decoding part, in words; None where each row's first such place is a tie. Tokens fed
    together and one by one are rounded differently, so of two that are all but as likely either may come out."""
    unequal = tokens_AT != plain_AT
    parted = unequal & (unequal.cumsum(1) == 1) & (margin_AT > TIE)
    if not parted.any():
        return None
    first = int(parted.any(0).nonzero()[0])
    rows = int(parted[:, first].sum())
    return f"token {first} of {tokens_AT.shape[1]} is not that of plain greedy decoding in {rows} rows"
