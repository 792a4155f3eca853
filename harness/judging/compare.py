"""Whether two records may be compared, and what came of it: one function for `harness compare` and for every table.

A ratio is b / a with its interval of 99 %; one that holds 1 is no difference. Where both records have three rounds or
more the rounds are compared, and the interval covers the noise between starts, too; else the iterations are, and it
covers only the noise inside the two starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.precision import EMULATED
from harness.recording import conditions
from harness.recording.metrics import deviation, iteration_samples, mean
from harness.recording.stats import LEAST_ROUNDS, common_rounds, interval_of_gap, log_medians, student, welch

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "noise unknown"
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

    a: float  # with rounds, the geometric mean of their medians
    b: float
    ratio: float  # b / a
    interval: tuple[float, float] | None  # of the ratio; None without samples
    verdict: str  # BETTER, WORSE, SAME or UNKNOWN


@dataclass(frozen=True)
class Comparison:
    differing: dict[str, tuple[Any, Any]]  # conditions that differ or are unknown, by name: both values
    told: dict[str, tuple[Any, Any]]  # what may differ, and does
    metrics: dict[str, Difference]  # none when not comparable
    noise: str = ""  # which noise the intervals of speed cover, in words

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
    is_speed = any(METRICS[name].measures == "speed" for name in metrics)
    return Comparison(differing, told, metrics, _noise(a, b) if is_speed else "")


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
    value_a, value_b, interval = _by_rounds(metric, a, b) or (
        metric.value(a),
        metric.value(b),
        ratio_interval(metric.samples(a), metric.samples(b), metric.is_paired),
    )
    ratio = value_b / value_a
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


def _by_rounds(metric: Metric, a: Record, b: Record) -> tuple[float, float, tuple[float, float]] | None:
    """Both values and the interval of the samples' ratio, where both have rounds enough."""
    if metric.measures != "speed":
        return None
    samples = [metric.samples(record) for record in (a, b)]
    logs = [log_medians(record, one) for record, one in zip((a, b), samples)]
    if None in logs:
        return None
    if pairs := _pairs(a, b):
        logs = [[one[pair[side]] for pair in pairs] for side, one in enumerate(logs)]
    values = [math.exp(mean(one)) for one in logs]
    if metric.is_inverse:  # work done in a time: as the record's own, for the rounds' time instead of the mean
        values = [metric.value(r) * mean(one) / value for r, one, value in zip((a, b), samples, values)]
    low, high = interval_of_gap(*logs, is_paired=bool(pairs))
    return values[0], values[1], (math.exp(low), math.exp(high))


def _noise(a: Record, b: Record) -> str:
    if not _by_rounds(METRICS["latency_ms"], a, b):
        return "that of iterations inside a start, whose means are compared; not that between starts"
    if pairs := _pairs(a, b):
        return f"that of {len(pairs)} rounds, each a start of its own, measured in turn and compared pair by pair"
    rounds = " and ".join(str(len(record["rounds"])) for record in (a, b))
    return f"that of {rounds} rounds, each a start of its own, not paired"


def _pairs(a: Record, b: Record) -> list[tuple[int, int]]:
    """Rounds that both records have of one sweep; none where they are too few."""
    pairs = common_rounds(a, b)
    return pairs if len(pairs) >= LEAST_ROUNDS else []


def ratio_interval(
    a: Sequence[float] | None, b: Sequence[float] | None, is_paired: bool = False
) -> tuple[float, float] | None:
    """Interval of mean(b) / mean(a), by the delta method on its logarithm with Student's t; Welch's degrees of freedom,
    or those of the pairs, whose values are then logarithms already. None for fewer than two samples a side.

    Source: Casella and Berger, Statistical Inference, 5.5.4.
    """
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    if is_paired:
        if len(a) != len(b):
            return None
        low, high = interval_of_gap(a, b, is_paired=True)
        return math.exp(low), math.exp(high)
    variances = [(deviation(side) / mean(side)) ** 2 / len(side) for side in (a, b)]
    error, freedom = welch(variances, [len(a), len(b)])
    middle, reach = math.log(mean(b) / mean(a)), student(freedom) * error
    return math.exp(middle - reach), math.exp(middle + reach)


def _value(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.get(name)


def _mean_of(name: str) -> Callable[[Record], float | None]:
    return lambda record: (record.get(name) or {}).get("mean")


def _iterations(name: str) -> Callable[[Record], list[float] | None]:
    def samples(record: Record) -> list[float] | None:
        raw = record.get("raw") or {}
        return iteration_samples(raw, name) if raw.get("latency_ns") else None

    return samples


def _chunk_nlls(record: Record) -> list[float] | None:
    perplexities = record.get("per_chunk_ppls")
    return [math.log(value) for value in perplexities] if perplexities else None


_latencies = _iterations("latency_ms")

METRICS = {
    "latency_ms": Metric("speed", True, _mean_of("latency_ms"), _latencies),
    "ttft_ms": Metric("speed", True, _mean_of("ttft_ms"), _iterations("ttft_ms")),
    "itl_ms": Metric("speed", True, _mean_of("itl_ms"), _iterations("itl_ms")),
    "tpot_ms": Metric("speed", True, _mean_of("tpot_ms"), _iterations("tpot_ms")),
    "output_tokens_per_sec": Metric("speed", False, _value("output_tokens_per_sec"), _latencies, is_inverse=True),
    "perplexity": Metric("accuracy", True, _value("perplexity"), _chunk_nlls, is_paired=True),
}
