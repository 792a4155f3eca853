"""The charts, as Vega-Lite in plain JSON. A chart has choices of what it is of; a choice has views, each with its values
and the place of its specification among those of the chart, and notes: what is left out, and why. Colour is the precision, the shape is the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from harness.recording.records import Record
from harness.report.rows import NAMES, Facts, by, mark, subject, work, work_words

Chart = dict[str, Any]
View = dict[str, Any]
# Okabe and Ito, Color Universal Design (2008). Black is drawn in the page's ink, so it is seen on dark paper, too.
INK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#808080"
COLOURS = {"fp32": PURPLE, "bf16": INK, "fp8": BLUE, "fp8_block": GREEN, "nvfp4": RED, "mxfp4": ORANGE}
SHAPES = {"hf": "circle", "vllm": "square", "sglang": "triangle-up", "trtllm": "diamond", "neuron": "cross"}
LONG = "length(datum.label) > 46 ? slice(datum.label, 0, 8) + '…' + slice(datum.label, -36) : datum.label"
MORE_COLOURS = (SKY, YELLOW, GREY)
MORE_SHAPES = ("triangle-down", "triangle-right", "triangle-left")


def chart(name: str, choices: Iterable[Chart], nothing: str) -> Chart:
    """`nothing`: what is said where there is nothing to choose."""
    shown = [one for one in choices if one["views"]]
    specs: dict[str, int] = {}  # many views are drawn alike: each specification once
    for view in (view for one in shown for view in one["views"]):
        if view["spec"] is not None:
            view["spec"] = specs.setdefault(json.dumps(view["spec"]), len(specs))
    return {"id": name, "choices": shown, "specs": [json.loads(spec) for spec in specs], "nothing": nothing}


def choice(label: str, views: Sequence[View], notes: Iterable[str] = ()) -> Chart:
    return {"label": label, "views": list(views), "notes": list(notes)}


def view(
    title: str, height: int, values: Sequence[dict[str, Any]], layers: Sequence[dict[str, Any]], **more: Any
) -> View:
    """A view as wide as its place; `height` in pixels, of the plot without its axes."""
    return {"title": title, "values": list(values), "spec": {"height": height, "layer": list(layers), **more}}


def works(facts: Facts, records: Sequence[Record], split: bool = False) -> list[tuple[str, list[Record]]]:
    """Groups of one subject and work, and one number of ranks where `split`: the largest first, each with a label that
    says no more than is needed."""
    several = split and len(set(map(ranks, records))) > 1
    groups = by(records, lambda record: (subject(record), work(record), several and ranks(record)))
    short = common_subject(facts)
    found = [(label_of(group[0], short, several), group) for group in groups.values()]
    return sorted(found, key=lambda pair: -len(pair[1]))


def ranks(record: Record) -> tuple[str, str]:
    """Speeds at different ones are not comparable: they are of more or fewer GPUs."""
    return str(record["conditions"].get("tp")), str(record["conditions"].get("ep"))


def common_subject(facts: Facts) -> bool:
    return len({subject(record) for record in facts.records}) == 1


def label_of(record: Record, short: bool, with_ranks: bool = False) -> str:
    about = "" if short else f"{subject_words(record)}, "
    return f"{about}{work_words(record)}{', tp {} ep {}'.format(*ranks(record)) if with_ranks else ''}"


def subject_words(record: Record) -> str:
    model, weights, device = subject(record)
    return f"{model}{' (random weights)' if weights == 'dummy' else ''} on {device}"


def point(record: Record, with_config: bool) -> dict[str, str]:
    """What every mark of a record carries."""
    name = f"{record['engine']} {record['precision']}{mark(record)}"
    return {
        "engine": str(record["engine"]),
        "precision": str(record["precision"]),
        "name": f"{name} {record['config']}" if with_config else name,
    }


def has_configs(records: Iterable[Record]) -> bool:
    return len({record["config"] for record in records}) > 1


def colour(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By precision, the same colour on every page."""
    names = sorted({value["precision"] for value in values}, key=lambda n: (NAMES.index(n) if n in NAMES else 99, n))
    more = iter(MORE_COLOURS * len(names))
    colours = [COLOURS.get(name) or next(more) for name in names]
    return {"field": "precision", "type": "nominal", "scale": {"domain": names, "range": colours}, "title": "precision"}


def shape(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By engine, the same shape on every page."""
    names = sorted({value["engine"] for value in values})
    more = iter(MORE_SHAPES * len(names))
    shapes = [SHAPES.get(name) or next(more) for name in names]
    return {"field": "engine", "type": "nominal", "scale": {"domain": names, "range": shapes}, "title": "engine"}


def axis(field: str, title: str, log: bool = False, **more: Any) -> dict[str, Any]:
    scale = {"type": "log", "nice": False} if log else {"zero": False, "nice": True}
    return {"field": field, "type": "quantitative", "title": title, "scale": {**scale, **more.pop("scale", {})}, **more}


def rows() -> dict[str, Any]:
    """The field `row` down the side, in its own order. Names of rungs differ at their ends."""
    return {
        "field": "row",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"labelExpr": LONG, "labelLimit": 330},
    }


def tooltip(**titles: str) -> list[dict[str, Any]]:
    """`field="title"`, in that order."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]
