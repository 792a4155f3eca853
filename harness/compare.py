"""Whether two records may be compared, and what came of it: one function for `harness compare` and for every table.

A ratio is b / a with its 95 % interval; a difference inside the interval is no difference. The interval covers the
noise inside the two runs, not that between one start of a program and the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from harness import conditions
from harness.metrics import NS_PER_MS, deviation, mean
from harness.precision import EMULATED

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "noise unknown"
CONFIDENCE = 0.95
NOISE = "noise"  # what --assume calls metrics without samples
TOLD = ("model", "engine", "engine_version", "precision", "compute_mode", "moe_backend", "attention_backend", "driver")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number two records are compared by."""

    measures: str  # "speed" or "accuracy"
    lower_is_better: bool
    value: Callable[[Record], float | None]
    samples: Callable[[Record], list[float] | None]  # independent ones: one per iteration, or one per chunk
    is_paired: bool = False  # sample i of both saw the same input
    is_inverse: bool = False  # samples are of one over the value


@dataclass(frozen=True)
class Difference:
    """`b` against `a` in one metric."""

    a: float
    b: float
    ratio: float  # b / a
    interval: tuple[float, float] | None  # of the ratio, 95 %; None without samples
    verdict: str  # BETTER, WORSE, SAME or UNKNOWN


@dataclass(frozen=True)
class Comparison:
    differing: dict[str, tuple[Any, Any]]  # conditions that differ or are unknown, by name: both values
    told: dict[str, tuple[Any, Any]]  # what may differ, and does
    metrics: dict[str, Difference]  # none when not comparable

    @property
    def comparable(self) -> bool:
        return not self.differing


def compare(a: Record, b: Record, assume: Iterable[str] = ()) -> Comparison:
    """`assume`: conditions taken to agree where one side does not know them, or "all"; NOISE takes it to be zero."""
    assume = set(assume)
    common = common_metrics(a, b)
    differing = _refusals(a, b, common) or _disagreements(a, b, common, assume)
    told = {name: pair for name in TOLD if (pair := (_told(a, name), _told(b, name)))[0] != pair[1]}
    metrics = {}
    if not differing:
        is_assumed_quiet = bool(assume & {NOISE, "all"})
        metrics = {name: _difference(METRICS[name], a, b, is_assumed_quiet) for name in common}
    return Comparison(differing, told, metrics)


def common_metrics(a: Record, b: Record) -> list[str]:
    return [name for name, metric in METRICS.items() if _are_measured(a, b, metric.value)]


def regressions(comparison: Comparison, tolerance: float) -> list[str]:
    """Metrics in which b is worse than a beyond the noise and beyond `tolerance` (0.05: five percent)."""
    return [
        name
        for name, found in comparison.metrics.items()
        if found.verdict == WORSE and abs(found.ratio - 1) > tolerance
    ]


