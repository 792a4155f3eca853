"""The model: transformers' own on a CPU, its modules dressed as SGLang's, so that who looks finds what is there."""

from __future__ import annotations

import enum
import json
import os
from typing import Any

import torch
from torch.profiler import record_function
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

SINS = os.environ.get("SGLANG_DOUBLE", "").split(",")
DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float": torch.float32}


class MoeRunnerBackend(enum.Enum):
    AUTO = "auto"
    DEEP_GEMM = "deep_gemm"
    TRITON = "triton"
    TRITON_KERNELS = "triton_kernel"
    FLASHINFER_TRTLLM = "flashinfer_trtllm"
    FLASHINFER_CUTLASS = "flashinfer_cutlass"
    FLASHINFER_MXFP4 = "flashinfer_mxfp4"
    FLASHINFER_CUTEDSL = "flashinfer_cutedsl"
    CUTLASS = "cutlass"
    MARLIN = "marlin"
    HUMMING = "humming"
    AITER = "aiter"
    HPC_OPS = "hpc_ops"


class TritonRunnerCore:
    """Names the kernel."""


class MoeRunner:
    def __init__(self, runner_backend: MoeRunnerBackend) -> None:
        self.runner_backend = runner_backend
        self.runner_core = TritonRunnerCore() if runner_backend is MoeRunnerBackend.TRITON else None


class UnquantizedLinearMethod:
    """Of linear layers."""


class UnquantizedEmbeddingMethod:
    """Of the embedding and the head."""


class UnquantizedFusedMoEMethod:
    """Of experts; it holds their runner."""

    def __init__(self, runner: MoeRunner | None) -> None:
        self.runner = runner


class Fp8MoEMethod(UnquantizedFusedMoEMethod):
    """Of experts converted to FP8, one scale each."""

    weight_block_size = None


class FlashAttentionBackend:
    """Names the attention kernel."""


class TritonAttnBackend:
    """Names the attention kernel."""


class ModelRunner:
    def __init__(self, server_args: Any) -> None:
        resolved = server_args.resolved_dict()
        torch.set_num_threads(1)
        dtype = DTYPES[server_args.dtype]
        config = AutoConfig.from_pretrained(server_args.model_path, trust_remote_code=server_args.trust_remote_code)
        for name, value in json.loads(server_args.json_model_override_args).items():
            setattr(config, name, value)
        config._experts_implementation = "grouped_mm"
        if server_args.load_format == "dummy":
            torch.manual_seed(server_args.random_seed or 0)
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                server_args.model_path, config=config, dtype=dtype, use_safetensors=True
            ).eval()
        if server_args.quantization == "fp8":
            self._convert()
        elif server_args.quantization is not None or getattr(config, "quantization_config", None):
            raise ValueError(f"the double has no kernels for quantization {server_args.quantization!r}")
        backend = MoeRunnerBackend(server_args.moe_runner_backend)
        _dress(self.model, MoeRunnerBackend.TRITON if backend is MoeRunnerBackend.AUTO else backend)
        triton = resolved["attention_backend"] == "triton"
        self.attn_backend = TritonAttnBackend() if triton else FlashAttentionBackend()
        if dtype == torch.float32 and not triton:
            raise ValueError("FlashAttention only supports fp16, bf16 and fp8")
        self.kv_cache_dtype = dtype
        self.decode_cuda_graph_runner = None

    def _convert(self) -> None:
        from harness_hf.emulate import emulate

        ignored = os.environ.get("SGLANG_FP8_IGNORED_LAYERS", "").split(",")
        emulate(self.model, "fp8", "experts" if "self_attn" in ignored else "linear")

    @torch.inference_mode()
    def forward(self, ids_AT: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Logits [A, T, V] in FP32, in a range that names the step."""
        batch, length = ids_AT.shape
        is_decode = cache is not None and cache.get_seq_length() > 0
        name = f"step[DECODE bs={batch}]" if is_decode else f"step[EXTEND bs={batch} toks={batch * length}]"
        with record_function(name):
            return self.model(input_ids=ids_AT, past_key_values=cache, use_cache=cache is not None).logits.float()


def _dress(model: torch.nn.Module, backend: MoeRunnerBackend) -> None:
    runner = None if "auto" in SINS else MoeRunner(backend)
    for name, module in model.named_modules():
        if getattr(getattr(module, "down_proj", None), "ndim", 0) == 3:
            _dress_experts(module, runner)
        elif isinstance(module, torch.nn.Embedding) or name == "lm_head":
            module.quant_method = UnquantizedEmbeddingMethod()
        elif isinstance(module, torch.nn.Linear) or name.endswith(".gate"):
            module.quant_method = UnquantizedLinearMethod()


def _dress_experts(module: torch.nn.Module, runner: MoeRunner | None) -> None:
    is_fp8 = getattr(module, "emulated_as", None) == "fp8"
    module.quant_method = (Fp8MoEMethod if is_fp8 else UnquantizedFusedMoEMethod)(runner)
    for name, weight in (("w13_weight", module.gate_up_proj), ("w2_weight", module.down_proj)):
        data = weight.data.to(torch.float8_e4m3fn) if is_fp8 else weight.data
        setattr(module, name, torch.nn.Parameter(data, requires_grad=False))
        if is_fp8:
            setattr(module, f"{name}_scale", torch.nn.Parameter(torch.ones(len(data)), requires_grad=False))
