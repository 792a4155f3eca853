"""The SGLang engine: what it is and what it can do. Imports no sglang; `session.py` does, in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY

if TYPE_CHECKING:
    from harness import Load, Session
    from harness.device import Device

FIRST_SM = 80
MARLIN = "SGLang's Marlin kernels keep the weights so and multiply in BF16"


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="sglang",
            summary="SGLang, offline: continuous batching, paged KV cache, CUDA graphs; one MoE runner per layer",
            requires=("sglang",),
            capabilities=frozenset({"generate", "score", "logits", "sample", "torch_profiler"}),
            support=support,
            load=load,
            options=frozenset({"quantize", "tp", "ep", "moe_backend"}),
            install="any environment of its own with moe-harness and sglang (NVIDIA GPU), as --python sglang=PATH",
        )
    ]


def support(precision: str, device: Device, version: str | None) -> Support:
    """What SGLang's own choice of kernels comes to (0.5.13 to 0.5.23). The session reads from the live model what it
    was."""
    if device.kind == "cpu":
        return Support(
            UNSUPPORTED, "SGLang's packages hold CUDA kernels only; its CPU engine has to be built from source"
        )
    sm, format = device.sm, PRECISIONS[precision]
    if sm < FIRST_SM:
        return Support(UNSUPPORTED, f"SGLang's kernels for MoE models begin at SM {FIRST_SM}, this GPU is SM {sm}")
    if precision == "fp32":
        return Support(NATIVE, "no tensor cores: products in FP32")
    needs = f"SM {sm} has no {precision} tensor cores, they need {format.tensor_cores}"
    if precision == "mxfp4":
        return _mxfp4(sm, needs)
    if format.on_tensor_cores(sm):
        return Support(NATIVE)
    if precision == "nvfp4":
        return Support(WEIGHT_ONLY, f"{needs}; {MARLIN}")
    return Support(UNSUPPORTED, f"{needs}; SGLang has Marlin for linear layers there, its FP8 experts have none")


def _mxfp4(sm: int, needs: str) -> Support:
    if PRECISIONS["mxfp4"].on_tensor_cores(sm):
        return Support(NATIVE, "activations in MXFP8; only checkpoints stored so, such as gpt-oss")
    return Support(WEIGHT_ONLY, f"{needs}; SGLang's Triton kernels keep the weights so and multiply in BF16")


def load(load: Load) -> Session:
    from harness_sglang.session import SglangSession

    return SglangSession(load)
