"""What repeats say of a cell: rounds made one record, intervals that know which noise they cover, drift, outliers.

A round is one start of a worker. Iterations of one round share its luck (memory layout, clocks, neighbours), so from
three rounds on a round is one sample: its median.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from statistics import NormalDist, median
from typing import Any

from harness.recording.metrics import deviation, iteration_samples, mean, speed

CONFIDENCE = 0.99  # of every interval; see docs/measuring.md for why not less
PERCENT = f"{CONFIDENCE:.0%}".replace("%", " %")
LEAST_ROUNDS = 3
LEAST_ITERATIONS = 8  # for a drift; and the median of fewer has no interval of 99 %
LEAST_DRIFT = 0.01  # of the median over a round: less is no drift worth a word, however sure
OUTLIER = 3.5
SLOW = 2  # times the median of the round: a mean over few iterations is no longer that of any of them
DRIFT_POINTS = 256  # slopes between all pairs: a longer round is first cut into as many pieces
METRICS = ("latency_ms", "ttft_ms", "itl_ms", "tpot_ms")
# What each start has of its own, and what is computed anew from the times of all rounds.
OF_A_ROUND = {"raw", "rounds", "statistics", "noise", "written_at", "load_seconds", "roofline", "profile", "kv_blocks"}

Record = Mapping[str, Any]


def merged(records: Sequence[Record]) -> dict[str, Any]:
    """One record of the rounds of one cell: all times, the rounds they came in, and the metrics computed from them. The
    rest is the first record's, `written_at` the last one's; a roofline or a profile of one round is left out.

    Raises ValueError when a record holds no times, or when anything else changed from one round to another."""
    if not records:
        raise ValueError("no rounds to merge")
    for index, record in enumerate(records):
        if not _raw(record):
            raise ValueError(f"round {index + 1} has no times (status {record['status']})")
        if changed := list(_changes(records[0], record, _recomputed(record))):
            raise ValueError(f"round {index + 1} is not as the first: {', '.join(changed)}")
    base, raws = records[0], [record["raw"] for record in records]
    energies = [raw.get("energy_mj") for raw in raws]
    raw = {
        "latency_ns": [ns for raw in raws for ns in raw["latency_ns"]],
        "token_ns": [batch for raw in raws for batch in raw["token_ns"]],
        "energy_mj": None if None in energies else sum(energies),
    }
    return {
        **{name: value for name, value in base.items() if name not in OF_A_ROUND or name == "load_seconds"},
        "written_at": records[-1]["written_at"],
        **speed(raw, base["batch_size"], base["input_len"], base["output_len"]),
        "raw": raw,
        "rounds": [one for record in records for one in rounds_of(record)],
    }


def rounds_of(record: Record) -> list[dict[str, Any]]:
    """The rounds a record's times came in, in order; those of a record that names none are one round."""
    if record.get("rounds"):
        return list(record["rounds"])
    whole = {"iterations": len(_raw(record).get("latency_ns", ()))}
    return [{**whole, **dict.fromkeys(("started_at", "sweep", "round", "telemetry"))}]


def statistics(record: Record) -> dict[str, Any]:
    """Of each speed metric the median, its interval and how wide that is against it; whether the latency drifted within
    its rounds; and the iterations that lie far out, which stay in. Empty where nothing was timed."""
    if not _raw(record):
        return {}
    latencies = _by_round(record, iteration_samples(record["raw"], "latency_ms"))
    return {
        **{name: estimate(record, name) for name in METRICS},
        **_steadiness(latencies),
        "outliers": _outliers(latencies),
    }


def is_narrow(record: Record, ci_width: float, metric: str = "latency_ms") -> bool:
    """Whether the interval of the median is at most `ci_width` of it (0.02: two percent from end to end), over three
    rounds or more: the rule that stops a sweep's repeats."""
    found = estimate(record, metric)
    return found is not None and found["unit"] == "round" and found["width"] <= ci_width


def problems(found: Mapping[str, Any]) -> list[str]:
    """What `statistics` says that a reader should know before he trusts the record."""
    said = []
    if found.get("steady") is False:
        drifts = [one["percent"] for one in found["drift"]]
        said.append(
            f"latency drifts within a round, by up to {max(drifts, key=abs):+.1f} %: not in its steady state; "
            "try more --warmup-iterations, or a quieter machine"
        )
    slowest = found.get("outliers", {}).get("slowest")
    if slowest and slowest["ratio"] > SLOW:
        said.append(
            f"iteration {slowest['index'] + 1} took {slowest['ratio']:.1f} times as long as the median of its round, as one "
            "does that compiles: means hold it, medians do not; try more --warmup-iterations"
        )
    return said


