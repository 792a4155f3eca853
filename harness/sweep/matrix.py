"""From a sweep file to rows: which engine, model, precision, ... and which parameters, one row per combination."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.sweep.document import Document, Place

DEFAULTS = {
    "engine": ["hf"],
    "model": ["tinymoe"],
    "precision": ["bf16"],
    "workload": ["perf"],
    "tp": [1],
    "ep": [1],
    "moe_backend": ["auto"],
    "rungs": ["default"],
    "disable_fusion": [False],
    "weights": ["real"],
    "quantize": ["experts"],
}  # axes every cell has, in the order in which the first changes slowest; the rest are parameters of workloads
Axes = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Row:
    """One combination. `line`: of the file, for a person who asks where it came from."""

    setup: Mapping[str, Any]  # the axes of DEFAULTS
    parameters: Mapping[str, Any]
    line: int


def rows(document: Document) -> Iterator[Row]:
    """Every row, in the file's order, those of `exclude` left out; a row that is made twice comes once."""
    excluded = [_axes(one) for one in document.value.get("exclude", [])]
    seen = set()
    for place, axes in _matrices(document):
        line = document.lines.get(place, 1)
        names = list(axes)
        for values in itertools.product(*axes.values()):
            row = dict(zip(names, values))
            same = tuple(sorted(row.items(), key=lambda item: item[0]))
            if same in seen or any(_matches(row, one) for one in excluded):
                continue
            seen.add(same)
            setup = {name: row[name] for name in DEFAULTS}
            yield Row(setup, {name: value for name, value in row.items() if name not in DEFAULTS}, line)


def count(document: Document) -> int:
    """Rows before `exclude`, without making them."""
    return sum(math.prod(map(len, axes.values())) for _, axes in _matrices(document))


def idle_excludes(document: Document, made: list[Row]) -> Iterator[int]:
    """Lines of excludes that can match nothing: no value of theirs is in the file."""
    matrices = [axes for _, axes in _matrices(document)]
    for index, one in enumerate(document.value.get("exclude", [])):
        wanted = _axes(one)
        if not any(all(set(values) & set(axes.get(name, ())) for name, values in wanted.items()) for axes in matrices):
            yield document.lines[("exclude", index)]


def _matrices(document: Document) -> Iterator[tuple[Place, Axes]]:
    """The matrix, then each include, once per engine: an engine may have axes of its own."""
    value = document.value
    base = {**DEFAULTS, **_axes(value["matrix"])}
    own = {name: _axes(one) for name, one in value.get("engines", {}).items()}
    parts = [(("matrix",), {})] + [
        (("include", index), _axes(one)) for index, one in enumerate(value.get("include", []))
    ]
    for place, replaced in parts:
        axes = {**base, **replaced}
        for engine in axes["engine"]:
            # what an include says goes before what the engine's section says: it was written for these cells
            yield (
                place,
                {**axes, **{k: v for k, v in own.get(engine, {}).items() if k not in replaced}, "engine": [engine]},
            )


def _axes(said: Mapping[str, Any]) -> dict[str, list[Any]]:
    flat = {**said, **said.get("parameters", {})}
    return {
        name: values if isinstance(values, list) else [values]
        for name, values in flat.items()
        if name not in ("parameters", "python")
    }


def _matches(row: Mapping[str, Any], excluded: Axes) -> bool:
    return all(row.get(name) in values for name, values in excluded.items())
