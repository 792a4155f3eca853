"""Makes a loaded BF16 model compute as if its products were in a lower precision. Accuracy is that of the format;
speed is not. What was converted is counted, so that a label cannot stand on nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from harness import LoadFailed
from harness_hf.formats import DIVISORS, activation_through, weight_through
from harness_hf.modules import EXPERT_WEIGHTS, every_experts, every_linear


def emulate(model: nn.Module, precision: str, scope: str) -> dict[str, int]:
    """Converts weights in place and wraps the inputs of their products.

    `scope`: "experts", or "linear" for every linear layer besides embedding, output head and router too.
    A converted module carries `emulated_as`. Returns matrices converted per layer class. Raises LoadFailed when there is
    nothing to convert, or a dimension does not fit the format's blocks.
    """
    converted = {"experts": 0, "linear": 0}
    for name, experts in every_experts(model):
        _convert_experts(name, experts, precision)
        experts.emulated_as = precision
        converted["experts"] += experts.num_experts * len(list(_matrices(experts)))
    if scope == "linear":
        for name, linear in every_linear(model):
            _check(f"{name}.weight", linear.weight, precision)
            linear.weight.data.copy_(weight_through(precision, linear.weight.data))
            linear.register_forward_pre_hook(
                lambda module, inputs: (activation_through(precision, inputs[0]), *inputs[1:])
            )
            linear.emulated_as = precision
            converted["linear"] += 1
    if not converted["experts"] and scope == "experts":
        raise LoadFailed(
            f"{type(model).__name__} has no expert weights to convert to {precision}; --quantize linear takes every layer"
        )
    if not sum(converted.values()):
        raise LoadFailed(f"{type(model).__name__} has no layer to convert to {precision}")
    return converted


def _matrices(experts: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name in EXPERT_WEIGHTS:
        if isinstance(weight := getattr(experts, name, None), nn.Parameter):
            yield name, weight


def _convert_experts(where: str, experts: nn.Module, precision: str) -> None:
    """Each expert's matrix has scales of its own; gate and up are one matrix, as in every engine's fused layer."""
    for name, weights in _matrices(experts):
        for index in range(weights.shape[0]):
            matrix = weights.data[index]
            matrix = matrix.T if experts.is_transposed else matrix  # now [out, in]
            _check(f"{where}.{name}", matrix, precision)
            matrix.copy_(weight_through(precision, matrix.contiguous()))
    plain_forward, plain_gate = experts.forward, experts._apply_gate
    experts.forward = lambda hidden, *routing: plain_forward(activation_through(precision, hidden), *routing)
    experts._apply_gate = lambda gate_up: activation_through(precision, plain_gate(gate_up))


def _check(name: str, matrix: torch.Tensor, precision: str) -> None:
    divisor = DIVISORS[precision]
    sizes = matrix.shape if precision == "fp8_block" else matrix.shape[-1:]
    if any(size % divisor for size in sizes):
        raise LoadFailed(f"{name} is {tuple(matrix.shape)}, which {precision} blocks of {divisor} do not divide")
