"""Checks of completeness: every layer and every expert that config.json promises is there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.jsonfile import Node
from harness.lint.findings import Finding, some
from harness.lint.subject import Subject, place

FETCH = "fetch or export what is missing"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def experts(subject: Subject) -> Iterator[Finding]:
    """Experts with a number of their own: as many in each layer as config.json says, or as the fullest layer has."""
    found: dict[str, set[int]] = {}
    for layer in subject.matrices:
        if number := re.search(r"\.experts\.(\d+)\.", layer.name):
            found.setdefault(place(layer.name), set()).add(int(number[1]))
    promised = next(filter(None, (_text(subject).at(key).count() for key in EXPERTS)), None)
    fullest = max(map(len, found.values()), default=0)
    short = {name: numbers for name, numbers in found.items() if len(numbers) < (promised or fullest)}
    if short:
        least = min(map(len, short.values()))
        what = f"{least} of {promised or fullest} experts are there" + (" at the least" if len(short) > 1 else "")
        yield Finding("error", "missing-experts", some(short, "layer"), what, FETCH)
    over = [name for name, numbers in found.items() if promised and len(numbers) > promised]
    fused = [layer for layer in subject.matrices if layer.kind == "experts" and len(layer.weight.shape) > 2]
    over += [layer.name for layer in fused if promised and layer.parts != promised]
    if over:
        what = f"not the {promised} experts that config.json promises"
        yield Finding("error", "wrong-experts", some(over, "layer"), what, "use the config.json of this checkpoint")


def numbered_layers(subject: Subject) -> Iterator[Finding]:
    promised = _text(subject).at("num_hidden_layers").count()
    names = (re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name) for name in subject.checkpoint.tensors)
    numbers = {int(match[1]) for match in names if match}
    missing = [number for number in range(min(promised or 0, 10_000)) if number not in numbers]
    if numbers and missing:
        what = f"config.json promises {promised} layers; of {len(missing)} there is no tensor"
        yield Finding("error", "missing-layers", some(map(str, missing), "layer"), what, FETCH)


def _text(subject: Subject) -> Node:
    """Configuration of the language model, inside that of a larger one where it is."""
    inner = subject.checkpoint.config.at("text_config")
    return inner if isinstance(inner.value, dict) else subject.checkpoint.config


CHECKS = (experts, numbered_layers)
