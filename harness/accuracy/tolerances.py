"""The tolerance map of logit matching: for the k likeliest tokens, how far a logit may be off."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

from harness.errors import UsageError

DEFAULT = "{None: (1e-5, 0.05), 1000: (1e-5, 0.03), 50: (1e-5, 0.03), 5: (1e-5, 0.03)}"


@dataclass(frozen=True)
class Tolerance:
    """Of the `k` tokens the reference holds likeliest (None: the whole vocabulary)."""

    k: int | None
    absolute: float
    relative: float  # of the largest of the k expected logits, by magnitude

    @property
    def name(self) -> str:
        return "all" if self.k is None else str(self.k)


def parse(text: str) -> tuple[Tolerance, ...]:
    """From `{k or None: (absolute, relative), ..}`. Literals only, nothing is executed. Raises UsageError."""
    wanted = f"expected {{k: (absolute, relative), ..}} such as {DEFAULT}"
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(f"--tol-map {text!r} cannot be read: {wanted}") from None
    if not isinstance(found, dict) or not found:
        raise UsageError(f"--tol-map {text!r}: {wanted}")
    return tuple(_tolerance(k, pair, wanted) for k, pair in found.items())


def _tolerance(k: object, pair: object, wanted: str) -> Tolerance:
    if k is not None and (type(k) is not int or k < 1):
        raise UsageError(f"--tol-map: {k!r} is no number of tokens: {wanted}")
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise UsageError(f"--tol-map: {k!r}: {pair!r} is no pair: {wanted}")
    if not all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in pair):
        raise UsageError(f"--tol-map: {k!r}: {pair!r} must be two numbers of at least 0")
    return Tolerance(k, float(pair[0]), float(pair[1]))
