"""The TensorRT-LLM engine: what it is and what it can do. Imports no tensorrt_llm; `session.py` does, in the worker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY

if TYPE_CHECKING:
    from harness import Load, Session
    from harness.device import Device

NEWEST = (1, 2)  # newest stable release, assumed where none is installed
DOUBLE = "+double"  # how the version of the stand-in of our tests ends: it computes on a CPU


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="trtllm",
            summary="TensorRT-LLM, PyTorch backend: precision from the checkpoint, its own fused MoE kernels",
            requires=("tensorrt-llm",),
            oldest="1.0",
            capabilities=frozenset({"generate", "score", "logits", "sample", "torch_profiler", "nsys"}),
            support=support,
            load=load,
            options=frozenset({"tp", "ep", "moe_backend", "disable_fusion"}),
            install="NVIDIA's container nvcr.io/nvidia/tensorrt-llm/release, and pip install moe-harness there",
        )
    ]


def support(precision: str, device: Device, version: str | None) -> Support:
    """By version and SM (1.0 to 1.4). The session reads from the loaded layers what it was."""
    if device.kind == "cpu":
        return _on_cpu(precision, version)
    if device.kind != "cuda":
        return Support(UNSUPPORTED, "TensorRT-LLM runs on NVIDIA GPUs")
    sm, release = device.sm, release_of(version)
    if precision == "fp32":
        return Support(UNSUPPORTED, "TensorRT-LLM's attention and MoE kernels take BF16 and FP16, not FP32")
    if sm < 80:
        return Support(UNSUPPORTED, f"SM {sm}: TensorRT-LLM's kernels need SM 80 and later")
    if precision == "bf16":
        return Support(NATIVE)
    return {"fp8": _fp8, "fp8_block": _fp8, "nvfp4": _nvfp4, "mxfp4": _mxfp4}[precision](precision, sm, release)


def release_of(version: str | None) -> tuple[int, int]:
    """(major, minor) of a version; of the newest stable release where it is not known."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else NEWEST


def load(load: Load) -> Session:
    from harness_trtllm.session import TrtllmSession

    return TrtllmSession(load)


def _on_cpu(precision: str, version: str | None) -> Support:
    if not (version or "").endswith(DOUBLE):
        return Support(UNSUPPORTED, "TensorRT-LLM needs an NVIDIA GPU, SM 80 and later; there is none here")
    if precision == "bf16":
        return Support(NATIVE, f"{version} is the tests' stand-in: transformers on the CPU, not TensorRT-LLM")
    return Support(UNSUPPORTED, f"{version}, the tests' stand-in, computes in BF16 only")


def _fp8(precision: str, sm: int, release: tuple[int, int]) -> Support:
    if sm < 89:
        needs = f"they need {PRECISIONS[precision].tensor_cores}"
        reason = f"SM {sm} has no {precision} tensor cores, {needs}; no weight-only kernel for experts"
        return Support(UNSUPPORTED, reason)
    if precision == "fp8" or sm in (90, 120):
        return Support(NATIVE)
    if sm in (100, 103):
        return Support(NATIVE, "by the MoE backend TRTLLM or DEEPGEMM: CUTLASS has such kernels for SM 90 and 120 only")
    return Support(UNSUPPORTED, f"SM {sm}: TensorRT-LLM's kernels for FP8 blocks are for SM 90, 100, 103 and 120")


def _nvfp4(precision: str, sm: int, release: tuple[int, int]) -> Support:
    if sm in (100, 103):
        return Support(NATIVE)
    if sm in (120, 121) and release >= (1, 3):
        return Support(NATIVE, "by the MoE backend CUTLASS: TRTLLM has no kernels for SM 120 and 121")
    if sm == 90 and release >= (1, 3):
        return Support(WEIGHT_ONLY, "SM 90 has no nvfp4 tensor cores; the MoE backend MARLIN multiplies in BF16")
    later = "; 1.3 adds it" if sm in (120, 121) else "; no MARLIN before 1.3" if sm == 90 else ""
    return Support(UNSUPPORTED, f"SM {sm}: nvfp4 needs SM 100 or 103 in this version{later}")


def _mxfp4(precision: str, sm: int, release: tuple[int, int]) -> Support:
    if sm == 90:
        return Support(WEIGHT_ONLY, "SM 90 has no mxfp4 tensor cores: 4-bit weights, products in BF16 (W4A16)")
    if sm in (100, 103) or sm in (120, 121) and release >= (1, 3):
        return Support(NATIVE, "4-bit weights with 8-bit activations (W4A8_MXFP4_MXFP8)")
    later = "; 1.3 adds SM 120 and 121" if sm in (120, 121) else ""
    return Support(UNSUPPORTED, f"SM {sm}: mxfp4 needs SM 90, 100 or 103 in this version{later}")