def estimate(record: Record, metric: str) -> dict[str, Any] | None:
    """The median of a speed metric, in ms, and its interval. From three rounds on over their medians, else over all
    iterations: then it covers only the noise inside a start. None where the metric was not measured."""
    samples = iteration_samples(record["raw"], metric)
    if samples is None:
        return None
    count = len(rounds_of(record))
    logs = log_medians(record, samples)
    if logs:
        reach = student(len(logs) - 1) * deviation(logs) / math.sqrt(len(logs))
        middle, interval = math.exp(mean(logs)), (math.exp(mean(logs) - reach), math.exp(mean(logs) + reach))
        method = f"geometric mean of {count} rounds' medians; {PERCENT} interval by Student's t on their logarithms"
    else:
        middle, interval = median(samples), median_interval(samples)
        method = f"median of {len(samples)} iterations; " + (
            f"{PERCENT} interval by order statistics, which covers only the noise inside a start"
            if interval
            else f"fewer than {LEAST_ITERATIONS} have no {PERCENT} interval"
        )
    return {
        "median": middle,
        "interval": list(interval) if interval else None,
        "unit": "round" if logs else "iteration",
        "width": (interval[1] - interval[0]) / middle if interval and middle > 0 else None,
        "rounds": count,
        "iterations": len(samples),
        "method": method,
    }


def log_medians(record: Record, samples: Sequence[float] | None) -> list[float] | None:
    """The logarithm of each round's median of `samples`, one per iteration. None for fewer than three rounds, and where
    a median is no positive number."""
    rounds = _by_round(record, samples) if samples else []
    medians = [median(one) for one in rounds if one]
    if len(medians) < max(LEAST_ROUNDS, len(rounds)) or min(medians) <= 0:
        return None
    return [math.log(value) for value in medians]


def common_rounds(a: Record, b: Record) -> list[tuple[int, int]]:
    """Where in both records the rounds are that were measured side by side: those of one number in one sweep. One of
    two cells may have got more rounds; what it got alone says nothing of the other."""
    ours, theirs = (
        {(one["sweep"], one["round"]): place for place, one in enumerate(rounds_of(record))} for record in (a, b)
    )
    return [(place, theirs[name]) for name, place in ours.items() if name in theirs and None not in name]


def interval_of_gap(a: Sequence[float], b: Sequence[float], is_paired: bool) -> tuple[float, float]:
    """Interval of mean(b) - mean(a), by Student's t; over the differences if paired, else with Welch's degrees of
    freedom. At least two values a side, as many of both if paired. Source: Welch, Biometrika 34 (1947)."""
    if is_paired:
        gaps = [y - x for x, y in zip(a, b, strict=True)]
        middle, error, freedom = mean(gaps), deviation(gaps) / math.sqrt(len(gaps)), len(gaps) - 1
    else:
        middle = mean(b) - mean(a)
        error, freedom = welch([deviation(side) ** 2 / len(side) for side in (a, b)], [len(side) for side in (a, b)])
    reach = student(freedom) * error
    return middle - reach, middle + reach


