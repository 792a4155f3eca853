"""What is read off SGLang's layers: their format, what multiplies them, and in which arithmetic.

The layers are made by hand, with the names and attributes that SGLang 0.5.16 gives them on an SM 90."""

from __future__ import annotations

import enum
from types import SimpleNamespace

import pytest
import torch
from harness_sglang.look import _described

FP8 = torch.float8_e4m3fn


class Backend(enum.Enum):
    TRITON = "triton"
    MARLIN = "marlin"
    AUTO = "auto"


def layer(method: str, weights: dict[str, torch.Tensor], attributes: dict | None = None, **of_method: object) -> dict:
    """What is said of one layer, the experts of a model's first, whose `quant_method` is of a class of this name."""
    module = torch.nn.Module()
    for name, value in weights.items():
        module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    module.quant_method = type(method, (), of_method)()
    for name, value in (attributes or {}).items():
        setattr(module, name, value)
    model = torch.nn.Module()
    model.add_module("experts", module)
    ((_, said),) = _described(model)
    return said


def runner(backend: Backend, core: object = None, fused: object = None) -> SimpleNamespace:
    return SimpleNamespace(runner_backend=backend, runner_core=core, fused_func=fused)


def fused_experts_none_to_triton() -> None:
    """Runs instead of the core."""


def experts(dtype: torch.dtype, scales: str = "", shape: tuple[int, ...] = (4,)) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros(4, 256, 128).to(dtype) for name in ("w13_weight", "w2_weight")}
    return {**found, **({f"{name}_{scales}": torch.ones(shape) for name in found} if scales else {})}


def test_a_fused_function_is_named_before_the_core_it_replaces():
    said = layer(
        "UnquantizedFusedMoEMethod",
        experts(torch.bfloat16),
        runner=runner(Backend.TRITON, core=SimpleNamespace(), fused=fused_experts_none_to_triton),
    )
    assert (said["backend"], said["kernel"]) == ("triton", "fused_experts_none_to_triton")
    assert (said["format"], said["compute_mode"]) == ("bf16", "native")
    said = layer("UnquantizedFusedMoEMethod", experts(torch.bfloat16), runner=runner(Backend.TRITON, core=Backend.AUTO))
    assert said["kernel"] == "Backend"


def test_auto_is_not_taken_for_an_answer():
    assert layer("Fp8MoEMethod", experts(FP8, "scale"), runner=runner(Backend.AUTO))["backend"] is None


@pytest.mark.parametrize(
    ("weights", "block", "format"),
    [
        (experts(FP8, "scale"), None, "fp8"),
        (experts(FP8, "scale_inv", (4, 2, 1)), [128, 128], "fp8_block"),
        (experts(FP8, "scale_inv", (4, 2, 4)), [128, 32], "fp8 128 x 32"),
        ({"weight": torch.zeros(128, 256).to(FP8), "weight_scale": torch.ones(256, 1)}, None, "fp8 per channel"),
    ],
)
def test_fp8_is_told_by_its_scales(weights, block, format):
    said = layer("Fp8MoEMethod", weights, quant_config=SimpleNamespace(weight_block_size=block))
    assert (said["format"], said["compute_mode"], said["weight_dtypes"]) == (format, "native", "float8_e4m3fn")


def test_marlin_is_weight_only_whatever_its_method_is_called():
    weights = {"weight": torch.zeros(8, 8, dtype=torch.int32), "weight_scale": torch.ones(8)}
    linear = layer("ModelOptFp4LinearMethod", weights, {"workspace": torch.zeros(1)})
    assert (linear["format"], linear["compute_mode"], linear["activations"]) == ("nvfp4", "weight_only", "16 bit")
    packed = experts(torch.int32, "scale")
    moe = layer("ModelOptNvFp4FusedMoEMethod", packed, _moe_runner_backend=Backend.MARLIN)
    assert (moe["format"], moe["backend"], moe["compute_mode"]) == ("nvfp4", "marlin", "weight_only")
