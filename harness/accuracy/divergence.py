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

from harness.accuracy.rows import LEAST, Aligned, Rows
from harness.recording.metrics import mean, percentile

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

    def add(self, both: Aligned, sequence: int, first_token: int) -> None:
        """Takes positions of one sequence; the first of them gave token `first_token`."""
        reference, actual = both.reference, both.actual
        forward, reverse = _kl(both)
        self.is_exact &= both.ids is None
        self.kl["forward"].append(forward.cpu())
        self.kl["reverse"].append(reverse.cpu())
        self.nll.append((reference.given.double() - actual.given.double()).cpu())
        self.top = min(self.top, reference.values.shape[1], actual.values.shape[1])
        expected, (found, values) = reference.top(self.top)[0], actual.top(self.top, near=both.ids)
        self.agree.append((expected[:, 0] == found[:, 0]).cpu())
        # Ties are in: which of several equal tokens comes k-th is chance.
        is_among = actual.at(expected) + actual.norm[:, None] >= values[:, -1:] - TIE
        self.overlap.append(is_among.double().mean(-1).cpu())
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


def _kl(both: Aligned) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(P || Q) and KL(Q || P), [R] float64."""
    if both.ids is None:
        forward, reverse, *_ = _sums(both.expected.double().log_softmax(-1), both.found.double().log_softmax(-1))
        return forward, reverse
    p, q = both.expected, both.found
    unknown = (p + q).isnan()
    if unknown.any():
        p, q = p.masked_fill(unknown, -torch.inf), q.masked_fill(unknown, -torch.inf)
    forward, reverse, p_mass, q_mass = _sums(p, q)
    is_known = ~unknown.any(-1)
    p_rest, q_rest = _rest(both.reference, p_mass, is_known, both.ids), _rest(both.actual, q_mass, is_known, both.ids)
    others, others_reverse, *_ = _sums(p_rest[:, None], q_rest[:, None])
    # No KL is negative, but the rest is known to rounding only.
    return (forward + others).clamp_min(0), (reverse + others_reverse).clamp_min(0)


def _rest(rows: Rows, mass: torch.Tensor, is_known: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of the tokens outside `ids`."""
    rest = (1 - mass).clamp_min(LEAST).log()
    if rows.tail is None or rows.ids is not ids:
        return rest
    return torch.where(is_known, rows.tail.double(), rest)  # as it was when more digits of it were known


def _sums(p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """From logarithms, over the last dimension: p ln(p / q), q ln(q / p), p and q. A term whose factor is 0 is 0."""
    p_share, q_share, difference = p.exp(), q.exp(), p - q
    forward = torch.where(p_share > 0, p_share * difference, 0.0)
    reverse = torch.where(q_share > 0, q_share * -difference, 0.0)
    return tuple(terms.sum(-1, dtype=torch.float64) for terms in (forward, reverse, p_share, q_share))


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
