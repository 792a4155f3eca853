"""The SGLang engine: what it is and what it can do. Imports no sglang; `session.py` does, in the worker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY

if TYPE_CHECKING:
    from harness import Load, Session, Setup
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
            oldest="0.5.13",
            capabilities=frozenset({"generate", "score", "logits", "sample", "torch_profiler"}),
            support=support,
            load=load,
            resolves=resolves,
            options=frozenset({"quantize", "tp", "ep", "moe_backend"}),
            install="any environment of its own with moe-harness and sglang (NVIDIA GPU), as --python sglang=PATH",
        )
    ]


def support(precision: str, device: Device, version: str | None) -> Support:
    """What SGLang's own choice of kernels comes to (0.5.13 to 0.5.23). The session reads from the live model what it
    was."""
    if device.kind != "cuda":
        return Support(
            UNSUPPORTED, "SGLang's packages hold CUDA kernels only; its CPU engine has to be built from source"
        )
    sm, format = device.sm, PRECISIONS[precision]
    if sm < FIRST_SM:
        return Support(UNSUPPORTED, f"SGLang's kernels for MoE models begin at SM {FIRST_SM}, this GPU is SM {sm}")
    if precision == "fp32":
        return Support(NATIVE, "no tensor cores: products in FP32")
    needs = f"SM {sm} has no {precision} tensor cores, they need {format.tensor_cores}"
    if precision == "mxfp4" and format.on_tensor_cores(sm) and (sm < 120 or not _takes_sm120_as_old(version)):
        return Support(NATIVE, "activations in MXFP8; only checkpoints stored so, such as gpt-oss")
    if precision == "mxfp4":
        return Support(WEIGHT_ONLY, f"SGLang has no kernels of its own for it on SM {sm}; {MARLIN} (or Triton's do)")
    if format.on_tensor_cores(sm):
        return Support(NATIVE)
    if precision == "nvfp4":
        return Support(WEIGHT_ONLY, f"{needs}; {MARLIN}")
    return Support(UNSUPPORTED, f"{needs}; SGLang has Marlin for linear layers there, its FP8 experts have none")


def _takes_sm120_as_old(version: str | None) -> bool:
    """Until 0.5.16 MXFP4 on SM 120 was Triton's or Marlin's; in 0.5.23 it is CUTLASS's. Between: not read."""
    return bool(version and re.match(r"0\.5\.1[0-6]\b", version))


def resolves(setup: Setup, device: Device, version: str | None) -> str | None:
    """The MoE runner, as an option's value, that a setup comes to; None: not known.

    `auto` by the rules of SGLang 0.5.23 on Hopper, without an all-to-all backend, where the family does not matter."""
    if setup.moe_backend != "auto":
        return setup.moe_backend
    if device.sm != 90 or not (version or "0.5.23").startswith("0.5.23"):
        return None
    return {"bf16": "triton", "fp8": "triton", "fp8_block": "triton", "nvfp4": "marlin"}.get(setup.precision)


def load(load: Load) -> Session:
    from harness_sglang.session import SglangSession

    return SglangSession(load)
