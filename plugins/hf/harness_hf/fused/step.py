"""One decode step of a whole MoE model as a row of kernels: what it reads, where it works, and their order.

A: batch, H: hidden width, D: head width, S: room for tokens, V: vocabulary, E: experts, K: experts of a token, I:
expert width. Weights are the model's own, or views that replaced them; only FP8 copies of the experts are new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import nn
from transformers import PreTrainedModel

from harness import Unsupported
from harness_hf.fused.attention import attend, splits_of
from harness_hf.fused.dense import embed, linear, out_tile, pick_argmax, token_tile
from harness_hf.fused.experts import Gate, Matrices, amax_shape, run_experts
from harness_hf.fused.quantise import quantised
from harness_hf.fused.routing import Router, route
from harness_hf.projections import FusedLinear


@dataclass(frozen=True)
class Layer:
    norm_H: torch.Tensor
    qkv_XH: torch.Tensor  # queries, keys and values one below the other
    qkv_bias_X: torch.Tensor | None
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None
    sinks: torch.Tensor | None
    window: int | None
    out_HX: torch.Tensor
    out_bias_H: torch.Tensor | None
    router: Router
    up: Matrices
    down: Matrices
    gate: Gate


@dataclass(frozen=True)
class Weights:
    table_VH: torch.Tensor
    layers: tuple[Layer, ...]
    norm_H: torch.Tensor
    head_VH: torch.Tensor
    head_width: int
    key_heads: int
    eps: float


def weights_of(model: PreTrainedModel, precision: str) -> Weights:
    """Of a model that harness_hf.fused.supports has no objection to. Query, key and value weights of the model become
    views of one matrix. Raises Unsupported."""
    config, body = model.config.get_text_config(), model.get_decoder()
    first = body.layers[0].self_attn
    if first.o_proj.weight.dtype != body.embed_tokens.weight.dtype:
        raise Unsupported(f"the fused step has no attention layers in {first.o_proj.weight.dtype}, only experts")
    return Weights(
        body.embed_tokens.weight,
        tuple(_layer(layer, config, precision) for layer in body.layers),
        body.norm.weight,
        model.get_output_embeddings().weight,
        first.head_dim,
        first.k_proj.out_features // first.head_dim,
        config.rms_norm_eps,
    )


def _layer(layer: nn.Module, config: object, precision: str) -> Layer:
    attention, block = layer.self_attn, layer.mlp
    router, experts = getattr(block, "router", None) or block.gate, block.experts
    is_gpt_oss = config.model_type == "gpt_oss"
    eps = config.rms_norm_eps
    return Layer(
        norm_H=layer.input_layernorm.weight,
        qkv_XH=_joined([attention.q_proj, attention.k_proj, attention.v_proj], "weight"),
        qkv_bias_X=_joined([attention.q_proj, attention.k_proj, attention.v_proj], "bias"),
        qk_norms=(attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
        sinks=getattr(attention, "sinks", None),
        window=getattr(attention, "sliding_window", None),
        out_HX=attention.o_proj.weight,
        out_bias_H=attention.o_proj.bias,
        router=Router(
            layer.post_attention_layernorm.weight,
            router.weight,
            getattr(router, "bias", None),
            eps,
            config.num_experts_per_tok,
            is_rounded_first=not is_gpt_oss,
            is_of_chosen=getattr(config, "norm_topk_prob", True),
            is_exact=config.model_type == "mixtral",
        ),
        up=_matrices(experts, "gate_up_proj", precision),
        down=_matrices(experts, "down_proj", precision),
        gate=Gate(True, experts.alpha, experts.limit) if is_gpt_oss else Gate(),
    )


def _matrices(experts: nn.Module, name: str, precision: str) -> Matrices:
    """One product of the experts. A row of each matrix becomes contiguous, where it was not, in the model too: its
    shape stays. Experts that hold E4M3 already, with scales of matrices or of blocks, are taken as they are."""
    parameter, bias_EO = getattr(experts, name), getattr(experts, f"{name}_bias", None)
    weight_EOI = parameter.data.mT if experts.is_transposed else parameter.data
    if weight_EOI.stride(-1) != 1:
        weight_EOI = weight_EOI.contiguous()
        parameter.data = weight_EOI.mT
    if weight_EOI.dtype == torch.float8_e4m3fn:
        return Matrices(weight_EOI, bias_EO, getattr(experts, f"{name}_scale").float())
    return quantised(weight_EOI, bias_EO, precision)


@torch.no_grad()
def _joined(linears: list[nn.Linear], name: str) -> torch.Tensor | None:
    """Their parameters as one tensor; afterwards each is a view of it, so that no byte is held twice."""
    if isinstance(first := linears[0], FusedLinear):  # joined already, by the rung fused_projections
        return first.together.weight_OI if name == "weight" else first.together.bias_O
    parts = [getattr(linear, name) for linear in linears]
    if parts[0] is None:
        return None
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts])):
        part.data = view
    return whole


class Step:
    """A step at one batch size: its inputs and outputs have addresses that stay, so that a graph may hold it.

    Before the first call of a sequence `start` sets where it stands; each call then reads token_A, writes keys and
    values of it at the next position and puts the token after it into token_A and history_AS."""

    def __init__(self, weights: Weights, rotation: tuple[torch.Tensor, torch.Tensor], batch_size: int) -> None:
        room, first = rotation[0].shape[0], weights.layers[0]
        device, dtype = weights.table_VH.device, weights.table_VH.dtype
        vocabulary, width = weights.head_VH.shape
        heads, head_width = weights.key_heads, weights.head_width
        experts, top = first.router.weight_EH.shape[0], first.router.top
        queries = first.out_HX.shape[1] // head_width
        splits = splits_of(batch_size * heads)

        def made(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        exact, index = torch.float32, torch.int32
        self._weights, self._rotation = weights, rotation
        self.cache = [
            (made(batch_size, heads, room, head_width), made(batch_size, heads, room, head_width))
            for _ in weights.layers
        ]
        self.token_A = made(batch_size, dtype=torch.int64)
        self.history_AS = made(batch_size, room + 1, dtype=torch.int64)
        self.highest_AS = made(batch_size, room + 1, dtype=exact)
        self.logits_AV = made(batch_size, vocabulary)
        self._next_1, self._position_1 = made(1, dtype=index), made(1, dtype=index)
        self._x_AH, self._y_AH, self._hidden_AH = (made(batch_size, width) for _ in range(3))
        self._qkv_AX = made(batch_size, (queries + 2 * heads) * head_width)
        self._attended_AX = made(batch_size, queries * head_width)
        self._partial = (
            made(batch_size, queries, splits, head_width, dtype=exact),
            made(2, batch_size, queries, splits, dtype=exact),
        )
        self._router_AE = made(batch_size, experts, dtype=exact)
        self._ids_AK, self._shares_AK = made(batch_size, top, dtype=index), made(batch_size, top, dtype=exact)
        self._act_PI = made(batch_size * top, first.down.weight_EOI.shape[2])
        self._parts_PH = made(batch_size * top, width, dtype=exact)
        shapes = [amax_shape(first.up.scaling, *each.shape) for each in (self._hidden_AH, self._act_PI)]
        sizes = [math.prod(shape) for shape in shapes]
        self._amax_LX = made(len(weights.layers), sum(sizes), dtype=exact)
        pairs = [of_layer.split(sizes) for of_layer in self._amax_LX]
        self._amaxes = [tuple(map(torch.Tensor.view, pair, shapes)) if sum(sizes) else None for pair in pairs]
        tiles = triton.cdiv(vocabulary, out_tile(vocabulary, token_tile(batch_size)))
        self._best = (made(batch_size, tiles, dtype=exact), made(batch_size, tiles, dtype=index))

    def start(self, token_A: torch.Tensor, position: int) -> None:
        """The next call reads `token_A`, which stands at `position`."""
        self.token_A.copy_(token_A)
        self.history_AS[:, position].copy_(token_A)
        self._next_1.fill_(position)

    def __call__(self) -> None:
        weights, eps = self._weights, self._weights.eps
        x, y = self._x_AH, self._y_AH
        rows, width = x.shape
        embed[(rows,)](
            self.token_A, weights.table_VH, x, self._amax_LX, self._next_1, self._position_1,
            self._amax_LX.numel(), width, triton.next_power_of_2(width),
        )  # fmt: skip
        for index, layer in enumerate(weights.layers):
            linear(x, layer.qkv_XH, self._qkv_AX, layer.norm_H, eps, layer.qkv_bias_X)
            attend(
                self._qkv_AX, layer.qk_norms, self._rotation, self.cache[index], layer.sinks, self._position_1,
                self._partial, self._attended_AX, weights.head_width**-0.5, eps, layer.window,
            )  # fmt: skip
            linear(self._attended_AX, layer.out_HX, y, bias_O=layer.out_bias_H, residual_AO=x)
            amaxes, router = self._amaxes[index], layer.router
            route(y, router, self._hidden_AH, self._router_AE, self._ids_AK, self._shares_AK, amaxes and amaxes[0])
            run_experts(
                self._hidden_AH, y, self._ids_AK, self._shares_AK, layer.up, layer.down, layer.gate, self._act_PI,
                self._parts_PH, x, amaxes,
            )  # fmt: skip
        linear(x, weights.head_VH, self.logits_AV, weights.norm_H, eps, best=self._best)
        pick_argmax[(rows,)](
            *self._best, self.token_A, self.history_AS, self.highest_AS, self._position_1, self._next_1,
            self.history_AS.shape[1], self._best[0].shape[1], 1024,
        )  # fmt: skip
