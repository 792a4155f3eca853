"""Speed against quality: of the configurations of one work, those that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.judging.compare import BETTER, SAME, WORSE
from harness.precision import EMULATED
from harness.recording.conditions import SPEED
from harness.report import charts
from harness.report.rows import Facts, Row, by, chunks, has_quality, has_speed, noise, setup_words, subject, work_words

NOTHING = (
    "No configuration has both a speed and a perplexity. Random weights have no accuracy, emulated formats no speed; "
    "harness run --workload perf,ppl measures both."
)
SHOWN = 200  # points; the fastest


def chart(facts: Facts) -> charts.Chart:
    rows = {id(row.perf): row for row in facts.configurations if has_speed(row.perf) and has_quality(row.ppl)}
    groups = charts.works(facts, [row.perf for row in rows.values()], split=True)
    found = [_choice(facts, label, [rows[id(record)] for record in group]) for label, group in groups]
    return charts.chart("pareto", found, NOTHING)


def _choice(facts: Facts, label: str, rows: Sequence[Row]) -> charts.Chart:
    fastest = sorted(rows, key=lambda row: row.perf["mean_latency_ms"])[:SHOWN]
    standing = {id(row): stand for row, stand in zip(fastest, _standing(facts, fastest))}
    many = charts.has_configs(row.perf for row in rows)
    values = [_value(facts, row, standing[id(row)], many) for row in fastest]
    notes = [_what(rows)]
    if apart := [value["name"] for value in values if value["standing"] == "alone"]:
        notes.append(f"not comparable with any other here, so neither beaten nor best: {', '.join(apart)}")
    levels = _emulated(facts, rows[0])
    if levels:
        notes.append("lines across: emulated formats, with their accuracy; their speed would mean nothing")
    if len(rows) > SHOWN:
        notes.append(f"the {SHOWN} fastest of {len(rows)} are shown")
    return charts.choice(label, [_view(values, levels)], notes)


def _standing(facts: Facts, rows: Sequence[Row]) -> list[str]:
    """`best`: nothing comparable beats it; `beaten`; `alone`: nothing here is comparable with it."""
    alike = by(rows, _conditions)
    found = [[other for other in alike[_conditions(row)] if other is not row] for row in rows]
    return [_stands(facts, row, others) if others or len(rows) == 1 else "alone" for row, others in zip(rows, found)]


def _conditions(row: Row) -> tuple[str, ...]:
    """What must be equal for `compare` to answer at all: it is asked of thousands of pairs, so of these only."""
    return tuple(str(row.perf["conditions"].get(name)) for name in SPEED if name not in ("weights", "quantize"))


def _stands(facts: Facts, row: Row, others: Sequence[Row]) -> str:
    """What is slower and less accurate cannot beat it; what is better in both is asked first, for the first will do."""
    ahead = [_is_ahead(row, other) for other in others]
    for wanted in (2, 1):
        if any(_beats(facts, row, other) for other, count in zip(others, ahead) if count == wanted):
            return "beaten"
    is_comparable = not others or any(None not in _against(facts, row, other) for other in others)
    return "best" if is_comparable else "alone"


def _is_ahead(row: Row, other: Row) -> int:
    """In how many of both, by the numbers alone."""
    is_faster = other.perf["mean_latency_ms"] < row.perf["mean_latency_ms"]
    return is_faster + (other.ppl["perplexity"] < row.ppl["perplexity"])


def _beats(facts: Facts, row: Row, other: Row) -> bool:
    """Better in one beyond the noise, and in the other at least no different."""
    found = _against(facts, row, other)
    return BETTER in found and set(found) <= {BETTER, SAME}


def _against(facts: Facts, row: Row, other: Row) -> tuple[str | None, str | None]:
    """What the other is against this one, in quality and in speed; None where the two are not comparable."""
    quality = None if row.ppl is other.ppl else facts.compare(row.ppl, other.ppl).metrics.get("perplexity")
    said = SAME if row.ppl is other.ppl else quality and quality.verdict
    if said not in (BETTER, SAME, WORSE):
        return said, None
    speed = facts.compare(row.perf, other.perf).metrics.get("latency_ms")
    return said, speed and speed.verdict


def _value(facts: Facts, row: Row, standing: str, many: bool) -> dict[str, Any]:
    record, base = row.perf, facts.against_bf16(row.perf, "latency_ms")
    return {
        **charts.point(record, many),
        "speed": record["output_tokens_per_sec"],
        "ppl": row.ppl["perplexity"],
        "standing": standing,
        "said": f"{record['output_tokens_per_sec']:.1f} tok/s, perplexity {row.ppl['perplexity']:.4f}",
        "bf16": f"{1 / base.ratio:.2f} × ({noise(base)})" if base else "–",
        "mode": str(record["compute_mode"]),
    }


def _emulated(facts: Facts, like: Row) -> list[dict[str, Any]]:
    """Accuracies without a speed, of the same model and windows."""
    found = {
        setup_words(row.ppl): row.ppl["perplexity"]
        for row in facts.rows
        if row.ppl
        and row.ppl["compute_mode"] == EMULATED
        and has_quality(row.ppl)
        and subject(row.ppl) == subject(like.ppl)
        if row.ppl.get("dataset") == like.ppl.get("dataset")
    }
    return [{"ppl": ppl, "said": f"{name} {ppl:.4f}"} for name, ppl in found.items()]


def _what(rows: Sequence[Row]) -> str:
    sets = ", ".join(sorted({str(row.ppl.get("dataset")) for row in rows}))
    windows = {chunks(row.ppl) or 0 for row in rows}
    return (
        f"Speed at {work_words(rows[0].perf)}; perplexity on {sets}, n = {'/'.join(map(str, sorted(windows)))} chunks."
    )


def _view(values: Sequence[dict[str, Any]], levels: Sequence[dict[str, Any]]) -> charts.View:
    x = charts.axis("speed", "output tokens/s (faster →)")
    y = charts.axis("ppl", "perplexity (better ↓)", scale={"padding": 12})
    x["scale"]["padding"] = 30
    tips = charts.tooltip(
        name="configuration", said="measured", bf16="against bf16", mode="compute mode", standing="standing"
    )
    best = {"filter": "datum.standing === 'best'"}
    marks = {"x": x, "y": y, "color": charts.colour(values), "shape": charts.shape(values), "tooltip": tips}
    layers = [
        *(_levels(levels, y) if levels else ()),
        {
            "transform": [best],
            "mark": {"type": "line", "strokeDash": [3, 3], "strokeWidth": 1, "color": charts.GREY},
            "encoding": {"x": x, "y": y, "order": {"field": "speed", "type": "quantitative"}},
        },
        {"mark": {"type": "point", "filled": False, "size": 90, "strokeWidth": 2}, "encoding": marks},
        {"transform": [best], "mark": {"type": "point", "filled": True, "size": 90}, "encoding": marks},
        {
            "transform": [best],
            "mark": {"type": "text", "dy": -11, "fontSize": 11},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        },
    ]
    return charts.view("Filled: nothing comparable is both faster and as accurate", 280, values, layers)


def _levels(levels: Sequence[dict[str, Any]], y: dict[str, Any]) -> list[dict[str, Any]]:
    """A line across for each accuracy that has no speed."""
    data = {"data": {"values": list(levels)}}
    rule = {"mark": {"type": "rule", "color": charts.GREY, "strokeDash": [1, 3]}, "encoding": {"y": y}}
    mark = {"type": "text", "align": "left", "x": 4, "dy": -6, "fontSize": 11}
    return [{**data, **rule}, {**data, "mark": mark, "encoding": {"y": y, "text": {"field": "said"}}}]
