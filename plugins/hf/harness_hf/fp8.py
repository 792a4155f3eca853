"""Products on FP8 tensor cores: weights by a scale per matrix and inputs by one per tensor, or in blocks, weights by a
scale per 128 x 128 and inputs by one per 1 x 128.

Inputs are scaled anew in every product by their largest values, in one compiled kernel on a GPU. E: experts, S: rows (a
token once per expert), I: input width, O: output width, K: experts per token, H: hidden size, F: expert width. Scales
are FP32: of a tensor [] and of experts' matrices [E]; of blocks [S, I / 128] and [E, O / 128, I / 128].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
BLOCK_SIZE = 128
ROWS = 256  # of a check


@dataclass(frozen=True)
class Product:
    """What multiplies: rows [S, I] and their scale, weights and theirs, and one thing more -> [S, O] BF16."""

    name: str  # what records say
    divisor: int  # of the weights' sizes
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Products:
    experts: Product  # weights [E, O, I], one more: the ends of each expert's rows, [E] INT32
    linear: Product  # weight [O, I], one more: a bias [O] or None


def products_of(precision: str, device: torch.device) -> Products:
    """PyTorch's where it has one: of experts per tensor on SM 90, of one matrix per tensor; else Triton's. PyTorch
    chooses its product in blocks by the shapes and strides of the scales; it was not tried, so it is not used."""
    if _is_in_torch(precision, device):
        return TORCH
    from harness_hf.fused import grouped  # imports Triton, which PyTorch for CPUs does not bring

    experts = Product("harness_hf::fp8_grouped_mm, in Triton", 32, grouped.grouped)
    linear = Product("harness_hf::fp8_scaled_mm, in Triton", 32, grouped.single)
    return Products(experts, TORCH.linear if precision == "fp8" else linear)


def missing(precision: str, device: torch.device) -> str | None:
    """Why there is no product in `precision` on this GPU."""
    has_one = _is_in_torch(precision, device) or importlib.util.find_spec("triton")
    return None if has_one else "Triton is not installed"


def _is_in_torch(precision: str, device: torch.device) -> bool:
    has_one = precision == "fp8" and hasattr(torch, "_scaled_grouped_mm")
    return has_one and torch.cuda.get_device_capability(device) == (9, 0)


def convert(model: PreTrainedModel, precision: str, scope: str, products: Products | None = None) -> dict[str, int]:
    """Weights to E4M3, in place; `scope` as of `emulate`. Returns matrices by layer class. Raises LoadFailed.

    Each converted module carries `native_as`, the precision, and `multiplied_by`. `products` are for a check against
    others."""
    converted = {"experts": 0, "linear": 0}
    products = products or products_of(precision, model.device)
    for name, experts in every_experts(model):
        if experts.is_transposed or experts.has_bias or not experts.has_gate:
            raise LoadFailed(f"{name} is not of the shape that the FP8 experts are written for")
        for weight_name in EXPERT_WEIGHTS:
            if isinstance(weight := getattr(experts, weight_name, None), nn.Parameter):
                _check(f"{name}.{weight_name}", weight, precision, products.experts)
                small_EOI, scale = quantised_matrices(weight.data, precision)
                setattr(experts, weight_name, nn.Parameter(small_EOI, requires_grad=False))
                experts.register_buffer(f"{weight_name}_scale", scale, persistent=False)
                converted["experts"] += len(weight)
        experts.native_as, experts.multiplied_by = precision, products.experts.name
    if converted["experts"]:
        ALL_EXPERTS_FUNCTIONS[NAME] = partial(experts_forward, product=products.experts)
        for config in {id(module.config): module.config for _, module in every_experts(model)}.values():
            config._experts_implementation = NAME
    if scope == "linear":
        for name, linear in every_linear(model):
            _check(f"{name}.weight", linear.weight, precision, products.linear)
            _to_fp8(linear, precision, products.linear)
            converted["linear"] += 1
    if not converted["experts"] and scope == "experts" or not sum(converted.values()):
        raise LoadFailed(f"{type(model).__name__} has no layer to convert to {precision}")
    return converted


def quantised(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In E4M3, and its scale: amax / 448, FP32, no dimension."""
    scale = value.abs().amax().float().clamp(min=1e-12) / LARGEST
    return (value.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def quantised_blocks(value_NI: torch.Tensor, height: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """In E4M3, and a scale for each block of `height` x 128: [N / height, I / 128]."""
    blocks = value_NI.float().unflatten(1, (-1, BLOCK_SIZE)).unflatten(0, (-1, height))
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-12) / LARGEST
    small = (blocks / scale[:, None, :, None]).clamp(-LARGEST, LARGEST).to(E4M3)
    return small.flatten(2).flatten(0, 1), scale


def quantised_matrices(weight_EOI: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert's matrix by scales of its own; one at a time, for FP32 copies of all would not fit."""
    small_EOI = torch.empty(weight_EOI.shape, dtype=E4M3, device=weight_EOI.device)
    scales = []
    for index, matrix_OI in enumerate(weight_EOI):
        small_EOI[index], scale = _quantised_matrix(matrix_OI, precision)
        scales.append(scale)
    return small_EOI, torch.stack(scales)


def _quantised_matrix(matrix_OI: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    return quantised_blocks(matrix_OI, BLOCK_SIZE) if precision == "fp8_block" else quantised(matrix_OI)


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


def scaled_single(
    rows_SI: torch.Tensor,
    scale: torch.Tensor,
    weight_OI: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    return torch._scaled_mm(rows_SI, weight_OI.t(), scale, weight_scale, bias=bias_O, out_dtype=torch.bfloat16)


def reference_grouped(
    rows_SI: torch.Tensor,
    scale: torch.Tensor,
    weights_EOI: torch.Tensor,
    weight_scale: torch.Tensor,
    ends_E: torch.Tensor,
) -> torch.Tensor:
    """In FP32, one expert after the other: what the kernels are held against."""
    out_SO = torch.zeros(len(rows_SI), weights_EOI.shape[1], device=rows_SI.device)
    rows_SI, start = back(rows_SI, scale), 0
    for expert, end in enumerate(ends_E.tolist()):
        out_SO[start:end] = rows_SI[start:end] @ back(weights_EOI[expert], weight_scale[expert]).T
        start = end
    return out_SO.bfloat16()


def reference_single(
    rows_SI: torch.Tensor,
    scale: torch.Tensor,
    weight_OI: torch.Tensor,
    weight_scale: torch.Tensor,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    bias = None if bias_O is None else bias_O.float()
    return nn.functional.linear(back(rows_SI, scale), back(weight_OI, weight_scale), bias).bfloat16()


def back(small_NI: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """FP32 values of a matrix: what E4M3 and the scales stand for."""
    if scale.ndim == 2:
        height = len(small_NI) // len(scale)
        scale = scale.repeat_interleave(height, 0).repeat_interleave(BLOCK_SIZE, 1)
    return small_NI.float() * scale


TORCH = Products(
    Product("torch._scaled_grouped_mm", 16, scaled_grouped), Product("torch._scaled_mm", 16, scaled_single)
)
REFERENCE = Products(
    Product("FP32, one expert after the other", 1, reference_grouped), Product("FP32", 1, reference_single)
)


def experts_forward(
    self: nn.Module, hidden_TH: torch.Tensor, chosen_TK: torch.Tensor, weight_TK: torch.Tensor, product: Product
) -> torch.Tensor:
    """As transformers' grouped_mm_experts_forward; tokens are quantised before they are repeated for their experts."""
    order_S, ends_E = by_expert(chosen_TK, self.num_experts)
    quantise = quantiser(self.native_as, hidden_TH.is_cuda)
    small_TH, scale = quantise(hidden_TH)
    token_S = order_S // chosen_TK.shape[1]
    rows_SH = small_TH.view(torch.uint8)[token_S].view(E4M3)
    scale = scale[token_S] if scale.ndim else scale
    up_SF = self._apply_gate(product.run(rows_SH, scale, self.gate_up_proj, self.gate_up_proj_scale, ends_E))
    return combined(product.run(*quantise(up_SF), self.down_proj, self.down_proj_scale, ends_E), weight_TK, order_S)


def quantiser(precision: str, on_gpu: bool) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Of the inputs of a product; in one compiled kernel on a GPU."""
    plain = quantised_blocks if precision == "fp8_block" else quantised
    if not on_gpu or torch.compiler.is_compiling():  # inside a compiled step it is compiled with the step
        return plain
    if plain not in _compiled:
        _compiled[plain] = torch.compile(plain, dynamic=True)
    return _compiled[plain]


_compiled: dict[Callable, Callable] = {}


def _to_fp8(linear: nn.Linear, precision: str, product: Product) -> None:
    small_OI, linear.weight_scale = _quantised_matrix(linear.weight.data, precision)
    linear.weight = nn.Parameter(small_OI, requires_grad=False)
    linear.native_as, linear.multiplied_by, linear.product = precision, product.name, product
    linear.__class__ = Fp8Linear


class Fp8Linear(nn.Linear):
    """A linear layer with a weight in E4M3."""

    weight_scale: torch.Tensor
    native_as: str
    product: Product

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        small_NI, scale = quantiser(self.native_as, input.is_cuda)(input.flatten(0, -2))
        out_NO = self.product.run(small_NI, scale, self.weight, self.weight_scale, self.bias)
        return out_NO.view(*input.shape[:-1], -1)


def differences(model: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """On the GPU: the largest difference of each experts' first product, and of each linear layer's, from the FP32
    reference, as a share of the reference's largest value. BF16 results round to 2**-8."""
    for name, experts in every_experts(model):
        step = -(-ROWS // experts.num_experts)
        ends_E = (torch.arange(1, experts.num_experts + 1, device=model.device) * step).clamp(max=ROWS).int()
        weights = experts.gate_up_proj.data, experts.gate_up_proj_scale, ends_E
        run = products_of(experts.native_as, model.device).experts.run
        yield name, _difference(experts.native_as, weights, run, reference_grouped)
    for name, linear in model.named_modules():
        if isinstance(linear, Fp8Linear):
            weights = linear.weight.data, linear.weight_scale, None
            yield name, _difference(linear.native_as, weights, linear.product.run, reference_single)


def _difference(precision: str, weights: tuple, run: Callable, reference: Callable) -> float:
    value_SI = torch.randn(ROWS, weights[0].shape[-1], device=weights[0].device).bfloat16()
    arguments = (*quantiser(precision, on_gpu=False)(value_SI), *weights)
    exact = reference(*arguments).float()
    return float((run(*arguments).float() - exact).abs().max() / exact.abs().max())


def _check(name: str, weight: torch.Tensor, precision: str, product: Product) -> None:
    divisor = BLOCK_SIZE if precision == "fp8_block" else product.divisor
    if any(size % divisor for size in weight.shape[-2:]):
        raise LoadFailed(f"{name} is {tuple(weight.shape)}; {precision} products take multiples of {divisor}")
