"""What every check looks at: a checkpoint with its layers sorted, its schemes read and each layer's format told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.lint import layers, scheme
from harness.lint.checkpoint import Checkpoint, read
from harness.lint.layers import PLAIN, Layer
from harness.lint.scheme import NOT_QUANTISED, Rule, Scheme
from harness.provenance import joined

EXPERT = re.compile(r"(\.experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Subject:
    """Plain data but for what is worked out once."""

    checkpoint: Checkpoint
    sorted: layers.Sorted
    in_config: Scheme | None
    in_modelopt: Scheme | None
    stored: Mapping[str, str]  # layer -> format, see layers.stored_as

    @property
    def scheme(self) -> Scheme | None:
        """The one an engine reads first: hf_quant_config.json, where there is one."""
        return self.in_modelopt or self.in_config

    @property
    def matrices(self) -> list[Layer]:
        return [layer for layer in self.sorted.layers if layer.is_matrix]

    @property
    def quantised(self) -> list[Layer]:
        return [layer for layer in self.matrices if self.is_quantised(layer)]

    def is_quantised(self, layer: Layer) -> bool:
        return self.stored[layer.name] not in PLAIN.values()

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """Layer -> what the scheme says of it; all plain where no file says anything."""
        return rules(self.scheme, self.matrices)

    def word(self, layer: Layer) -> str:
        """How a layer is stored; packed integers by the bits that are declared for them."""
        stored, rule = self.stored[layer.name], self.rules.get(layer.name)
        return rule.format if stored == "packed" and rule is not None and rule.bits else stored

    @property
    def format(self) -> str:
        """As declared; where nothing is, as the products are stored."""
        if self.scheme is not None:
            word = self.scheme.format or self.scheme.algorithm or self.scheme.method or "unknown"
            if word != NOT_QUANTISED:
                return word
        products = [layer for layer in self.matrices if layer.kind == "experts"]
        products = products or [layer for layer in self.matrices if layer.kind in ("attention", "other")]
        return joined(self.stored[layer.name] for layer in products or self.matrices) or "unknown"


def look(path: Path) -> Subject:
    """Raises UsageError, see checkpoint.read."""
    checkpoint = read(path)
    ordered = layers.sort(checkpoint.tensors)
    return Subject(
        checkpoint,
        ordered,
        scheme.of_config(checkpoint.config, checkpoint.layers),
        scheme.of_modelopt_file(checkpoint.modelopt, checkpoint.layers),
        {layer.name: layers.stored_as(layer) for layer in ordered.layers},
    )


def rules(said: Scheme | None, matrices: Iterable[Layer]) -> dict[str, Rule]:
    if said is None:
        return {layer.name: scheme.PLAIN_RULE for layer in matrices}
    excludes = said.excludes()
    return {layer.name: scheme.PLAIN_RULE if excludes(layer) else said.rule_for(layer) for layer in matrices}


def place(name: str) -> str:
    """The name with an expert's number taken out: equal for all experts of one projection of a layer."""
    return EXPERT.sub(r"\1*", name)


def places(found: Iterable[Layer]) -> dict[str, list[Layer]]:
    grouped: dict[str, list[Layer]] = {}
    for layer in found:
        grouped.setdefault(place(layer.name), []).append(layer)
    return grouped
