"""Where a step's time goes by kind of kernel, and from one profile to another what gained and what lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.jsonfile import Node
from harness.judging.breakdown import MIXED, NAMES
from harness.kernels.waterfall import Waterfall, conclusion, explain
from harness.ladder.ledger import climbed
from harness.ladder.rows import ladders
from harness.ladder.show import title
from harness.recording.profiling import analysis_of
from harness.recording.records import Record, shared_config
from harness.report import charts
from harness.report.read import Entry
from harness.report.rows import Facts, by, setup_words, subject, work
from harness.traces.trace import NoAnswer

NOTHING = "No cell was profiled. harness run --profile torch, or nsys, adds a profiled pass to each."
NO_PAIR = "No two profiles of the same work lie here, with their analyses beside the traces."
IDLE, OTHER = "idle", "other"
ORDER = (*NAMES.values(), OTHER, IDLE)
COLOURS = dict(
    zip(ORDER, (charts.BLUE, charts.SKY, charts.PURPLE, charts.ORANGE, charts.GREEN, charts.RED, charts.YELLOW))
)
COLOURS |= {"comm": "#7F3C8D", OTHER: charts.GREY, IDLE: "#C8C8C8"}
PHASES = ("prefill", "decode")
Pair = tuple[tuple[str, str], Entry, Entry]  # what they are called, and from the first to the second
WATERFALLS = 40  # read at most; each is two files
ROW = 28  # pixels


def ledger(facts: Facts) -> charts.Chart:
    profiled = [entry.record for entry in facts.profiled if entry.record["profile"].get("phases")]
    found = (_ledger(label, group) for label, group in charts.works(facts, profiled))
    return charts.chart("kernels", found, _problems(facts) or NOTHING)


def waterfalls(facts: Facts) -> charts.Chart:
    return charts.chart("waterfall", list(_waterfalls(facts)), NO_PAIR)


def _problems(facts: Facts) -> str:
    found = {str(problem) for entry in facts.profiled if (problem := entry.record["profile"].get("problem"))}
    return f"No profile has an answer: {'; '.join(sorted(found))}." if found else ""


def _ledger(label: str, group: Sequence[Record]) -> charts.Chart:
    many = charts.has_configs(group)
    views = []
    for phase in PHASES:
        for is_wall in (True, False):
            values = [value for record in group for value in _shares(record, phase, is_wall, many)]
            if values:
                what = "ms of a step's wall time" if is_wall else "ms of its operations' summed time (CPU)"
                views.append(_stack(f"{phase.capitalize()}: {what}", values))
    return charts.choice(label, views, [note for record in group for note in _notes(record, many)])


def _shares(record: Record, phase: str, is_wall: bool, many: bool) -> Iterator[dict[str, Any]]:
    phases = record["profile"]["phases"]
    found = phases.get(phase)
    if not found or (phase == "prefill" and MIXED in phases) or (found.get("idle_ms") is not None) != is_wall:
        return
    times = dict.fromkeys(ORDER, 0.0)
    for name, share in (found.get("categories") or {}).items():
        times[NAMES.get(name, OTHER)] += share.get("ms_per_step") or 0.0
    times[IDLE] = found.get("idle_ms") or 0.0
    total = sum(times.values())
    high = (found.get("amdahl") or {}).get("upper") if is_wall else found.get("max_speedup")
    row = f"{charts.point(record, many)['name']}, {total:.2f} ms"
    for place, (name, time) in enumerate(times.items()):
        if time:
            yield {
                "row": row,
                "kind": name,
                "place": place,
                "ms": round(time, 6),
                "said": f"{time:.3f} ms, {100 * time / total:.1f} %",
                "ceiling": "no bound" if high is None else f"{high:.2f} × with expert GEMMs for free",
            }


def _stack(title: str, values: Sequence[dict[str, Any]]) -> charts.View:
    rows = len({value["row"] for value in values})
    kinds = [name for name in ORDER if any(value["kind"] == name for value in values)]
    stack = {"stack": "zero", "type": "quantitative", "field": "ms", "title": None}
    y = charts.rows()
    scale = {"domain": kinds, "range": [COLOURS[name] for name in kinds]}
    order = {"field": "place", "type": "quantitative"}
    tips = charts.tooltip(row="cell", kind="kind of work", said="time", ceiling="at most")
    legend = {"title": None, "orient": "bottom", "symbolType": "square"}
    bar = {
        "mark": {"type": "bar", "stroke": "#ffffff", "strokeWidth": 1, "size": 20},
        "encoding": {
            "x": stack,
            "y": y,
            "order": order,
            "color": {"field": "kind", "type": "nominal", "scale": scale, "legend": legend},
            "tooltip": tips,
        },
    }
    return charts.view(title, ROW * rows, values, [bar])


def _notes(record: Record, many: bool) -> Iterator[str]:
    profile, what = record["profile"], setup_words(record, many)
    if mixed := profile["phases"].get(MIXED):
        yield f"{what}: prefill shared {mixed.get('steps')} steps with decode, so it has no bar"
    for problem in profile.get("problems") or ():
        yield f"{what} is not to be believed: {problem}"
    for warning in profile.get("warnings") or ():
        yield f"{what}: {warning}"


def _waterfalls(facts: Facts) -> Iterator[charts.Chart]:
    entries = [entry for entry in facts.profiled if entry.record["profile"].get("analysis")]
    pairs = [*_pairs(entries), *_steps(entries)]
    read: dict[int, Node] = {}
    for count, (names, a, b) in enumerate(pairs[:WATERFALLS]):
        label = f"{' → '.join(names)}, {charts.label_of(b.record, charts.common_subject(facts))}"
        rest = [f"{WATERFALLS} of {len(pairs)} pairs are shown"] if count == 0 and len(pairs) > WATERFALLS else []
        try:
            nodes = [read.setdefault(id(entry), _analysis(entry)) for entry in (a, b)]
            found = explain(*nodes, names)
        except (HarnessError, NoAnswer) as error:
            empty = {"title": f"no waterfall: {error}", "values": [], "spec": None}
            yield charts.choice(label, [empty], rest)
            continue
        views = [_fall(fall) for fall in found.waterfalls]
        doubts = [f"not to be believed: {problem}" for problem in found.problems]
        yield charts.choice(label, views, [*rest, *conclusion(found), *doubts, *found.notes])


def _pairs(entries: Sequence[Entry]) -> Iterator[Pair]:
    """Each precision after BF16 of its engine, and each engine after the slowest in BF16, at one work."""

    def pair(a: Entry, b: Entry) -> Pair:
        return (setup_words(a.record), setup_words(b.record)), a, b

    for group in by(entries, lambda e: (subject(e.record), shared_config(e.record), work(e.record))).values():
        wide = [entry for entry in group if entry.record["precision"] == "bf16"]
        for a in wide:
            same = [e for e in group if e.record["engine"] == a.record["engine"] and e not in wide]
            yield from (pair(a, b) for b in same)
        slowest, *others = sorted(wide, key=lambda e: -(e.record.get("mean_latency_ms") or 0)) or [None]
        yield from (pair(slowest, b) for b in others if b.record["engine"] != slowest.record["engine"])


def _steps(entries: Sequence[Entry]) -> Iterator[Pair]:
    """Each step of a ladder after the one before."""
    of = {id(entry.record): entry for entry in entries}
    for rows in ladders(entry.record for entry in entries):
        rows = climbed(rows)
        yield from (((title(a), title(b)), of[id(a.perf)], of[id(b.perf)]) for a, b in zip(rows, rows[1:]))


def _analysis(entry: Entry) -> Node:
    path = (entry.root or Path(entry.folder)) / "records" / entry.file
    return analysis_of(Node(entry.record, entry.file), path)[1]


def _fall(fall: Waterfall) -> charts.View:
    """Both sides as bars from 0, and between them each difference where the one before ended."""
    a, b = fall.a / 1e6, fall.b / 1e6
    values, end = [_bar("A", 0, a, "whole", f"{a:.3f} ms")], a
    for bar in fall.bars:
        difference = bar.difference / 1e6
        if abs(difference) >= 0.0005:
            kind = "less time" if difference < 0 else "more time"
            label = NAMES.get(bar.category, bar.category)
            values.append(_bar(label, end, end + difference, kind, f"{difference:+.3f} ms"))
            end += difference
    values.append(_bar("B", 0, b, "whole", f"{b:.3f} ms"))
    y = {"field": "row", "type": "nominal", "sort": None, "title": None}
    colours = {"domain": ["whole", "less time", "more time"], "range": [charts.GREY, charts.BLUE, charts.RED]}
    x = {"field": "from", "type": "quantitative", "title": None, "scale": {"padding": 60}}
    tips = charts.tooltip(row="kind of work", said="B - A")
    legend = {"title": None, "orient": "bottom", "symbolType": "square"}
    layers = [
        {
            "mark": {"type": "bar", "size": 14},
            "encoding": {
                "x": x,
                "x2": {"field": "to"},
                "y": y,
                "color": {"field": "kind", "type": "nominal", "scale": colours, "legend": legend},
                "tooltip": tips,
            },
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 11},
            "encoding": {"x": {**x, "field": "right"}, "y": y, "text": {"field": "said"}},
        },
    ]
    per = f"per step, {fall.steps[0]} and {fall.steps[1]} steps" if fall.steps else "of the whole window"
    title = f"{fall.phase.capitalize()}: ms of {fall.measure} {per}"
    return charts.view(title, 22 * len(values), values, layers)


def _bar(row: str, start: float, end: float, kind: str, said: str) -> dict[str, Any]:
    return {"row": row, "from": start, "to": end, "right": max(start, end), "kind": kind, "said": said}
