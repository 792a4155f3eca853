"""Compiled models and where they are kept: one for each shape that is measured, compiled once and used again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Load, LoadFailed, Unsupported

GIVEN = "HARNESS_NEURON_COMPILED"  # a folder compiled before: used as it is, nothing is ever compiled
CACHE = "HARNESS_NEURON_CACHE"  # where compiled models are kept
MARK = "harness.json"  # written last, so a folder that has it is whole; says what went into it
CONFIG, MODEL = "neuron_config.json", "model.pt"  # NxD Inference's own files
SCORED_TOGETHER = 16  # sequences, where no cell says how many


@dataclass(frozen=True, order=True)
class Shape:
    """What one graph is compiled for; shorter prompts and smaller batches are padded to it."""

    batch: int
    context: int  # tokens of a prompt
    total: int  # tokens of a prompt and its answer

    def holds(self, batch: int, context: int, total: int) -> bool:
        return batch <= self.batch and context <= self.context and total <= self.total


def shapes_of(load: Load) -> list[Shape]:
    """Every timed cell has a graph of exactly its own shape. A text's length is known with its tokens."""
    shapes = set()
    for index, cell in enumerate(load.cells):
        asked = cell.parameters
        longest = load.inputs[index].longest if load.inputs else 0
        context = max(asked.get("input_len", 0), longest)
        # the workload evaluate times single prompts; those without a batch only score
        batch = asked.get("batch_size", 1 if "output_lens" in asked else SCORED_TOGETHER)
        shapes.add(Shape(batch, context, context + asked.get("output_len", 0)))
    return sorted(shapes)


def fitting(shapes: Mapping[Shape, Path], batch: int, context: int, total: int) -> Shape:
    """The smallest shape that holds so many prompts of so many tokens. Raises Unsupported when none does."""
    for shape in sorted(shapes):
        if shape.holds(batch, context, total):
            return shape
    compiled = "; ".join(f"{shape.batch} x {shape.context}, {shape.total} in all" for shape in sorted(shapes))
    raise Unsupported(f"{batch} prompts of {context} tokens, {total} in all, fit no compiled shape: {compiled}")


def settings(shape: Shape, load: Load) -> dict[str, Any]:
    """Keyword arguments of the model's NeuronConfig, as JSON. What is not here stays as NxD Inference has it."""
    setup = load.setup
    return {
        "batch_size": shape.batch,
        "max_context_length": shape.context,
        "seq_len": shape.total,
        "torch_dtype": "float32" if setup.precision == "fp32" else "bfloat16",
        "tp_degree": setup.tp,
        "moe_tp_degree": setup.tp // setup.ep,
        "moe_ep_degree": setup.ep,
    }


def places(load: Load, ingredients: Mapping[str, Any]) -> dict[Shape, Path]:
    """Where each shape's compiled model is, or will be. Raises LoadFailed when the folder that was given holds none,
    or one compiled for something else."""
    if given := os.environ.get(GIVEN):
        return {_given(Path(given), load): Path(given)}
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get(CACHE) or home / "moe-harness/neuron").absolute()
    return {shape: cache / _key({**ingredients, "settings": settings(shape, load)}) for shape in shapes_of(load)}


def is_whole(folder: Path) -> bool:
    return bool(os.environ.get(GIVEN)) or (folder / MARK).is_file()


def mark(folder: Path, ingredients: Mapping[str, Any], seconds: float) -> None:
    """Says that `folder` is whole, and what went into it."""
    content = {**ingredients, "compile_seconds": seconds}
    (folder / MARK).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _key(ingredients: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


def _given(folder: Path, load: Load) -> Shape:
    where = f"{GIVEN}={folder}"
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["neuron_config"]
        shape = Shape(found["batch_size"], found["max_context_length"], found["seq_len"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"{where}: no model compiled by NxD Inference: {type(error).__name__}: {error}") from None
    if not (folder / MODEL).is_file():
        raise LoadFailed(f"{where}: has no {MODEL}, so it was not compiled to its end")
    for name, value in settings(shape, load).items():
        if found.get(name) != value:
            raise LoadFailed(f"{where}: compiled with {name}={found.get(name)}, asked for {value}; compile it anew")
    return shape
