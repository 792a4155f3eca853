"""How far two models' next-token distributions lie apart, position by position. Imports torch.

P: the reference, Q: what is compared with it; both at the same positions of the same tokens. R: positions.

    KL(P || Q) = sum over the vocabulary of p ln(p / q), in nats          (Kullback and Leibler, 1951)

Where a side knows only its likeliest tokens, those that both know are taken one by one and all others as one: by the
log sum inequality that is a lower bound of the whole, equal to it where the others' share is the same for each token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from harness.accuracy.rows import LEAST, Rows
from harness.metrics import mean, percentile

OVERLAP = 10  # likeliest tokens whose overlap is counted
TIE = 1e-6  # what taking the norm away and back may cost
EXACT, BOUND = "exact, whole vocabulary", "lower bound: tokens both sides know, and the others as one"


@dataclass
class Divergence:
    """Collects positions; `summary` says what they come to."""

    kl: dict[str, list[torch.Tensor]] = field(default_factory=lambda: {"forward": [], "reverse": []})
    nll: list[torch.Tensor] = field(default_factory=list)
    agree: list[torch.Tensor] = field(default_factory=list)
    overlap: list[torch.Tensor] = field(default_factory=list)
    sequence: list[torch.Tensor] = field(default_factory=list)
    token: list[torch.Tensor] = field(default_factory=list)
    is_exact: bool = True
    top: int = OVERLAP

    def add(self, reference: Rows, actual: Rows, sequence: int, first_token: int) -> None:
        """Takes positions of one sequence; the first of them gave token `first_token`."""
        reference = reference.to(actual.values.device)
        forward, reverse = _kl(reference, actual)
        self.is_exact &= reference.ids is None and actual.ids is None
        self.kl["forward"].append(forward.cpu())
        self.kl["reverse"].append(reverse.cpu())
        self.nll.append((reference.given.double() - actual.given.double()).cpu())
        self.agree.append((reference.likeliest == actual.likeliest).cpu())
        self.top = min(self.top, reference.values.shape[1], actual.values.shape[1])
        self.overlap.append(_overlap(reference, actual, self.top).cpu())
        self.sequence.append(torch.full((len(actual),), sequence))
        self.token.append(torch.arange(first_token, first_token + len(actual)))

    def positions(self) -> torch.Tensor:
        """[R], KL(P || Q) of each, in order."""
        return torch.cat(self.kl["forward"])

    def summary(self) -> dict[str, Any]:
        """Plain data for a record. KL and NLL in nats per token; infinite ones are counted and left out of the rest."""
        agree, nll = torch.cat(self.agree), torch.cat(self.nll)
        return {
            "tokens": len(agree),
            "kl_is": EXACT if self.is_exact else BOUND,
            "kl_forward": _spread(torch.cat(self.kl["forward"])),
            "kl_reverse": _spread(torch.cat(self.kl["reverse"])),
            "top1_agreement": float(agree.double().mean()),
            "topk_overlap": {"k": self.top, "mean": float(torch.cat(self.overlap).mean())},
            "nll_difference": {**_spread(nll), "of_absolute_values": _spread(nll.abs())},
            "first_divergence": self._first_divergence(agree),
        }

    def _first_divergence(self, agree: torch.Tensor) -> dict[str, Any]:
        """Per sequence, the index of the first token the two would have chosen differently."""
        sequence, token = torch.cat(self.sequence), torch.cat(self.token)
        total = int(sequence.max()) + 1
        first = {int(s): int(t) for s, t in reversed(list(zip(sequence[~agree], token[~agree])))}
        earliest = min(first, key=lambda index: first[index], default=None)
        return {
            "sequences": total,
            "diverged": len(first),
            "earliest_token": None if earliest is None else first[earliest],
            "of_sequence": earliest,
            "median_token": percentile(sorted(first.values()), 50) if first else None,
        }


def _overlap(reference: Rows, actual: Rows, k: int) -> torch.Tensor:
    """Share of the reference's k likeliest tokens that are as likely as the k-th of the other side, [R]. Ties are in:
    which of several equal tokens comes k-th is chance."""
    ids, _ = reference.top(k)
    values = actual.at(ids) + actual.norm[:, None]
    return (values >= actual.values.topk(k, dim=-1).values[:, -1:] - TIE).double().mean(-1)


def _kl(reference: Rows, actual: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(P || Q) and KL(Q || P), [R] float64."""
    if reference.ids is None and actual.ids is None:
        p, q = reference.values.double().log_softmax(-1), actual.values.double().log_softmax(-1)
        return _terms(p, q).sum(-1), _terms(q, p).sum(-1)
    ids = reference.ids if reference.ids is not None else actual.ids
    p, q = reference.at(ids).double(), actual.at(ids).double()
    known = ~(p.isnan() | q.isnan())
    p, q = p.masked_fill(~known, -torch.inf), q.masked_fill(~known, -torch.inf)
    all_known = known.all(-1)
    p_rest, q_rest = (_rest(rows, logprobs, all_known) for rows, logprobs in ((reference, p), (actual, q)))
    forward, reverse = _terms(p, q).sum(-1) + _terms(p_rest, q_rest), _terms(q, p).sum(-1) + _terms(q_rest, p_rest)
    return forward.clamp_min(0), reverse.clamp_min(0)  # no KL is negative; the rest is known to rounding only


def _rest(rows: Rows, logprobs: torch.Tensor, all_known: torch.Tensor) -> torch.Tensor:
    rest = (1 - logprobs.exp().sum(-1)).clamp_min(LEAST).log()
    if rows.tail is None or rows.ids is None or rows.ids.shape[1] != logprobs.shape[1]:
        return rest
    return torch.where(all_known, rows.tail.double(), rest)  # as it was when more digits of it were known


def _terms(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """p ln(p / q) from logarithms; 0 where p is 0."""
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))


def _spread(values: torch.Tensor) -> dict[str, Any]:
    """mean, p50, p99, max and n of the finite ones, and how many were infinite."""
    finite = sorted(values[torch.isfinite(values)].tolist())
    return {
        "mean": mean(finite) if finite else None,
        "p50": percentile(finite, 50) if finite else None,
        "p99": percentile(finite, 99) if finite else None,
        "max": finite[-1] if finite else None,
        "n": len(finite),
        "infinite": len(values) - len(finite),
    }
