"""Where keys and values of a generation are kept: growing, in one place, or in one place in E4M3.

A: batch, G: key/value heads, T: tokens, D: head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, StaticLayer, StaticSlidingWindowLayer

E4M3 = torch.float8_e4m3fn
Caches = Callable[[int], Cache]  # batch size -> an empty cache


def keyword(module: nn.Module) -> str:
    """What the forward pass of a model, or of one of its layers, calls its cache: renamed in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"


def growing(model: PreTrainedModel) -> Caches:
    """A new cache for every generation."""
    return lambda batch_size: DynamicCache(config=model.config)


def fixed(model: PreTrainedModel, length: int, layer: type[StaticLayer] = StaticLayer) -> Caches:
    """One cache per batch size, kept: a graph is bound to its addresses. A sliding window's layers hold every token,
    too (the mask makes the window), so that their length is a tensor and not part of the program."""
    kept: dict[int, Cache] = {}

    def of(batch_size: int) -> Cache:
        if batch_size not in kept:
            cache = kept[batch_size] = StaticCache(config=model.config, max_cache_len=length)
            for index, plain in enumerate(cache.layers):
                if type(plain) in (StaticLayer, StaticSlidingWindowLayer):
                    cache.layers[index] = layer(max_cache_len=length)
        kept[batch_size].reset()
        return kept[batch_size]

    return of


class Fp8Layer(StaticLayer):
    """Keys and values in E4M3; each [D] has a scale of its own, amax / 448. Attention gets BF16 or FP32 back."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.computed = key_states.dtype
        for name in ("keys", "values"):
            place = getattr(self, name)
            setattr(self, name, torch.zeros(place.shape, dtype=torch.uint8, device=place.device).view(E4M3))
            setattr(self, f"{name}_scale", torch.zeros(*place.shape[:-1], 1, device=place.device))
            for kept in (getattr(self, name), getattr(self, f"{name}_scale")):
                torch._dynamo.mark_static_address(kept)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        place_T = torch.arange(count, device=self.device) + self.cumulative_length
        self.cumulative_length.add_(count)
        pairs = ((self.keys, self.keys_scale, key_states), (self.values, self.values_scale, value_states))
        return tuple(self._through(place_T, *pair) for pair in pairs)

    def _through(
        self, place_T: torch.Tensor, kept_AGTD: torch.Tensor, scale_AGT1: torch.Tensor, new_AGTD: torch.Tensor
    ) -> torch.Tensor:
        amax = new_AGTD.abs().amax(-1, keepdim=True).float()
        new_scale = amax.clamp(min=1e-12) / torch.finfo(E4M3).max
        small = (new_AGTD.float() / new_scale).to(E4M3)
        kept_AGTD.view(torch.uint8).index_copy_(2, place_T, small.view(torch.uint8))  # E4M3 has no index_copy_
        scale_AGT1.index_copy_(2, place_T, new_scale)
        return (kept_AGTD.float() * scale_AGT1).to(self.computed)


def shorten(cache: Cache, length: int) -> None:
    """Forgets what a fixed cache holds beyond `length` tokens. What lies there is masked, then overwritten."""
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)


def dtype_of(cache: Cache) -> torch.dtype:
    """What keys and values are stored in, read from the first layer."""
    return cache.layers[0].keys.dtype


def computed_in(layer: StaticLayer) -> torch.dtype:
    """What attention gets keys and values in."""
    return layer.computed if isinstance(layer, Fp8Layer) else layer.keys.dtype


def address_of(cache: Cache) -> int:
    """Where the first layer's keys lie."""
    return cache.layers[0].keys.data_ptr()
