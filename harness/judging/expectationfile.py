"""The file of expectations: strict when read, and written so that a change of a number is a line in a diff."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.jsonfile import Node, load
from harness.judging.compare import METRICS
from harness.judging.expectations import CELL, Expectation

SCHEMA_VERSION = 1


def read(path: Path) -> list[Expectation]:
    """Raises UsageError, a line that names file and place, for anything but what `text` writes."""
    root = load(path)[1][0]
    if root.at("schema_version").need().count() > SCHEMA_VERSION:
        root.at("schema_version").refuse(f"written by a newer harness; this one reads {SCHEMA_VERSION}")
    held = {name: _values(node) for name, node in _members(root.at("conditions")).items()}
    devices = _members(root.at("devices"))
    found = [_expectation(one, device, held) for device, entries in devices.items() for one in entries.items()]
    if len({e.place for e in found}) < len(found):
        root.at("devices").refuse("two expectations of one metric of one cell")
    return found


def text(expectations: Sequence[Expectation]) -> str:
    """The content of the file. Equal conditions are in it once, under their hash."""
    ordered = sorted(expectations, key=lambda e: e.place)
    held = {e.provenance["conditions"]: e.conditions for e in ordered}
    devices: dict[str, list[str]] = {}
    for e in ordered:
        direction = "lower is better" if METRICS[e.metric].lower_is_better else "higher is better"
        members = {"cell": e.cell, "metric": e.metric, "value": e.value, "tolerance": e.tolerance}
        members |= {"direction": direction, "provenance": e.provenance, "samples": e.samples}
        devices.setdefault(e.device, []).append(_object(members, "   "))
    lists = [f"  {json.dumps(device)}: [\n   " + ",\n   ".join(each) + "\n  ]" for device, each in devices.items()]
    conditions = f' "conditions": {_object(dict(sorted(held.items())), " ")}'
    return (
        f'{{\n "schema_version": {SCHEMA_VERSION},\n{conditions},\n "devices": {{\n' + ",\n".join(lists) + "\n }\n}\n"
    )


def _expectation(node: Node, device: str, held: Mapping[str, dict[str, Any]]) -> Expectation:
    metric = node.at("metric").need().text()
    if metric not in METRICS:
        node.at("metric").refuse(f"expected one of {', '.join(METRICS)}")
    cell = {name: node.at("cell", name).need().text() for name in CELL}
    cell["parameters"] = _values(node.at("cell", "parameters"))
    conditions = held.get(node.at("provenance", "conditions").need().text())
    if conditions is None:
        node.at("provenance", "conditions").refuse("expected the name of an object under conditions")
    value = node.at("value").need()
    samples = tuple(node.at("samples").numbers())
    if not value.number() or len(samples) < 2:
        node.refuse("expected a value above 0, and at least two samples")
    tolerance, provenance = node.at("tolerance").need().number(), _values(node.at("provenance"))
    return Expectation(device, cell, metric, value.number(), tolerance, samples, conditions, provenance)


def _members(node: Node) -> dict[str, Node]:
    if not isinstance(node.need().value, dict):
        node.refuse("expected an object")
    return {name: node.at(name) for name in node.value}


def _values(node: Node) -> dict[str, Any]:
    return {name: one.value for name, one in _members(node).items()}


def _object(members: Mapping[str, Any], indent: str) -> str:
    lines = [f"{indent} {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in members.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
