"""The metrics: each defined once, computed here and nowhere else. A metric that was not measured is None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.engine import Generation

Raw = Mapping[str, Any]
NS_PER_MS = 1e6
SAMPLES_FOR_P99 = 100
LEAST_GAPS = (
    0.99  # share of the gaps that must have been measured: now and then an engine hands over two tokens at once
)
LEAST_ENERGY_S = 1.0  # NVML's counter moves about ten times a second; over less its steps are a tenth of the answer

DEFINITIONS = {
    "latency_ms": "wall time of a whole batch: handed to the engine until the last token of the last request",
    "ttft_ms": "time to first token: handed over until a request's first token, one value per request and iteration",
    "itl_ms": "inter-token latency: gap between consecutive tokens of a request, every gap a value; gaps beside a token "
    "without a time are left out, and it is None where they are more than 1 in 100",
    "tpot_ms": "time per output token of a request: (last token - first token) / (output_len - 1)",
    "output_tokens_per_sec": "batch_size x output_len / mean latency",
    "prefill_tokens_per_sec": "batch_size x input_len / mean over iterations of the batch's last TTFT",
    "energy_joules": "what NVML's counters of the load's GPUs gained over the timed iterations, all of them together",
    "joules_per_output_token": "energy_joules / (iterations x batch_size x output_len); prefill is part of it",
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


def raw_times(generations: Sequence[Generation]) -> dict[str, Any]:
    """What a record keeps of timed iterations, in ns: `latency_ns`, and per iteration the `token_ns` since its start,
    each timeline once with the requests that share it. An engine that steps a whole batch together has one, and a
    record of 64 requests is then no longer than that of one."""
    return {
        "latency_ns": [g.finished_ns - g.started_ns for g in generations],
        "token_ns": [_timelines(generation) for generation in generations],
    }


def _timelines(generation: Generation) -> list[dict[str, Any]]:
    requests: dict[tuple[int | None, ...], list[int]] = {}
    for index, response in enumerate(generation.responses):
        requests.setdefault(tuple(response.token_ns), []).append(index)
    start = generation.started_ns
    return [
        {"requests": indices, "ns": [None if time is None else time - start for time in times]}
        for times, indices in requests.items()
    ]


def speed(raw: Raw, batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
    """The speed metrics of the iterations in `raw`, as `raw_times` gives them, with `energy_mj` where it was read. A
    time that any iteration lacks is None for all; of gaps some may lack."""
    latency = iteration_samples(raw, "latency_ms")
    firsts = _per_request(raw, lambda ns: ns[0] / NS_PER_MS)
    gaps = _flat(
        _per_request(raw, lambda ns: [None if None in pair else pair[1] - pair[0] for pair in zip(ns, ns[1:])])
    )
    itl = [gap / NS_PER_MS for request in gaps or () for gap in request if gap is not None]
    tpot = _per_request(raw, _gap) if output_len > 1 else None
    average = mean(latency)
    return {
        "mean_latency_ms": average,
        "std_latency_ms": deviation(latency),
        "output_tokens_per_sec": batch_size * output_len / average * 1e3,
        "prefill_tokens_per_sec": batch_size * input_len / mean([max(batch) for batch in firsts]) * 1e3
        if firsts
        else None,
        "latency_ms": summarise(latency),
        "ttft_ms": summarise(_flat(firsts)),
        "itl_ms": summarise(itl if _has_gaps(raw) else None),
        "tpot_ms": summarise(_flat(tpot)),
        **_energy(raw, len(latency) * batch_size * output_len),
    }


def iteration_samples(raw: Raw, name: str) -> list[float] | None:
    """One value of a speed metric per iteration, in ms: the mean over its requests, which share its luck and are no
    independent samples. None where a time it reads was not measured, and for gaps where too many were not."""
    if name == "latency_ms":
        return [ns / NS_PER_MS for ns in raw["latency_ns"]]
    if name == "itl_ms" and not _has_gaps(raw):
        return None
    batches = _per_request(raw, {"ttft_ms": lambda ns: ns[0] / NS_PER_MS, "itl_ms": _gap, "tpot_ms": _gap}[name])
    return None if batches is None else [mean(batch) for batch in batches]


def _has_gaps(raw: Raw) -> bool:
    """Whether enough gaps between tokens were measured."""
    timelines = [(len(one["requests"]), one["ns"]) for batch in raw.get("token_ns") or () for one in batch]
    every = sum(count * (len(ns) - 1) for count, ns in timelines)
    measured = sum(count * sum(None not in pair for pair in zip(ns, ns[1:])) for count, ns in timelines)
    return every > 0 and measured >= LEAST_GAPS * every


def _gap(ns: Sequence[int]) -> float:
    """Mean time between the tokens of a request, in ms."""
    return (ns[-1] - ns[0]) / (len(ns) - 1) / NS_PER_MS


def _per_request(raw: Raw, of: Callable[[Sequence[int]], Any]) -> list[list[Any]] | None:
    """`of` every request's token times, iterations x requests; None when one it reads was not measured, or there are
    too few tokens for it."""
    try:
        return [
            [value for timeline in batch for value in [of(timeline["ns"])] * len(timeline["requests"])]
            for batch in raw["token_ns"]
        ]
    except (KeyError, TypeError, ZeroDivisionError):  # no token times, arithmetic with None, or one token
        return None


def _flat(nested: list[list[Any]] | None) -> list[Any] | None:
    return None if nested is None else [item for inner in nested for item in inner]


def _energy(raw: Raw, tokens: int) -> dict[str, Any]:
    energy_mj, seconds = raw.get("energy_mj"), sum(raw["latency_ns"]) / 1e9
    problem = None
    if energy_mj is None:
        problem = "no GPU here whose energy NVML tells"
    elif seconds < LEAST_ENERGY_S:
        problem = f"timed iterations took {seconds:.2f} s, less than the {LEAST_ENERGY_S:g} s NVML's counter needs"
    joules = None if problem else energy_mj / 1e3
    return {
        "energy_joules": joules,
        "joules_per_output_token": None if joules is None else joules / tokens,
        "energy_problem": problem,
    }


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
