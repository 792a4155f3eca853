"""How latency, TTFT and ITL are spread, from the raw times: range, p10 to p90, quartiles and median of each cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from harness.recording.metrics import NS_PER_MS, SAMPLES_FOR_P99
from harness.recording.records import Record
from harness.report import charts
from harness.report.rows import Facts, has_speed

NOTHING = "No cell has raw times."
KINDS = (
    ("latency", "Latency of a batch, ms", "one value per iteration"),
    ("ttft", "Time to first token, ms", "one value per request and iteration"),
    ("itl", "Inter-token latency, ms", "every gap between two tokens of a request"),
)
SHOWN = 40  # cells of one chart; the fastest
POINTS = 30  # up to so many samples are drawn one by one
ROW = 24  # pixels
SAID = ("min", "p10", "p25", "p50", "p75", "p90", "p99", "max")


def chart(facts: Facts) -> charts.Chart:
    timed = [record for record in facts.records if has_speed(record) and (record.get("raw") or {}).get("latency_ns")]
    return charts.chart("distributions", (_choice(*group) for group in charts.works(facts, timed, split=True)), NOTHING)


def samples(record: Record, kind: str) -> list[tuple[int, int]] | None:
    """Nanoseconds, each with how many values it stands for (requests that got every token together share a timeline);
    None where a time was not measured."""
    raw = record["raw"]
    if kind == "latency":
        return [(time, 1) for time in raw["latency_ns"]]
    found: list[tuple[int, int]] = []
    try:
        for timeline in itertools.chain.from_iterable(raw.get("token_ns") or ()):
            ns, weight = timeline["ns"], len(timeline["requests"])
            if weight:
                found += [(ns[0] + 0, weight)] if kind == "ttft" else [(b - a, weight) for a, b in zip(ns, ns[1:])]
    except (TypeError, KeyError):  # arithmetic with None, or a timeline without times
        return None
    return found or None


def quantiles(found: Sequence[tuple[float, int]]) -> dict[str, float | int | None]:
    """min, p10, p25, p50, p75, p90, p99, max and n, as `harness.recording.metrics.percentile` has them, of weighted samples."""
    ordered = sorted(found)
    total = sum(weight for _, weight in ordered)
    wanted = {"p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p99": 99}
    result: dict[str, float | int | None] = {"min": ordered[0][0], "max": ordered[-1][0], "n": total}
    positions = [(name, (total - 1) * percent / 100) for name, percent in wanted.items()]
    index, below = 0, 0  # values before ordered[index]
    for name, position in positions:
        while below + ordered[index][1] <= int(position):
            below += ordered[index][1]
            index += 1
        low = ordered[index][0]
        is_last = int(position) + 1 >= below + ordered[index][1]
        high = ordered[index + 1][0] if is_last and index + 1 < len(ordered) else low
        result[name] = low + (high - low) * (position - int(position))
    if total < SAMPLES_FOR_P99:
        result["p99"] = None
    return result


def _choice(label: str, group: Sequence[Record]) -> charts.Chart:
    fastest = sorted(group, key=lambda record: record["mean_latency_ms"])[:SHOWN]
    many = charts.has_configs(group)
    views, notes = [], []
    for kind, title, what in KINDS:
        found = [(record, samples(record, kind)) for record in fastest]
        values = [_value(record, one, many) for record, one in found if one]
        if values:
            views.append(_view(f"{title} ({what})", values))
        if missing := [charts.point(record, many)["name"] for record, one in found if not one]:
            notes.append(f"{title}: not measured of {', '.join(missing)}: the engine gave no such time")
    if len(group) > SHOWN:
        notes.append(f"the {SHOWN} fastest of {len(group)} cells are shown; the others are in the tables")
    return charts.choice(label, views, notes)


def _value(record: Record, found: Sequence[tuple[int, int]], many: bool) -> dict[str, Any]:
    """Of samples in ns a row in ms."""
    summary = {k: v if v is None or k == "n" else v / NS_PER_MS for k, v in quantiles(found).items()}
    points = [time / NS_PER_MS for time, weight in found for _ in range(weight)] if summary["n"] <= POINTS else []
    about = charts.point(record, many)
    rounded = {name: round(value, 4) for name, value in summary.items() if value is not None}
    said = ", ".join(f"{name} {summary[name]:.4g}" for name in SAID if summary[name] is not None)
    row = f"{about['name']}, n = {summary['n']}"
    return {**about, **rounded, "row": row, "said": said, "points": [round(x, 4) for x in points]}


def _view(title: str, values: Sequence[dict[str, Any]]) -> charts.View:
    y = charts.rows()
    colour = {**charts.colour(values), "legend": None}  # each row says its precision
    tips = charts.tooltip(name="configuration", said="ms", n="n")

    def bar(low: str, high: str, size: float, opacity: float) -> dict[str, Any]:
        encoding = {"x": charts.axis(low, None), "x2": {"field": high}, "y": y, "color": colour, "tooltip": tips}
        return {"mark": {"type": "bar", "size": size, "opacity": opacity}, "encoding": encoding}

    tick = {"type": "tick", "size": 16, "thickness": 3}
    dot = {"type": "point", "size": 14, "filled": True, "opacity": 0.9}
    layers = [
        bar("min", "max", 2, 0.6),
        bar("p10", "p90", 7, 0.45),
        bar("p25", "p75", 13, 0.45),
        {"mark": tick, "encoding": {"x": charts.axis("p50", None), "y": y, "color": colour, "tooltip": tips}},
    ]
    if any(value["points"] for value in values):
        single = {"x": charts.axis("points", None), "y": y, "color": {"value": charts.GREY}}
        layers.append({"transform": [{"flatten": ["points"]}], "mark": dot, "encoding": single})
    return charts.view(title, ROW * len(values), values, layers)
