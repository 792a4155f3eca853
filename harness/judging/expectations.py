"""What a device is expected to measure, kept in one JSON file under version control, and how records stand to it.

An expectation is a metric of a cell on a device, with its samples, its tolerance and the conditions it holds under. It
judges only records made under the same conditions; what it cannot judge is unknown, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cells import Setup
from harness.judging.compare import METRICS, Metric, ratio_interval
from harness.precision import NATIVE, WEIGHT_ONLY
from harness.recording import conditions
from harness.recording.metrics import mean
from harness.recording.records import Record
from harness.recording.stats import log_medians

IMPROVED, REGRESSED, UNCHANGED, UNKNOWN = "improved", "regressed", "unchanged", "unknown"
STATUSES = (REGRESSED, IMPROVED, UNKNOWN, UNCHANGED)
DEFAULT_METRICS = ("latency_ms", "ttft_ms", "itl_ms", "perplexity")
TOLERANCE = {"speed": 0.05, "accuracy": 0.005}  # shares, where none is given
CELL = ("engine", "model", "weights", "precision", "workload", "config")
DEFAULTS = {one.name: one.default for one in fields(Setup)}
# Of what was requested: it is named in CELL, differs between machines, or is no part of the question.
NO_PARAMETER = frozenset(
    "engine model weights precision tp ep moe_backend path checkpoint trust_remote_code skip_compile compute_mode "
    "num_iterations warmup_iterations".split()
)


@dataclass(frozen=True)
class Expectation:
    device: str  # e.g. `sm90 NVIDIA H200 x1`
    cell: dict[str, Any]  # CELL, and `parameters`
    metric: str
    value: float
    tolerance: float  # a share of the value
    samples: tuple[float, ...]  # see harness.judging.compare.Metric
    conditions: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def place(self) -> tuple[str, str, str]:
        """What it is an expectation of."""
        return self.device, _as_key(self.cell), self.metric

    @property
    def label(self) -> str:
        return f"{about(self.cell)}: {self.metric}"

    @property
    def noise(self) -> float | None:
        """How far another run as noisy as this one may lie from it, as a share; None where samples are compared pair by
        pair, so that one run alone does not tell."""
        return None if METRICS[self.metric].is_paired else _half_width(ratio_interval(self.samples, self.samples))


@dataclass(frozen=True)
class Finding:
    """How a record stands to an expectation. `ratio`: value / expected, None where they are not compared."""

    expectation: Expectation
    status: str
    reason: str | None = None  # of an unknown one
    value: float | None = None
    ratio: float | None = None
    noise: float | None = None  # half the interval of the ratio, as a share
    is_elsewhere: bool = False  # an expectation of a device that no record is of

    def to_json(self) -> dict[str, Any]:
        e = self.expectation
        found = {"status": self.status, "reason": self.reason, "device": e.device, "cell": e.cell, "metric": e.metric}
        numbers = {"expected": e.value, "value": self.value, "ratio": self.ratio, "noise": self.noise}
        return {**found, **numbers, "tolerance": e.tolerance, "provenance": e.provenance}


def device_of(record: Record) -> str:
    """The hardware that a record's numbers are of: `sm90 NVIDIA H200 x1`, `cpu AMD EPYC 7763 64-Core Processor x4`."""
    device = record["environment"].get("device") or {}
    label = f"sm{device['sm']}" if device.get("sm") else device.get("kind") or "unknown"
    asked = max(record["requested"].get("tp", 1), record["requested"].get("ep", 1))
    count = record["conditions"].get("device_count") or (asked if device.get("sm") else device.get("count"))
    return f"{label} {device.get('name') or 'unknown'} x{count or '?'}"


def cell_of(record: Record) -> dict[str, Any]:
    """What was asked, without what another version or machine would change: not the record's key, which has both. What
    a setup has by default is left out, so that an option that a later version adds makes no other cell."""
    parameters = {
        name: value
        for name, value in record["requested"].items()
        if name not in NO_PARAMETER and not (name in DEFAULTS and value == DEFAULTS[name])
    }
    dataset = str(parameters.get("dataset", ""))
    if dataset.startswith("file:"):
        parameters["dataset"] = f"file:{Path(dataset.removeprefix('file:')).name}"
    return {**{name: record[name] for name in CELL}, "parameters": parameters}


