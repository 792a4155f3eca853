"""Logit matching: do an engine's logits follow the reference's along a greedy continuation? Imports torch.

The definition is that of torch_neuronx.testing.validation.logit_validation: the engine decodes from the prompt; up to
and including the first token on which it differs each position is checked; then the expected tokens are put in and it
decodes on. At each position tokens that are -inf on either side are left out, actual = a x expected + b is fitted by
least squares and b taken away; for each k, of the k tokens expected likeliest,

    error = (|actual - expected| - absolute) / max |expected of the k|      must, rounded to the digits of `relative`,
                                                                            not exceed `relative`

and where another token came out likeliest, the engine must have held the two less than a given difference apart.
R: positions, N: tokens both sides know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import torch

from harness.accuracy.rows import Rows, Stored, rows_of
from harness.accuracy.tolerances import Tolerance
from harness.engine import Session
from harness.errors import BadOutput

WORST = 5  # failures kept in words


@dataclass
class Matching:
    """Collects checked positions; `summary` is the verdict."""

    tolerances: Sequence[Tolerance]
    divergence_tolerance: float
    tokens: int = 0
    divergences: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[Tolerance, list[torch.Tensor]] = field(default_factory=dict)
    bounded: dict[Tolerance, int] = field(default_factory=dict)  # positions where a token's value is only bounded
    shifts: list[torch.Tensor] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def add(self, reference: Rows, actual: Rows, prompt: int, position: int) -> None:
        """Takes consecutive positions of a prompt's continuation, from `position` on."""
        expected, found, is_bound = _aligned(reference.to(actual.values.device), actual)
        usable = torch.isfinite(expected) & torch.isfinite(found)
        shift = _shift(expected, found, usable & ~is_bound)
        found = found - shift[:, None]
        is_whole = reference.ids is None and actual.ids is None
        for tolerance in self.tolerances:
            error, bounded = _errors(expected, found, usable, is_bound, tolerance, is_whole)
            self.errors.setdefault(tolerance, []).append(error.cpu())
            self.bounded[tolerance] = self.bounded.get(tolerance, 0) + int(bounded.sum())
        self.shifts.append(shift.cpu())
        self.places += [(prompt, position + row) for row in range(len(actual))]
        self.tokens += len(actual)
        for row in (reference.likeliest.to(actual.likeliest.device) != actual.likeliest).nonzero()[:, 0].tolist():
            self._diverged(reference, actual, prompt, position, row)

    def _diverged(self, reference: Rows, actual: Rows, prompt: int, position: int, row: int) -> None:
        pair = torch.stack([actual.likeliest[row], reference.likeliest[row].to(actual.likeliest.device)])
        ours, theirs = _values_at(actual, row, pair).tolist()
        difference = None if theirs != theirs else ours - theirs  # NaN: the engine did not give that token
        self.divergences.append(
            {
                "prompt": prompt,
                "position": position + row,
                "expected_token": int(pair[1]),
                "actual_token": int(pair[0]),
                "difference": difference,
                "passed": difference is not None and abs(difference) < self.divergence_tolerance,
            }
        )

    def summary(self) -> dict[str, Any]:
        """Plain data for a record. `passed` is None where no k could be checked."""
        checks = [self._check(tolerance) for tolerance in self.tolerances]
        verdicts = [check["passed"] for check in checks if check["passed"] is not None]
        passed = all(verdicts) and all(divergence["passed"] for divergence in self.divergences) if verdicts else None
        shifts = torch.cat(self.shifts)
        return {
            "passed": passed,
            "why": self._why(checks, passed),
            "tokens_checked": self.tokens,
            "checks": checks,
            "not_checked": [check["k"] for check in checks if check["passed"] is None],
            "divergence_difference_tol": self.divergence_tolerance,
            "divergences": self.divergences,
            "shift": {"mean": float(shifts.mean()), "max_abs": float(shifts.abs().max())},
        }

    def _check(self, tolerance: Tolerance) -> dict[str, Any]:
        errors = torch.cat(self.errors[tolerance])
        digits = max(0, -Decimal(repr(tolerance.relative)).as_tuple().exponent)
        failed = torch.round(errors, decimals=digits) > tolerance.relative
        bounded = self.bounded[tolerance]
        passed = False if failed.any() else None if bounded else True  # a bound can fail a check, never pass it
        worst = errors.masked_fill(~failed, -1).topk(min(WORST, len(errors)))
        return {
            "k": tolerance.name,
            "absolute": tolerance.absolute,
            "relative": tolerance.relative,
            "passed": passed,
            "max_error": float(errors.max()),
            "tokens_failed": int(failed.sum()),
            "tokens_not_known": bounded,
            "worst": [
                {"prompt": self.places[i][0], "position": self.places[i][1], "error": value}
                for value, i in zip(worst.values.tolist(), worst.indices.tolist())
                if value >= 0
            ],
        }

    def _why(self, checks: list[dict[str, Any]], passed: bool | None) -> str | None:
        if passed:
            return None
        if passed is None:
            return "the engine gives too few log-probabilities for any of the checks"
        reasons = [
            f"{check['tokens_failed']} of {self.tokens} tokens off by more than {check['relative']} at k = {check['k']}"
            f" (worst {check['max_error']:.4g})"
            for check in checks
            if check["passed"] is False
        ]
        far = [divergence for divergence in self.divergences if not divergence["passed"]]
        if far:
            reasons.append(f"{len(far)} tokens chosen differently, and not by a hair")
        return "; ".join(reasons)


