"""The roofline: products per second against products per byte, under the lines of the GPU's peaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.recording.records import Record
from harness.recording.roofline import Peaks, peaks_of
from harness.report import charts
from harness.report.rows import Facts, by, mark, subject, work_words
from harness.report.tables import intensity

NOTHING = (
    "No cell has a roofline: it needs a GPU of a known type, a config.json, and an engine that says the formats of "
    "its layers."
)
SHOWN = 300  # points
TERA = 1e12


def chart(facts: Facts) -> charts.Chart:
    known = [r for r in facts.records if any(map(intensity, (r.get("roofline") or {}).values()))]
    groups = by(known, subject)
    nothing = _reasons(facts) or NOTHING
    return charts.chart("roofline", (_choice(facts, group) for group in groups.values()), nothing)


def _reasons(facts: Facts) -> str:
    found = {
        str(one["reason"]) for r in facts.records for one in (r.get("roofline") or {}).values() if one.get("reason")
    }
    return f"No cell has a roofline: {'; '.join(sorted(found)[:3])}." if found else ""


def _choice(facts: Facts, group: Sequence[Record]) -> charts.Chart:
    values = [value for record in group for value in _points(record)]
    peaks = peaks_of(group[0].get("gpu_name"))
    notes = [
        f"Peaks of one GPU: {peaks.source}." if peaks else "The peaks of this GPU are not known: points without lines."
    ]
    if any(value["devices"] > 1 for value in values):
        notes.append("rates of several GPUs are divided by their number")
    problems = {one["problem"] for r in group for one in r["roofline"].values() if one.get("problem")}
    notes += [str(problem) for problem in sorted(problems)]
    if len(values) > SHOWN:
        notes.append(f"{SHOWN} of {len(values)} points are shown")
    label = charts.subject_words(group[0])
    return charts.choice(label, [_view(values[:SHOWN], peaks)], notes)


def _points(record: Record) -> Iterator[dict[str, Any]]:
    for phase, found in record["roofline"].items():
        x, rate, share = intensity(found), found.get("flops_per_s"), found.get("share_of_limit")
        if x and rate:
            devices = max((record["requested"].get(name) or 1 for name in ("tp", "ep")), default=1)
            yield {
                **charts.point(record, True),
                "x": x,
                "y": rate / devices / TERA,
                "devices": devices,
                "phase": phase,
                "work": work_words(record),
                "said": f"{rate / TERA:.1f} TFLOP/s at {x:.1f} FLOP/byte",
                "share": "–" if share is None else f"{100 * share:.1f} % of {found.get('bound')}",
                "mark": mark(record),
            }


def _view(values: Sequence[dict[str, Any]], peaks: Peaks | None) -> charts.View:
    x = charts.axis("x", "FLOP per byte of HBM (counted)", log=True)
    y = charts.axis("y", "TFLOP/s per GPU", log=True)
    tips = charts.tooltip(name="configuration", work="work", phase="phase", said="reached", share="of the limit")
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.85},
        "encoding": {"x": x, "y": y, "color": charts.colour(values), "shape": charts.shape(values), "tooltip": tips},
    }
    return charts.view("Under each line as far as its peak allows", 320, values, [*_roofs(values, peaks, x, y), points])


def _roofs(values: Sequence[dict[str, Any]], peaks: Peaks | None, x: Any, y: Any) -> Iterator[dict[str, Any]]:
    """Bytes first, then the products of each format that is named: straight lines where both axes are logarithms."""
    if peaks is None:
        return
    formats = [name for name in ("bf16", "fp8", "nvfp4") if name in peaks.flops_per_s]
    used = {value["precision"].split("_")[0] for value in values} | {"bf16"}
    slope = peaks.hbm_bytes_per_s / TERA  # TFLOP/s for each FLOP per byte
    left = min(value["x"] for value in values) / 2
    tops = [(name, peaks.flops_per_s[name] / TERA) for name in formats if name in used]
    right = (
        max(max(value["x"] for value in values) * 2, 2 * max(top for _, top in tops) / slope) if tops else left * 1e3
    )
    lines = [{"roof": name, "x": at, "y": top} for name, top in tops for at in (top / slope, right)]
    highest = max((top for _, top in tops), default=slope * right)
    lines += [{"roof": "memory", "x": at, "y": slope * at} for at in (left, highest / slope)]
    encoding = {"x": x, "y": y, "detail": {"field": "roof"}}
    yield {
        "data": {"values": lines},
        "mark": {"type": "line", "color": charts.GREY, "strokeWidth": 1},
        "encoding": encoding,
    }
    said = [{"x": right, "y": top, "said": f"{name} {top:.0f} TFLOP/s"} for name, top in tops]
    text = {"mark": {"type": "text", "align": "right", "dy": -6, "fontSize": 11}}
    yield {"data": {"values": said}, **text, "encoding": {"x": x, "y": y, "text": {"field": "said"}}}
    memory = [{"x": left, "y": slope * left, "said": f"HBM {slope:.2f} TB/s"}]
    text = {"mark": {"type": "text", "align": "left", "dx": 8, "dy": -4, "fontSize": 11}}
    yield {"data": {"values": memory}, **text, "encoding": {"x": x, "y": y, "text": {"field": "said"}}}
