"""The MoE runners one can ask for."""

from __future__ import annotations

import enum


class MoeRunnerBackend(enum.Enum):
    AUTO = "auto"
    DEEP_GEMM = "deep_gemm"
    TRITON = "triton"
    TRITON_KERNELS = "triton_kernel"
    ASCEND = "ascend"
    FLASHINFER_TRTLLM = "flashinfer_trtllm"
    EXPERIMENTAL_SGL_TRTLLM = "experimental_sgl_trtllm"
    FLASHINFER_TRTLLM_ROUTED = "flashinfer_trtllm_routed"
    FLASHINFER_CUTLASS = "flashinfer_cutlass"
    FLASHINFER_MXFP4 = "flashinfer_mxfp4"
    FLASHINFER_CUTEDSL = "flashinfer_cutedsl"
    FLASHINFER_MEGAMOE = "flashinfer_megamoe"
    CUTLASS = "cutlass"
    MARLIN = "marlin"
    HUMMING = "humming"
    EXPERIMENTAL_SGL_MARLIN = "experimental_sgl_marlin"
    LORA_CUTEDSL = "lora_cutedsl"
    LORA_TRITON = "lora_triton"
    LORA_MARLIN = "lora_marlin"
    AITER = "aiter"
    HPC_OPS = "hpc_ops"
    INTEL_XPU = "intel_xpu"
