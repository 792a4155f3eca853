"""How much memory a load takes on each GPU: weights, KV cache and activations, counted from a model's shape alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.model.shape import Shape
from harness.precision import PRECISIONS

# Parts whose products a quantised precision reaches, by the scope of `--quantize`.
QUANTISED = {
    "experts": frozenset({"experts"}),
    "linear": frozenset({"experts", "shared experts", "dense MLP", "attention projections"}),
}
LOGITS_BYTES = 4  # engines draw the next token from FP32
WHOLE = ("norms", "router")  # every rank has them: they are small, and every rank needs their results


@dataclass(frozen=True)
class Footprint:
    """Bytes on each GPU."""

    weights: float
    cache: float  # keys and values
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations


def footprint(
    shape: Shape,
    precision: str,
    quantize: str,
    tp: int,
    ep: int,
    batch_size: int,
    tokens: int,
    kv_bits: float = 16,
    kv_heads: int | None = None,
) -> Footprint:
    """One load on `tp` GPUs, with `batch_size` sequences of `tokens` tokens (prompt and output) at once.

    `kv_heads` is the model's num_key_value_heads; None: as many as are needed to split them evenly. Assumed, after
    Megatron-LM (Shoeybi et al., arXiv:1909.08053) as vLLM, SGLang and TensorRT-LLM lay it out:

    * Experts: whole ones on `ep` groups of ranks, each cut along its width over the tp / ep ranks of a group.
      Scales of a quantised precision are counted (`Precision.bits`), padding is not: FP4 kernels may round widths up.
    * Attention by heads. With fewer key/value heads than ranks each rank has a whole one, so copies exist. Latent
      attention (DeepSeek) has one latent vector for all heads: every rank holds its projection and its cache whole. Its
      down-projection of queries is counted as split; engines hold that whole, too (under 1 % of DeepSeek-V3.1 at tp 8).
    * Embedding and head split by vocabulary, as vLLM does; tied ones are one matrix. transformers does not split.
    * Norms and router whole on every rank. What is not quantised has 16 bits (32 in fp32).
    * KV cache: `batch_size` x `tokens`, in layers with a sliding window no more than the window. Engines differ: vLLM
      and SGLang fill whatever memory is left with cache, and older ones keep all tokens of sliding layers, too.
    * Activations, an upper estimate: every token of the batch is in flight at once (engines that cut prompts into
      chunks hold fewer), each with its hidden state and the widest intermediate result of a layer; and FP32 logits of
      one token per sequence. Workspaces, CUDA graphs and the CUDA context (about 0.5 GiB) come on top.
    """
    plain_bytes = (32 if precision == "fp32" else 16) / 8
    low_bytes, reached = PRECISIONS[precision].bits / 8, QUANTISED[quantize]
    parts = dict(shape.weights)
    if shape.tied:
        del parts["head"]
    weights = math.fsum(
        size * _share(part, shape, tp, ep, kv_heads) * (low_bytes if part in reached else plain_bytes)
        for part, size in parts.items()
    )
    held = sum(min(tokens, window or tokens) for window in shape.windows)
    cache = batch_size * held * shape.cached * kv_bits / 8 / _cuts(shape, tp, kv_heads)
    vocabulary = shape.weights["embedding"] / shape.hidden
    states = batch_size * tokens * (shape.hidden + _widest(shape, tp, ep)) * plain_bytes
    return Footprint(weights, cache, states + batch_size * vocabulary * LOGITS_BYTES)


def _share(part: str, shape: Shape, tp: int, ep: int, kv_heads: int | None) -> float:
    """Which share of a part's weights one rank holds."""
    if part in WHOLE:
        return 1.0
    if part == "experts":
        return math.ceil(shape.experts / ep) / shape.experts / (tp / ep) if shape.experts else 0.0
    if part == "attention projections":
        # Of keys and values, or down to the latent vector and the rotary key: hidden x what is cached, in each layer.
        keys = len(shape.windows) * shape.hidden * shape.cached / shape.weights[part]
        return keys / _cuts(shape, tp, kv_heads) + (1 - keys) / tp
    return 1 / tp


def _cuts(shape: Shape, tp: int, kv_heads: int | None) -> int:
    """Into how many different parts the ranks cut keys and values."""
    is_latent = shape.pair_prefill != shape.pair_decode
    return 1 if is_latent else min(tp, kv_heads or tp)


def _widest(shape: Shape, tp: int, ep: int) -> float:
    """Elements per token and rank of a layer's widest intermediate result: queries, keys and values; gate and up of a
    dense layer; or gate and up of the chosen experts, which with whole experts may all be on one rank."""
    layers, of_expert = len(shape.windows), 0.0
    # A router has a weight per hidden element and expert; biases add less than one layer's.
    sparse = shape.weights["router"] // (shape.hidden * shape.experts) if shape.experts else 0
    if sparse:
        of_expert = 2 * shape.weights["experts"] / (sparse * shape.experts * 3 * shape.hidden)
    of_dense = 2 * shape.weights["dense MLP"] / ((layers - sparse) * 3 * shape.hidden) if layers > sparse else 0.0
    attention = shape.pair_prefill / 2 + shape.cached
    return max(attention / tp, of_dense / tp, shape.chosen * of_expert / (tp / ep))