def welch(variances: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a difference of two means, from the variance of each mean."""
    squares = sum(variance**2 / (count - 1) for variance, count in zip(variances, counts))
    return math.sqrt(sum(variances)), sum(variances) ** 2 / squares if squares else math.inf


def student(freedom: float) -> float:
    """The point that Student's t keeps within on both sides in CONFIDENCE of all cases. Between two whole degrees of
    freedom linear in their inverse, within 4 % on the careful side. Above 200: Abramowitz and Stegun 26.7.5."""
    if freedom > 200:
        x = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        return x + (x**3 + x) / 4 / freedom
    below = max(1, math.floor(freedom))
    share = (1 / below - 1 / max(freedom, 1)) * below * (below + 1)  # of the way to the next
    return _student(below) + share * (_student(below + 1) - _student(below))


@cache
def _student(freedom: int) -> float:
    """The angle, by halving, whose finite series is CONFIDENCE. Source: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    is_odd = freedom % 2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        total, coefficient = 0.0, 1.0
        for power in range(is_odd, freedom - 1, 2):
            coefficient *= (power - 1) / power if power > 1 else 1
            total += coefficient * math.cos(angle) ** power
        inside = math.sin(angle) * total
        inside = 2 / math.pi * (angle + inside) if is_odd else inside
        low, high = (angle, high) if inside < CONFIDENCE else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Between two order statistics, whatever the samples' distribution; None where even the least and the largest of
    so few are not sure enough. Source: Hahn and Meeker, Statistical Intervals, 5.2 (sign test inverted)."""
    ordered, rank = sorted(samples), _rank(len(samples))
    return (ordered[rank - 1], ordered[-rank]) if rank else None


@cache
def _rank(n: int) -> int:
    """The highest rank k so that k-th least and k-th largest of n hold the median in CONFIDENCE of all cases; or 0."""
    if n > 1000:  # where the binomial distribution is a normal one
        return math.floor((n - NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n)) / 2)
    outside = accumulate(math.comb(n, below) / 2 ** (n - 1) for below in range(n // 2))
    return sum(tail <= 1 - CONFIDENCE for tail in outside)


def drift(values: Sequence[float]) -> dict[str, float] | None:
    """The robust slope over all of `values`, in percent of their median, and the p-value of there being none. None for
    fewer than eight. Source: Theil 1950 and Sen 1968 for the slope; Kendall, Rank Correlation Methods, for the test."""
    if len(values) < LEAST_ITERATIONS:
        return None
    size = -(-len(values) // DRIFT_POINTS)
    points = [median(values[at : at + size]) for at in range(0, len(values), size)]
    n = len(points)
    rises = [(points[j] - points[i], j - i) for i in range(n) for j in range(i + 1, n)]
    score = sum((rise > 0) - (rise < 0) for rise, _ in rises)
    ties = Counter(points).values()
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    z = max(abs(score) - 1, 0) / math.sqrt(variance) if variance else 0.0
    slope = median(rise / steps for rise, steps in rises)
    return {"percent": 100 * slope * (n - 1) / median(points), "p": math.erfc(z / math.sqrt(2))}


def _steadiness(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    found = [drift(one) for one in rounds]
    known = [one for one in found if one is not None]
    if not known:
        reason = f"no round has {LEAST_ITERATIONS} iterations, too few to see a drift"
        return {"drift": found, "steady": None, "steady_reason": reason}
    limit = (1 - CONFIDENCE) / len(known)  # one chance for all rounds together
    drifting = [one for one in known if one["p"] < limit and abs(one["percent"]) >= 100 * LEAST_DRIFT]
    reason = f"{len(drifting)} of {len(known)} rounds drift by {LEAST_DRIFT:.0%} or more" if drifting else None
    return {"drift": found, "steady": not drifting, "steady_reason": reason}


def _outliers(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Iterations far from the median of their round, by their place in `raw.latency_ns`. Kept in every number."""
    indices, start, slowest = [], 0, {"index": 0, "ratio": 0.0}
    for values in rounds:
        middle = median(values)
        scale = median(abs(value - middle) for value in values) / 0.6745  # a normal distribution's standard deviation
        indices += [start + i for i, value in enumerate(values) if scale and abs(value - middle) > OUTLIER * scale]
        place, most = max(enumerate(values, start), key=lambda one: one[1])
        slowest = max(slowest, {"index": place, "ratio": most / middle}, key=lambda one: one["ratio"])
        start += len(values)
    method = f"more than {OUTLIER} robust standard deviations (MAD / 0.6745) from the round's median; kept"
    return {"count": len(indices), "indices": indices, "slowest": slowest, "method": method}


def _by_round(record: Record, samples: Sequence[float]) -> list[Sequence[float]]:
    """Samples of the iterations of each round. All are one round where the rounds' counts do not add up to them."""
    counts = [one["iterations"] for one in rounds_of(record)]
    ends = list(accumulate(counts))
    if ends[-1] != len(samples) or min(counts) < 1:
        return [samples]
    return [samples[end - count : end] for end, count in zip(ends, counts)]


def _raw(record: Record) -> Mapping[str, Any]:
    raw = record.get("raw")
    return raw if raw and raw.get("latency_ns") and raw.get("token_ns") else {}


def _recomputed(record: Record) -> set[str]:
    measured = speed(record["raw"], record["batch_size"], record["input_len"], record["output_len"])
    return OF_A_ROUND | measured.keys()


def _changes(a: Any, b: Any, apart: set[str], where: str = "") -> Iterator[str]:
    """Where two records differ, as `path: a -> b`; the names in `apart` may."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys([*a, *b]):
            if name not in apart:
                yield from _changes(a.get(name), b.get(name), apart, f"{where}.{name}" if where else name)
    elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
        yield f"{where}: {str(a)[:60]} -> {str(b)[:60]}"
