"""The metrics: each defined once, computed here and nowhere else. A metric that was not measured is None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.engine import Generation

NS_PER_MS = 1e6
SAMPLES_FOR_P99 = 100

DEFINITIONS = {
    "latency_ms": "wall time of a whole batch: handed to the engine until the last token of the last request",
    "ttft_ms": "time to first token: handed over until a request's first token, one value per request and iteration",
    "itl_ms": "inter-token latency: gap between consecutive tokens of a request, every gap a value",
    "tpot_ms": "time per output token of a request: (last token - first token) / (output_len - 1)",
    "output_tokens_per_sec": "batch_size x output_len / mean latency",
    "prefill_tokens_per_sec": "batch_size x input_len / mean over iterations of the batch's last TTFT",
    "perplexity": "geometric mean over chunks of exp(mean NLL), NLL of token t from the logits of t-1",
    "token_perplexity": "exp(NLL sum / scored tokens); the first token of each window is context, not scored",
    "word_perplexity": "exp(NLL sum / words in the scored text)",
    "byte_perplexity": "exp(NLL sum / UTF-8 bytes of the scored text)",
    "percentiles": "p50, p90, p99 by linear interpolation between order statistics; p99 is None below 100 samples",
}


def summarise(samples: Sequence[float] | None) -> dict[str, float | int | None] | None:
    """mean, std (n - 1), min, max, p50, p90, p99 and n of milliseconds; None when nothing was measured."""
    if not samples:
        return None
    ordered = sorted(samples)
    return {
        "mean": mean(ordered),
        "std": deviation(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        "p50": percentile(ordered, 50),
        "p90": percentile(ordered, 90),
        "p99": percentile(ordered, 99) if len(ordered) >= SAMPLES_FOR_P99 else None,
        "n": len(ordered),
    }


def mean(samples: Sequence[float]) -> float:
    return math.fsum(samples) / len(samples)


def deviation(samples: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1); None for fewer than two."""
    if len(samples) < 2:
        return None
    middle = mean(samples)
    return math.sqrt(math.fsum((sample - middle) ** 2 for sample in samples) / (len(samples) - 1))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between order statistics (numpy's default; method 7 of Hyndman and Fan, 1996)."""
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def speed(generations: Sequence[Generation], batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
    """The speed metrics of timed iterations. A time that any iteration lacks is None for all."""
    latency = [(g.finished_ns - g.started_ns) / NS_PER_MS for g in generations]
    firsts = _times(generations, lambda g, r: (r.token_ns[0] - g.started_ns) / NS_PER_MS)
    ttft = _flat(firsts)
    gaps = _flat(_times(generations, lambda g, r: [(b - a) / NS_PER_MS for a, b in zip(r.token_ns, r.token_ns[1:])]))
    itl = [gap for request in gaps for gap in request] if gaps else None
    tpot = None
    if output_len > 1:
        span = lambda g, r: (r.token_ns[-1] - r.token_ns[0]) / NS_PER_MS / (output_len - 1)  # noqa: E731
        tpot = _flat(_times(generations, span))
    average = mean(latency)
    return {
        "mean_latency_ms": average,
        "std_latency_ms": deviation(latency),
        "output_tokens_per_sec": batch_size * output_len / average * 1e3,
        "prefill_tokens_per_sec": batch_size * input_len / mean([max(batch) for batch in firsts]) * 1e3
        if firsts
        else None,
        "latency_ms": summarise(latency),
        "ttft_ms": summarise(ttft),
        "itl_ms": summarise(itl),
        "tpot_ms": summarise(tpot),
    }


def _times(generations: Sequence[Generation], of) -> list[list[Any]] | None:
    """`of` every request, per iteration; None when a token time it reads was not measured."""
    try:
        return [[of(g, response) for response in g.responses] for g in generations]
    except TypeError:  # arithmetic with None: that time was not measured
        return None


def _flat(nested: list[list[Any]] | None) -> list[Any] | None:
    return None if nested is None else [item for inner in nested for item in inner]


def perplexities(chunk_nlls: Sequence[Sequence[float]], words: int | None, byte_count: int | None) -> dict[str, Any]:
    """Every perplexity from one NLL sum. `chunk_nlls`: chunks x scored tokens, in nats."""
    means = [mean(nlls) for nlls in chunk_nlls]
    total = math.fsum(math.fsum(nlls) for nlls in chunk_nlls)
    tokens = sum(len(nlls) for nlls in chunk_nlls)
    return {
        "perplexity": math.exp(mean(means)),
        "token_perplexity": math.exp(total / tokens),
        "word_perplexity": _exp(total / words) if words else None,
        "byte_perplexity": math.exp(total / byte_count) if byte_count else None,
        "per_chunk_ppls": [math.exp(nll) for nll in means],
        "nll_sum": total,
        "scored_tokens": tokens,
    }


def _exp(value: float) -> float | None:
    """A word of many bad tokens can exceed what a float holds; that is no number to print."""
    return math.exp(value) if value < 700 else None