def _refusals(a: Record, b: Record, common: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What no assumption can mend."""
    for name, is_right in (("status", lambda value: value == "ok"), ("workload", lambda value: a["workload"] == value)):
        if not (is_right(a[name]) and is_right(b[name])):
            return {name: (a[name], b[name])}
    if not common:
        return {"metrics": ("none in common", "none in common")}
    measured = {METRICS[name].measures for name in common}
    if "speed" in measured and EMULATED in (a["compute_mode"], b["compute_mode"]):
        return {"compute_mode": (a["compute_mode"], b["compute_mode"])}
    if "accuracy" in measured and "dummy" in (a["weights"], b["weights"]):
        return {"weights": (a["weights"], b["weights"])}
    return {}


def _disagreements(a: Record, b: Record, common: Sequence[str], assume: set[str]) -> dict[str, tuple[Any, Any]]:
    names = conditions.SPEED if any(METRICS[name].measures == "speed" for name in common) else conditions.ACCURACY
    if a["engine"] == b["engine"]:
        names = (*names, *conditions.SAME_ENGINE) if names is conditions.SPEED else names
    found = conditions.disagreements(a["conditions"], b["conditions"], names)
    return {name: pair for name, pair in found.items() if not (None in pair and assume & {name, "all"})}


def _told(record: Record, name: str) -> Any:
    if name == "driver":
        return ((record.get("environment") or {}).get("device") or {}).get("driver")
    return record.get(name, (record.get("effective") or {}).get(name))


def _are_measured(a: Record, b: Record, value: Callable[[Record], float | None]) -> bool:
    """Zero is no measurement: the ITL of tokens that came in one piece, for one."""
    return all(number is not None and number > 0 for number in (value(a), value(b)))


def _difference(metric: Metric, a: Record, b: Record, is_assumed_quiet: bool) -> Difference:
    value_a, value_b = metric.value(a), metric.value(b)
    ratio = value_b / value_a
    interval = ratio_interval(metric.samples(a), metric.samples(b), metric.is_paired)
    if interval is not None and metric.is_inverse:
        interval = (1 / interval[1], 1 / interval[0])
    if interval is None and is_assumed_quiet:
        interval = (ratio, ratio)
    if interval is None:
        verdict = UNKNOWN
    elif interval[0] <= 1 <= interval[1]:
        verdict = SAME
    else:
        verdict = BETTER if (ratio < 1) == metric.lower_is_better else WORSE
    return Difference(value_a, value_b, ratio, interval, verdict)


def ratio_interval(
    a: Sequence[float] | None, b: Sequence[float] | None, is_paired: bool = False
) -> tuple[float, float] | None:
    """95 % interval of mean(b) / mean(a), by the delta method on its logarithm with Student's t; Welch's degrees of
    freedom, or those of the pairs, whose values are then logarithms already. None for fewer than two samples a side.

    Source: Welch, Biometrika 34 (1947); delta method: Casella and Berger, Statistical Inference, 5.5.4.
    """
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    if is_paired:
        if len(a) != len(b):
            return None
        gaps = [y - x for x, y in zip(a, b)]
        middle, error, freedom = mean(gaps), deviation(gaps) / math.sqrt(len(gaps)), len(gaps) - 1
    else:
        parts = [(deviation(side) / mean(side)) ** 2 / len(side) for side in (a, b)]
        middle, error = math.log(mean(b) / mean(a)), math.sqrt(sum(parts))
        squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b)))
        freedom = sum(parts) ** 2 / squares if squares else math.inf
    reach = _student(freedom) * error
    return math.exp(middle - reach), math.exp(middle + reach)


def _student(freedom: float) -> float:
    """Two-sided 95 % point of Student's t. Source: Abramowitz and Stegun 26.7.5, within 0.5 % from 3 degrees on; for
    one and two the closed forms."""
    p = (1 + CONFIDENCE) / 2
    if freedom < 2:
        return math.tan(math.pi * (p - 0.5))  # one degree; between one and two this is the careful side
    if freedom < 3:
        return (2 * p - 1) * math.sqrt(2 / (1 - (2 * p - 1) ** 2))
    x = NormalDist().inv_cdf(p)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return x + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def _value(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.get(name)


def _mean_of(name: str) -> Callable[[Record], float | None]:
    return lambda record: (record.get(name) or {}).get("mean")


def _latencies(record: Record) -> list[float] | None:
    values = (record.get("raw") or {}).get("latency_ns")
    return [value / NS_PER_MS for value in values] if values else None


def _per_iteration(of: Callable[[Sequence[int]], float]) -> Callable[[Record], list[float] | None]:
    """Mean over an iteration's requests: requests of one batch share its luck and are no independent samples."""

    def samples(record: Record) -> list[float] | None:
        iterations = (record.get("raw") or {}).get("token_ns")
        try:
            return [_weighted(iteration, of) for iteration in iterations] if iterations else None
        except (TypeError, ZeroDivisionError):  # a time that was not measured, or one token only
            return None

    return samples


def _weighted(iteration: Sequence[Mapping[str, Any]], of: Callable[[Sequence[int]], float]) -> float:
    requests = sum(len(timeline["requests"]) for timeline in iteration)
    return sum(of(timeline["ns"]) * len(timeline["requests"]) for timeline in iteration) / requests / NS_PER_MS


def _chunk_nlls(record: Record) -> list[float] | None:
    perplexities = record.get("per_chunk_ppls")
    return [math.log(value) for value in perplexities] if perplexities else None


_gap = _per_iteration(lambda ns: (ns[-1] - ns[0]) / (len(ns) - 1))

METRICS = {
    "latency_ms": Metric("speed", True, _mean_of("latency_ms"), _latencies),
    "ttft_ms": Metric("speed", True, _mean_of("ttft_ms"), _per_iteration(lambda ns: ns[0])),
    "itl_ms": Metric("speed", True, _mean_of("itl_ms"), _gap),
    "tpot_ms": Metric("speed", True, _mean_of("tpot_ms"), _gap),
    "output_tokens_per_sec": Metric("speed", False, _value("output_tokens_per_sec"), _latencies, is_inverse=True),
    "perplexity": Metric("accuracy", True, _value("perplexity"), _chunk_nlls, is_paired=True),
}
