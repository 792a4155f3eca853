"""Products on FP8 tensor cores, one scale per tensor: of an expert's matrix, of a linear layer's, of what they read.

Activations are scaled anew in every product by their largest value. E: experts, S: rows (a token once per expert),
I: input width, O: output width, K: experts per token, H: hidden size, F: expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness import LoadFailed
from harness_hf.grouped import by_expert, combined
from harness_hf.modules import EXPERT_WEIGHTS, every_experts, every_linear

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
NAME = "fp8_grouped_mm"  # the experts implementation, in transformers' words

# rows [S, I] and their scale, weights [E, O, I] and their scales [E], ends of each expert's rows [E] -> [S, O]
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def convert(model: PreTrainedModel, scope: str, product: Product | None = None) -> dict[str, int]:
    """Weights to E4M3, in place; `scope` as of `emulate`. Returns matrices by layer class. Raises LoadFailed.

    Each converted module carries `native_as`. `product` is for a check against another product."""
    converted = {"experts": 0, "linear": 0}
    for name, experts in every_experts(model):
        if experts.is_transposed or experts.has_bias or not experts.has_gate:
            raise LoadFailed(f"{name} is not of the shape that the FP8 experts are written for")
        for weight_name in EXPERT_WEIGHTS:
            if isinstance(weight := getattr(experts, weight_name, None), nn.Parameter):
                _check(f"{name}.{weight_name}", weight)
                small_EOI, scale_E = quantised_matrices(weight.data)
                setattr(experts, weight_name, nn.Parameter(small_EOI, requires_grad=False))
                experts.register_buffer(f"{weight_name}_scale", scale_E, persistent=False)
                converted["experts"] += len(weight)
        experts.native_as = "fp8"
    if converted["experts"]:
        ALL_EXPERTS_FUNCTIONS[NAME] = partial(experts_forward, product=product or scaled_grouped)
        for config in {id(module.config): module.config for _, module in every_experts(model)}.values():
            config._experts_implementation = NAME
    if scope == "linear":
        for name, linear in every_linear(model):
            _check(f"{name}.weight", linear.weight)
            _to_fp8(linear)
            converted["linear"] += 1
    if not converted["experts"] and scope == "experts" or not sum(converted.values()):
        raise LoadFailed(f"{type(model).__name__} has no layer to convert to fp8")
    return converted


def quantised(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In E4M3, and its scale: amax / 448, FP32, no dimension."""
    scale = value.abs().amax().float().clamp(min=1e-12) / LARGEST
    return (value.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def quantised_matrices(weight_EOI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert's matrix by a scale of its own; one at a time, for FP32 copies of all would not fit."""
    small_EOI = torch.empty(weight_EOI.shape, dtype=E4M3, device=weight_EOI.device)
    scales = []
    for index, matrix_OI in enumerate(weight_EOI):
        small_EOI[index], scale = quantised(matrix_OI)
        scales.append(scale)
    return small_EOI, torch.stack(scales)


def scaled_grouped(
    rows_SI: torch.Tensor, scale: torch.Tensor, weights_EOI: torch.Tensor, scale_E: torch.Tensor, ends_E: torch.Tensor
) -> torch.Tensor:
    """PyTorch's kernel takes a scale per row and per column; each is given the one of its tensor."""
    return torch._scaled_grouped_mm(
        rows_SI,
        weights_EOI.transpose(-2, -1),
        scale.expand(len(rows_SI)).contiguous(),
        scale_E[:, None].expand(-1, weights_EOI.shape[1]).contiguous(),
        offs=ends_E,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def reference_grouped(
    rows_SI: torch.Tensor, scale: torch.Tensor, weights_EOI: torch.Tensor, scale_E: torch.Tensor, ends_E: torch.Tensor
) -> torch.Tensor:
    """The same in FP32, one expert after the other: what the kernel is held against."""
    out_SO = torch.zeros(len(rows_SI), weights_EOI.shape[1], device=rows_SI.device)
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        product = rows_SI[start:end].float() @ weights_EOI[expert].float().T
        out_SO[start:end] = product * (scale * scale_E[expert])
        start = end
    return out_SO.bfloat16()


def experts_forward(
    self: nn.Module,
    hidden_TH: torch.Tensor,
    chosen_TK: torch.Tensor,
    weight_TK: torch.Tensor,
    product: Product = scaled_grouped,
) -> torch.Tensor:
    """As transformers' grouped_mm_experts_forward; tokens are quantised before they are repeated for their experts."""
    order_S, ends_E = by_expert(chosen_TK, self.num_experts)
    quantise = quantiser(hidden_TH.is_cuda)
    small_TH, scale = quantise(hidden_TH)
    rows_SH = small_TH.view(torch.uint8)[order_S // chosen_TK.shape[1]].view(E4M3)
    up_SF = self._apply_gate(product(rows_SH, scale, self.gate_up_proj, self.gate_up_proj_scale, ends_E))
    return combined(product(*quantise(up_SF), self.down_proj, self.down_proj_scale, ends_E), weight_TK, order_S)


def quantiser(on_gpu: bool) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """`quantised` in one compiled kernel on a GPU."""
    global _compiled
    if not on_gpu or torch.compiler.is_compiling():  # inside a compiled step it is compiled with the step
        return quantised
    _compiled = _compiled or torch.compile(quantised, dynamic=True)
    return _compiled


_compiled: Callable | None = None


def _to_fp8(linear: nn.Linear) -> None:
    small_OI, linear.weight_scale = quantised(linear.weight.data)
    linear.weight = nn.Parameter(small_OI, requires_grad=False)
    linear.native_as, linear.__class__ = "fp8", Fp8Linear


class Fp8Linear(nn.Linear):
    """A linear layer whose product is torch._scaled_mm's."""

    weight_scale: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        small_NI, scale = quantiser(input.is_cuda)(input.flatten(0, -2))
        bias = self.bias
        out_NO = torch._scaled_mm(
            small_NI, self.weight.t(), scale, self.weight_scale, bias=bias, out_dtype=torch.bfloat16
        )
        return out_NO.view(*input.shape[:-1], -1)


def differences(model: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """On the GPU: the largest difference of each experts' first product from the FP32 reference, as a
    share of the reference's largest value. BF16 results round to 2**-8."""
    for name, experts in every_experts(model):
        rows_SI, scale = quantised(torch.randn(256, experts.gate_up_proj.shape[-1], device=model.device).bfloat16())
        step = -(-256 // experts.num_experts)
        ends_E = (torch.arange(1, experts.num_experts + 1, device=model.device) * step).clamp(max=256).int()
        arguments = (rows_SI, scale, experts.gate_up_proj.data, experts.gate_up_proj_scale, ends_E)
        exact = reference_grouped(*arguments).float()
        yield name, float((scaled_grouped(*arguments).float() - exact).abs().max() / exact.abs().max())


def _check(name: str, weight: torch.Tensor) -> None:
    if any(size % 16 for size in weight.shape[-2:]):
        raise LoadFailed(f"{name} is {tuple(weight.shape)}; FP8 products take multiples of 16")