def match(
    session: Session,
    sequences: Sequence[Sequence[int]],
    first: Sequence[int],
    stored: Stored,
    num_tokens: int | None,
    top: int,
    matching: Matching,
) -> None:
    """Decodes every prompt (the first `first` tokens of its sequence) against the stored rows of its continuation."""
    row = 0
    for prompt, (sequence, begin) in enumerate(zip(sequences, first)):
        match_prompt(session, prompt, sequence, begin, stored, row, num_tokens, top, matching)
        row += len(sequence) - begin


def match_prompt(
    session: Session,
    prompt: int,
    sequence: Sequence[int],
    begin: int,
    stored: Stored,
    row: int,
    num_tokens: int | None,
    top: int,
    matching: Matching,
) -> None:
    """One of them; its rows begin at `row`. Raises BadOutput for a wrong number of tokens or logits that are no numbers."""
    length = len(sequence) - begin
    end = length if num_tokens is None else min(length, num_tokens)
    at = 0
    while at < end:
        ((tokens, piece),) = session.generate_logits([sequence[: begin + at]], end - at, top)
        actual = rows_of(piece, torch.tensor(tokens), f"prompt {prompt}")
        if len(tokens) != end - at:
            raise BadOutput(f"prompt {prompt}: asked for {end - at} tokens, got {len(tokens)}")
        expected = stored.rows(row + at, row + end)
        differs = (expected.likeliest != actual.likeliest.cpu()).nonzero()[:, 0]
        count = int(differs[0]) + 1 if len(differs) else end - at
        matching.add(expected.part(0, count), actual.part(0, count), prompt, at)
        at += count


def _aligned(reference: Rows, actual: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expected and actual values of the same tokens, [R, N] float64, and where the actual one is only an upper bound:
    a token the engine did not list is at most as likely as the last it listed."""
    if reference.ids is None and actual.ids is None:
        expected, found = reference.values.double(), actual.values.double()
        return expected, found, torch.zeros_like(expected, dtype=torch.bool)
    if reference.ids is None:  # the reference knows all: those it holds likeliest, as many as the engine gave
        ids, expected = reference.top(actual.values.shape[1])
        expected = expected.double()
    else:
        ids, expected = reference.ids, reference.values.double()
    if actual.ids is None:
        return expected, actual.values.gather(-1, ids).double(), torch.zeros_like(expected, dtype=torch.bool)
    found = actual.at(ids).double()
    is_bound = found.isnan()
    return expected, torch.where(is_bound, actual.values[:, -1:].double(), found), is_bound


def _values_at(rows: Rows, row: int, ids: torch.Tensor) -> torch.Tensor:
    if rows.ids is None:
        return rows.values[row][ids].double()
    return rows.at(ids[None, :].expand(len(rows), -1))[row].double()


def _shift(expected: torch.Tensor, found: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """b of found = a x expected + b by least squares over the usable tokens of each position, [R]."""
    count = usable.sum(-1, keepdim=True).clamp_min(1)
    x, y = expected.masked_fill(~usable, 0), found.masked_fill(~usable, 0)
    x_mean, y_mean = x.sum(-1, keepdim=True) / count, y.sum(-1, keepdim=True) / count
    dx, dy = (x - x_mean).masked_fill(~usable, 0), (y - y_mean).masked_fill(~usable, 0)
    variance = (dx * dx).sum(-1)
    slope = torch.where(variance > 0, (dx * dy).sum(-1) / variance.clamp_min(1e-300), 1.0)
    return y_mean[:, 0] - slope * x_mean[:, 0]


def _errors(
    expected: torch.Tensor,
    found: torch.Tensor,
    usable: torch.Tensor,
    is_bound: torch.Tensor,
    tolerance: Tolerance,
    is_whole: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest error among the k of each position, and where it rests on a bound, both [R]."""
    known = expected.shape[1]
    k = known if tolerance.k is None else min(tolerance.k, known)
    ids = expected.masked_fill(~usable, -torch.inf).topk(k, dim=-1).indices
    want, got, in_use = expected.gather(-1, ids), found.gather(-1, ids), usable.gather(-1, ids)
    bound = is_bound.gather(-1, ids) & in_use
    difference = torch.where(bound, (want - got).clamp_min(0), (got - want).abs())
    largest = want.masked_fill(~in_use, 0).abs().amax(-1)
    error = ((difference - tolerance.absolute) / largest[:, None]).masked_fill(~in_use, -torch.inf).amax(-1)
    too_few = not is_whole and (tolerance.k is None or tolerance.k > known)
    return error, bound.any(-1) | too_few
