"""From the rows of a sweep file to a plan: the same cells `harness run` would make, thousands of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from harness.cells import Setup
from harness.errors import UsageError
from harness.model import models
from harness.names import check_known
from harness.planning.plan import Ground, Options, Plan, distinct, find_checkpoint, find_profiler, make_cell, stand
from harness.precision import PRECISIONS
from harness.sweep.document import Document
from harness.sweep.matrix import Row, count, idle_excludes, rows

MANY = 100_000  # rows; more are made only when that is said to be meant

Warn = Callable[[str], None]


def make_plan(document: Document, options: Options, is_meant: bool, warn: Warn) -> Plan:
    """Raises UsageError with the line of the file, for a name nobody knows, and for too many rows unless `is_meant`.

    An engine that is not installed costs its cells, which are skipped with the reason, not the sweep."""
    if (found := count(document)) > MANY and not is_meant:
        raise UsageError(f"{document.name}: {found:,} cells; add --yes if that is meant")
    made = list(rows(document))
    for line in idle_excludes(document, made):
        warn(f"{document.name}:{line}: this exclude matches no cell")
    if not made:
        raise UsageError(f"{document.name}: no cell is left by exclude")
    ground = _stand(document, options, made)
    _check_names(document, ground, made)
    settings = document.value.get("settings", {})
    cells = []
    setups: dict[tuple[Any, ...], tuple[Setup, Mapping[str, Any]]] = {}
    for row in made:
        named = tuple(value for name, value in row.setup.items() if name != "workload")
        if named not in setups:
            setups[named] = _setup(document, ground, row, settings.get("trust_remote_code", False), warn)
        setup, defaults = setups[named]
        workload = ground.registry.workloads[row.setup["workload"]]
        cells.append(make_cell(ground, setup, workload, row.parameters, defaults))
    engines = dict.fromkeys(row.setup["engine"] for row in made)
    profiler = find_profiler(ground, options.profiler, engines, warn)
    return Plan(ground, distinct(cells), profiler)


def _stand(document: Document, options: Options, made: list[Row]) -> Ground:
    own = {name: said["python"] for name, said in document.value.get("engines", {}).items() if "python" in said}
    engines = dict.fromkeys(row.setup["engine"] for row in made)
    return stand(engines, replace(options, pythons={**own, **options.pythons}))


def _setup(
    document: Document, ground: Ground, row: Row, trust_remote_code: bool, warn: Warn
) -> tuple[Setup, Mapping[str, Any]]:
    axes = {name: value for name, value in row.setup.items() if name not in ("model", "workload")}
    said = document.value.get("models", {}).get(row.setup["model"], {})
    try:
        model = models.resolve(said.get("path", row.setup["model"]))
    except UsageError as error:
        raise document.error(_place(document, "model", row), str(error)) from None
    given = said.get("checkpoints", {}).get(axes["precision"])
    checkpoint = find_checkpoint(ground, warn, given, model.path, axes["precision"])
    name = row.setup["model"] if "path" in said else model.name
    setup = Setup(model=name, path=model.path, checkpoint=checkpoint, trust_remote_code=trust_remote_code, **axes)
    return setup, model.defaults


def _check_names(document: Document, ground: Ground, made: list[Row]) -> None:
    known = {"precision": PRECISIONS, "workload": ground.registry.workloads}
    read = {name for workload in ground.registry.workloads.values() for name in workload.parameters}
    checked = set()
    for row in made:
        for axis, names in known.items():
            if (axis, row.setup[axis]) not in checked:
                checked.add((axis, row.setup[axis]))
                try:
                    check_known(axis, row.setup[axis], names)
                except UsageError as error:
                    raise document.error(_place(document, axis, row), str(error)) from None
        for name in row.parameters.keys() - read - checked:
            raise document.error(("matrix", "parameters"), f"no workload reads a parameter {name!r}")


def _place(document: Document, axis: str, row: Row) -> tuple[Any, ...]:
    """Where the file says the value that a row has: the first place that holds it."""
    for place, line in document.lines.items():
        if line >= row.line and axis in place:
            value = _at(document.value, place)
            if value == row.setup[axis]:
                return place
    return ("matrix", axis)


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        value = value[step]
    return value
