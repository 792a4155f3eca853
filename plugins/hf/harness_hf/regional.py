"""One compiled layer serves all layers of a model: compiling takes as long as for one, whatever the depth.

Dynamo compiles anew for whatever differs between two calls. What differs between layers only because of their number is
taken away: each gets its own layer of the cache instead of the cache and a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness_hf.caches import keyword
from harness_hf.steps import Answer, Step

SHAPES = 64  # that one layer may be compiled for: batch sizes, lengths, kinds of layers


@dataclass
class OneLayer:
    """The cache as one decoder layer sees it."""

    layer: Any

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: object, **kwargs: object) -> Any:
        return self.layer.update(keys, values)


class CompiledLayers:
    """Decoder layers that run compiled inside `with layers.in_use():`, and as they are elsewhere."""

    def __init__(self, model: PreTrainedModel, backend: str = "inductor") -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        self._before, self._used = counters["stats"]["unique_graphs"], False
        self._compiled: dict[type, Callable] = {}
        self._keyword = keyword(model.get_decoder().layers[0])
        for index, layer in enumerate(model.get_decoder().layers):
            kind = type(layer)
            if kind not in self._compiled:
                self._compiled[kind] = torch.compile(kind.forward, dynamic=False, backend=backend)
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = 0  # of OneLayer, and of no other use in a pass
            layer.forward = partial(self._forward, layer, index)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self._used = True
        try:
            yield
        finally:
            self._used = False

    def compiled(self) -> int:
        """Graphs that dynamo has made since."""
        return counters["stats"]["unique_graphs"] - self._before

    def _forward(self, layer: nn.Module, index: int, hidden_ATH: torch.Tensor, **named: Any) -> torch.Tensor:
        if (cache := named.get(self._keyword)) is not None:
            named[self._keyword] = OneLayer(cache.layers[index])
        run = self._compiled[type(layer)] if self._used else type(layer).forward
        return run(layer, hidden_ATH, **named)


class ByLayer:
    """A step whose layers run compiled."""

    def __init__(self, step: Step, layers: CompiledLayers) -> None:
        self._step, self.layers = step, layers
        self.calls = 0

    def __call__(self, ids_AT: torch.Tensor, cache: Cache) -> Answer:
        self.calls += 1
        if not cache.layers[0].is_initialized:  # or layers would be compiled twice: to allocate, and to find it done
            self._step(ids_AT[:, :1], cache)
            cache.reset()
        with self.layers.in_use():
            return self._step(ids_AT, cache)

    def compiled(self) -> int:
        return self.layers.compiled()
