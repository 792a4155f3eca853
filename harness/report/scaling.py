"""Speed over tensor parallel ranks: a line per engine and precision, and beside it the line of perfect scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.ladder.rows import middle
from harness.recording.records import Record
from harness.report import charts
from harness.report.read import Entry
from harness.report.rows import Facts, by, has_speed, work

NOTHING = "No work was measured at two numbers of ranks or more; --tp 1,2,4 measures it."
SHOWN = ("name", "tp", "said", "efficiency", "communication")
SCALED = frozenset(("tp", "ep", "device_count"))  # may differ between points of one line, and nothing else


def chart(facts: Facts) -> charts.Chart:
    fast = [r for r in facts.records if r["status"] == "ok" and has_speed(r) and r["requested"].get("tp") and _rate(r)]
    found = []
    for label, group in charts.works(facts, fast):
        series = list(_series(facts, group))
        if series:
            found.append(_choice(label, [line for line, _ in series], sum(left for _, left in series)))
    return charts.chart("scaling", found, NOTHING)


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The same of these records in words, for a terminal."""
    choices = chart(Facts([Entry(record, "", "", None) for record in records])).get("choices", ())
    return [
        {"at": choice["label"], **{name: str(value[name]) for name in SHOWN}}
        for choice in choices
        for view in choice["views"]
        for value in view["values"]
    ]


def _series(facts: Facts, group: Sequence[Record]) -> Iterator[tuple[list[Record], int]]:
    """Records from few ranks to many that are comparable but for their ranks, and how many are not."""
    asked = ("moe_backend", "rungs")
    lines = by(group, lambda r: (r["engine"], r["precision"], *map(r["requested"].get, asked), _share(r), work(r)))
    for line in lines.values():
        first, *others = sorted(line, key=lambda record: record["requested"]["tp"])
        alike = [other for other in others if set(facts.compare(first, other).differing) <= SCALED]
        alike = [other for other in alike if other["requested"]["tp"] != first["requested"]["tp"]]
        if alike:
            yield [first, *alike], len(others) - len(alike)


def _share(record: Record) -> bool:
    """Whether experts are spread over the ranks, too."""
    return (record["requested"].get("ep") or 1) > 1


def _choice(label: str, lines: Sequence[Sequence[Record]], left: int) -> charts.Chart:
    names = [_name(line[0], lines) for line in lines]
    values = [value for line, name in zip(lines, names) for value in _values(line, name)]
    notes = [f"{left} cells are on no line: they differ in more than their ranks"] if left else []
    return charts.choice(label, [_view(values)], notes)


def _name(first: Record, lines: Sequence[Sequence[Record]]) -> str:
    """Engine and precision, and where several lines have those, what tells this one."""
    name = charts.point(first, False)["name"]
    if sum(charts.point(other[0], False)["name"] == name for other in lines) == 1:
        return name
    asked = [first["requested"].get(what) for what in ("moe_backend", "rungs")]
    told = [value for value in asked if value not in (None, "auto", "default")]
    return " ".join([name, *told, *(["experts spread"] if _share(first) else [])])


def _values(line: Sequence[Record], name: str) -> Iterator[dict[str, Any]]:
    first = line[0]
    start, rate = first["requested"]["tp"], _rate(first)
    for record in line:
        tp, speed = record["requested"]["tp"], _rate(record)
        yield {
            **charts.point(record, False),
            "name": name,
            "end": name if record is line[-1] else "",
            "tp": tp,
            "speed": speed,
            "ideal": rate * tp / start,
            "said": f"{speed:.1f} tok/s",
            "efficiency": f"{100 * speed * start / (rate * tp):.0f} % of perfect scaling",
            "communication": _communication(record),
        }


def _rate(record: Record) -> float | None:
    """Output tokens/s of the median iteration: among few, one that compiles makes any mean, and two ranks beat twice one."""
    latency_ms, batch_size, output_len = (
        middle(record, "latency_ms"),
        record.get("batch_size"),
        record.get("output_len"),
    )
    return batch_size * output_len * 1000 / latency_ms if latency_ms and batch_size and output_len else None


def _communication(record: Record) -> str:
    """Its share of a decode step, from the ledger of the record's profile."""
    found = ((record.get("profile") or {}).get("phases") or {}).get("decode")
    if not found:
        return "not profiled"
    share = (found.get("categories") or {}).get("comm")
    name = "percent_of_window" if found.get("idle_ms") is not None else "percent"
    return f"{share[name] if share else 0:.1f} % of a decode step"


def _view(values: Sequence[dict[str, Any]]) -> charts.View:
    ticks = sorted({value["tp"] for value in values})
    x = charts.axis("tp", "tensor parallel ranks (tp)", log=True, axis={"values": ticks, "format": "d", "grid": False})
    x["scale"] |= {"base": 2, "padding": 16}
    y = charts.axis("speed", "output tokens/s, of the median iteration", log=True)
    tips = charts.tooltip(
        name="configuration", tp="tp", said="output", efficiency="efficiency", communication="communication"
    )
    colour, detail, shape = charts.colour(values), [{"field": "name"}], charts.shape(values)
    text = {"type": "text", "align": "right", "dx": -8, "dy": -9, "fontSize": 11}
    ideal = {"x": x, "y": {**y, "field": "ideal"}, "color": colour, "detail": detail}
    layers = [
        {"mark": {"type": "line", "strokeDash": [2, 4], "strokeWidth": 1, "opacity": 0.7}, "encoding": ideal},
        {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {"x": x, "y": y, "color": colour, "detail": detail}},
        {
            "mark": {"type": "point", "filled": True, "size": 80},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tips},
        },
        {"mark": text, "encoding": {"x": x, "y": y, "text": {"field": "end"}}},
    ]
    return charts.view("Dotted: perfect scaling from the smallest number of ranks", 300, values, layers)