def about(cell: Mapping[str, Any]) -> str:
    """A cell in a few words."""
    parameters = cell["parameters"]
    words = [str(cell[name]) for name in ("engine", "model", "precision", "workload")]
    words += [f"{cell['weights']} weights"] if cell["weights"] != "real" else []
    words += [str(cell["config"])] if cell["config"] != "TP1_EP1_auto" else []
    words += ["all linear layers"] if parameters.get("quantize") == "linear" else []
    if parameters.get("output_len"):
        words.append(f"batch {parameters.get('batch_size')}, {parameters.get('input_len')}+{parameters['output_len']}")
    elif parameters.get("dataset"):
        words.append(f"{parameters['dataset']}, {parameters.get('input_len')} tokens")
    return " ".join(words)


def latest(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """The last try of every cell on every device, by both: a failure counts, though the success before it is kept
    beside it."""
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        place = device_of(record), _as_key(cell_of(record))
        if place not in found or str(record.get("written_at")) > str(found[place].get("written_at")):
            found[place] = record
    return found


def expected_of(
    records: Iterable[Record], metrics: Sequence[str], tolerances: Mapping[str, float], commit: str | None
) -> tuple[list[Expectation], list[str]]:
    """An expectation of every metric that a record measured, and lines on records without any. `tolerances`: shares by
    metric; TOLERANCE where it has none. `commit`: of the repository that the expectations are kept in."""
    found: list[Expectation] = []
    left_out: dict[str, list[str]] = {}
    for record in latest(records).values():
        problems = {name: problem(record, name) for name in metrics}
        found += [_expectation(record, name, tolerances, commit) for name in metrics if problems[name] is None]
        if None not in problems.values():
            why = "; ".join(dict.fromkeys(filter(None, problems.values())))
            left_out.setdefault(why, []).append(about(cell_of(record)))
    return found, [f"{', '.join(cells)}: {why}" for why, cells in left_out.items()]


def problem(record: Record, name: str) -> str | None:
    """Why a metric of a record can be neither an expectation nor held to one."""
    metric = METRICS[name]
    if record["status"] != "ok":
        why = record.get("reason") or "{class}: {message}".format(
            **(record.get("failure") or {"class": "", "message": ""})
        )
        return f"status is {record['status']}: {why}"
    if metric.measures == "speed" and record["compute_mode"] not in (NATIVE, WEIGHT_ONLY):
        return f"no speed: {record['compute_mode']}"
    if metric.measures == "accuracy" and record["weights"] == "dummy":
        return "dummy weights have no accuracy"
    if not metric.value(record):
        return f"no {name}"
    if unknown := [one for one in _conditions(metric) if record["conditions"].get(one) is None]:
        return f"conditions not known: {', '.join(unknown)}"
    return None if len(_measured(metric, record)[1]) > 1 else f"{name} has fewer than two samples"


def merged(old: Sequence[Expectation], new: Sequence[Expectation], keep_tolerance: Iterable[str]) -> list[Expectation]:
    """The old ones with the new in their place. `keep_tolerance`: metrics whose tolerance stays as it is in the file."""
    keep, found = set(keep_tolerance), {e.place: e for e in old}
    for e in new:
        before = found.get(e.place)
        found[e.place] = replace(e, tolerance=before.tolerance) if before and e.metric in keep else e
    return list(found.values())


def changes(old: Sequence[Expectation], new: Sequence[Expectation]) -> list[str]:
    """What became of the old ones, a line each."""
    before = {e.place: e for e in old}
    lines = []
    for e in new:
        was = before.pop(e.place, None)
        if was is None:
            lines.append(f"new      {e.label} {e.value:.4f}, {_band(e)}")
        elif was != e:
            share = e.value / was.value - 1
            worse = "" if not share else ", worse" if (share > 0) == METRICS[e.metric].lower_is_better else ", better"
            other = "" if e.conditions == was.conditions else ", other conditions"
            lines.append(
                f"changed  {e.label} {was.value:.4f} -> {e.value:.4f} ({share:+.2%}{worse}{other}), {_band(e)}"
            )
    return lines


def check(expectations: Sequence[Expectation], records: Iterable[Record]) -> tuple[list[Finding], list[str]]:
    """A finding for every expectation, the worst first; and the measured cells without any expectation, in words."""
    by_place = latest(records)
    here = {device.rpartition(" x")[0] for device, _ in by_place}
    expected = {e.place[:2] for e in expectations}
    others = [
        about(cell_of(record))
        for place, record in by_place.items()
        if place not in expected and any(problem(record, name) is None for name in DEFAULT_METRICS)
    ]
    found = []
    for e in expectations:
        record = by_place.get(e.place[:2])
        if record is not None:
            found.append(_judged(e, record))
        elif e.device.rpartition(" x")[0] in here:
            found.append(Finding(e, UNKNOWN, "no such record"))
        else:
            found.append(
                Finding(e, UNKNOWN, f"other device: {', '.join(sorted(here)) or 'no record'}", is_elsewhere=True)
            )
    return sorted(found, key=lambda one: STATUSES.index(one.status)), others


def _expectation(record: Record, name: str, tolerances: Mapping[str, float], commit: str | None) -> Expectation:
    metric = METRICS[name]
    value, samples = _measured(metric, record)
    provenance = {
        "engine_version": record["engine_version"],
        "compute_mode": record["compute_mode"],
        "harness_version": record["environment"].get("harness_version"),
        "git_commit": commit,
        "measured_at": record.get("written_at"),
        "n": len(samples),
        "conditions": hashlib.sha256(_as_key(record["conditions"]).encode()).hexdigest()[:16],
    }
    tolerance = tolerances.get(name, TOLERANCE[metric.measures])
    held = record["conditions"]
    return Expectation(device_of(record), cell_of(record), name, value, tolerance, samples, held, provenance)


def _judged(e: Expectation, record: Record) -> Finding:
    metric = METRICS[e.metric]
    if why := problem(record, e.metric):
        return Finding(e, UNKNOWN, why)
    if differing := conditions.disagreements(e.conditions, record["conditions"], _conditions(metric)):
        what = ", ".join(f"{name} {_shown(a)} -> {_shown(b)}" for name, (a, b) in differing.items())
        return Finding(e, UNKNOWN, f"not comparable: {what}")
    value, samples = _measured(metric, record)
    ratio = value / e.value
    noise = _half_width(ratio_interval(e.samples, samples, metric.is_paired))
    if noise is None:
        return Finding(e, UNKNOWN, "other number of samples", value, ratio)
    if abs(ratio - 1) > e.tolerance and abs(math.log(ratio)) > math.log1p(noise):
        return Finding(e, IMPROVED if (ratio < 1) == metric.lower_is_better else REGRESSED, None, value, ratio, noise)
    if noise > e.tolerance:
        return Finding(
            e, UNKNOWN, f"noise of {noise:.1%} is larger than the tolerance of {e.tolerance:.1%}", value, ratio, noise
        )
    return Finding(e, UNCHANGED, None, value, ratio, noise)


def _measured(metric: Metric, record: Record) -> tuple[float, tuple[float, ...]]:
    """A value and its independent samples: the medians of rounds, where the engine was started often enough, else what
    `harness compare` takes of iterations or chunks."""
    value, samples = metric.value(record), metric.samples(record) or []
    logs = log_medians(record, samples) if metric.measures == "speed" else None
    if logs is None:
        return value, tuple(samples)
    middle = math.exp(mean(logs))
    return value * mean(samples) / middle if metric.is_inverse else middle, tuple(map(math.exp, logs))


def _conditions(metric: Metric) -> tuple[str, ...]:
    return conditions.CONDITIONS if metric.measures == "speed" else conditions.ACCURACY


def _half_width(interval: tuple[float, float] | None) -> float | None:
    """Of an interval of a ratio, as a share: both ends lie this factor from its middle."""
    return None if interval is None else math.sqrt(interval[1] / interval[0]) - 1


def _as_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _band(e: Expectation) -> str:
    noisy = f"; noise of {e.noise:.1%} hides smaller changes" if (e.noise or 0) > e.tolerance else ""
    return f"tolerance {e.tolerance:.1%}, n {len(e.samples)}{noisy}"


def _shown(value: Any) -> str:
    words = "unknown" if value is None else str(value)
    return words if len(words) <= 40 else f"{words[:16]}..."
