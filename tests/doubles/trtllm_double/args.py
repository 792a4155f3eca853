"""Arguments of the double's LLM, as the published contract of TensorRT-LLM's PyTorch backend has them; unknown ones are
errors. A class of arguments it never reads is `Any` here."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ALLREDUCE = Literal["AUTO", "NCCL", "UB", "MINLATENCY", "ONESHOT", "TWOSHOT", "LOWPRECISION", "MNNVL", "NCCL_SYMMETRIC"]
OTHER_BACKEND = (  # of the TensorRT engine: refused by name
    *("quant_config", "calib_config", "batching_type", "normalize_log_probs", "extended_runtime_perf_knob_config"),
    *("fast_build", "enable_build_cache", "workspace", "enable_tqdm"),
)


class LoadFormat(Enum):
    AUTO = 0
    DUMMY = 1
    VISION_ONLY = 2


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class KvCacheConfig(Strict):
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[Positive] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: Share | None = 0.9
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    attention_dp_events_gather_period_ms: int = 5
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    max_gpu_total_bytes: NotNegative = 0
    dtype: str = "auto"
    mamba_ssm_cache_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tokens_per_block: int = 32
    use_kv_cache_manager_v2: bool = False
    max_util_for_resume: Share = 0.95


class CudaGraphConfig(Strict):
    batch_sizes: list[int] | None = None
    max_batch_size: NotNegative = 0
    enable_padding: bool = False

    @model_validator(mode="after")
    def one_maximum(self) -> CudaGraphConfig:
        if self.batch_sizes and self.max_batch_size and max(self.batch_sizes) != self.max_batch_size:
            raise ValueError("max(batch_sizes) must equal max_batch_size")
        return self


class TorchCompileConfig(Strict):
    enable_fullgraph: bool = True
    enable_inductor: bool = False
    enable_piecewise_cuda_graph: bool = False
    capture_num_tokens: list[Positive] | None = None
    enable_userbuffers: bool = True
    max_num_streams: Positive = 1


class Nvfp4GemmConfig(Strict):
    allowed_backends: list[Literal["cutlass", "cublaslt", "cutedsl", "cuda_core"]] = [
        *("cutlass", "cublaslt", "cuda_core")
    ]


class AttentionDpConfig(Strict):
    enable_balance: bool = False
    timeout_iters: int = 50
    batching_wait_iters: int = 10


class MoeConfig(Strict):
    """The backend's names are each version's own."""

    backend: str
    max_num_tokens: int | None = None
    load_balancer: Any = None
    disable_finalize_fusion: bool = False
    use_low_precision_moe_combine: bool = False


COMMON = {
    "model": (str | Path, ...),
    "tokenizer": (Any, None),
    "tokenizer_mode": (Literal["auto", "slow"], "auto"),
    "skip_tokenizer_init": (bool, False),
    "trust_remote_code": (bool, False),
    "tensor_parallel_size": (int, 1),
    "dtype": (str, "auto"),
    "revision": (str | None, None),
    "tokenizer_revision": (str | None, None),
    "backend": (Literal["pytorch"], "pytorch"),
    "custom_tokenizer": (str | None, None),
    "model_kwargs": (dict[str, Any] | None, None),
    "pipeline_parallel_size": (int, 1),
    "context_parallel_size": (int, 1),
    "gpus_per_node": (int | None, None),
    "moe_cluster_parallel_size": (int | None, None),
    "moe_tensor_parallel_size": (int | None, None),
    "moe_expert_parallel_size": (int | None, None),
    "enable_attention_dp": (bool, False),
    "enable_lm_head_tp_in_adp": (bool, False),
    "pp_partition": (list[int] | None, None),
    "cp_config": (Any, None),
    "load_format": (LoadFormat, LoadFormat.AUTO),
    "enable_lora": (bool, False),
    "lora_config": (Any, None),
    "kv_cache_config": (KvCacheConfig, KvCacheConfig),
    "enable_chunked_prefill": (bool, False),
    "guided_decoding_backend": (Literal["xgrammar", "llguidance"] | None, None),
    "batched_logits_processor": (Any, None),
    "iter_stats_max_iterations": (int | None, None),
    "request_stats_max_iterations": (int | None, None),
    "peft_cache_config": (Any, None),
    "scheduler_config": (Any, dict),
    "cache_transceiver_config": (Any, None),
    "sparse_attention_config": (Any, None),
    "speculative_config": (Any, None),
    "max_batch_size": (int | None, 2048),
    "max_input_len": (int | None, 1024),
    "max_seq_len": (int | None, None),
    "max_beam_width": (int | None, 1),
    "max_num_tokens": (int | None, 8192),
    "gather_generation_logits": (bool, False),
    "num_postprocess_workers": (int, 0),
    "postprocess_tokenizer_dir": (str | None, None),
    "reasoning_parser": (str | None, None),
    "decoding_config": (Any, None),
    "otlp_traces_endpoint": (str | None, None),
    "return_perf_metrics": (bool, False),
    "perf_metrics_max_requests": (NotNegative, 0),
    "orchestrator_type": (Literal["rpc", "ray"] | None, None),
    "env_overrides": (dict[str, str] | None, None),
    "garbage_collection_gen0_threshold": (int, 20000),
    "cuda_graph_config": (CudaGraphConfig | None, CudaGraphConfig),
    "attention_dp_config": (AttentionDpConfig | None, None),
    "disable_overlap_scheduler": (bool, False),
    "moe_config": (MoeConfig, MoeConfig),
    "nvfp4_gemm_config": (Nvfp4GemmConfig, Nvfp4GemmConfig),
    "attn_backend": (str, "TRTLLM"),
    "sampler_force_async_worker": (bool, False),
    "enable_iter_perf_stats": (bool, False),
    "enable_iter_req_stats": (bool, False),
    "print_iter_log": (bool, False),
    "batch_wait_timeout_ms": (Annotated[float, Field(ge=0)], 0),
    "batch_wait_timeout_iters": (NotNegative, 0),
    "batch_wait_max_tokens_ratio": (Share, 0),
    "torch_compile_config": (TorchCompileConfig | None, None),
    "enable_autotuner": (bool, True),
    "enable_layerwise_nvtx_marker": (bool, False),
    "enable_min_latency": (bool, False),
    "stream_interval": (Positive, 1),
    "force_dynamic_quantization": (bool, False),
    "allreduce_strategy": (ALLREDUCE | None, "AUTO"),
    "checkpoint_loader": (Any, None),
    "checkpoint_format": (str | None, None),
    "kv_connector_config": (Any, None),
    "mm_encoder_only": (bool, False),
    "ray_worker_extension_cls": (str | None, None),
    "ray_placement_config": (Any, None),
    "enable_sleep": (bool, False),
    "disable_flashinfer_sampling": (bool, False),
    "max_stats_len": (int, 1000),
}

UNTIL_1_2 = {
    "sampler_type": (Literal["TRTLLMSampler", "TorchSampler", "auto"], "auto"),
    "fail_fast_on_attention_window_too_large": (bool, False),
    "build_config": (Any, None),
}

FROM_1_3 = {
    "use_cute_dsl_blockscaling_mm": (bool, False),
    "use_cute_dsl_blockscaling_bmm": (bool, False),
    "layer_wise_benchmarks_config": (Any, dict),
    "generation_config": (Literal["auto", "trtllm"], "trtllm"),
    "encoder_cuda_graph_config": (Any, None),
    "enable_encoder_decoder_mixed_cuda_graph": (bool, True),
    "multimodal_config": (Any, dict),
    "dwdp_config": (Any, None),
    "encoder_max_batch_size": (int | None, None),
    "encoder_max_num_tokens": (int | None, None),
    "enable_mla_skip_correction": (bool, False),
    "mla_skip_correction_threshold": (float, 8.0),
    "enable_in_graph_sampling": (bool, False),
    "enable_speculative_beam_history_d2h": (bool, False),
    "enable_early_first_token_response": (bool, False),
    "enable_low_latency_host_dispatch": (bool, False),
    "prefill_cuda_graph_backend": (Any, "disabled"),
    "prefill_capture_num_tokens": (list[int] | None, None),
    "use_fine_grained_sync": (bool, False),
    "checkpoint_io_policy": (Literal["auto", "native", "rank_striped_read_ahead"], "auto"),
    "mx_config": (Any, dict),
    "gms_config": (Any, dict),
    "disable_mm_encoder": (bool, False),
    "encode_only": (bool, False),
    "post_processor_hook": (str | None, None),
    "kv_cache_compression_config": (Any, None),
    "num_serve_frontends": (Annotated[int, Field(ge=1, le=64)], 1),
    "perf_metrics_output_dir": (str | None, None),
    "prometheus_metrics_config": (Any, None),
    "enable_energy_metrics": (bool, False),
    "telemetry_config": (Any, dict),
}

OLD_DEFAULTS = {"max_batch_size": None, "max_input_len": None, "max_beam_width": None}  # of 1.2: None means the same


class _Arguments(Strict):
    """What all versions check."""

    @field_validator("load_format", mode="before", check_fields=False)
    @classmethod
    def name_of_format(cls, value: Any) -> Any:
        return LoadFormat[value.upper()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def of_this_backend(cls, given: Any) -> Any:
        if other := [name for name in given if name in OTHER_BACKEND]:
            raise ValueError(f"the PyTorch backend takes no {', '.join(other)}")
        return given


def arguments_class(moe_backends: tuple[str, ...], is_main: bool) -> type[BaseModel]:
    """TorchLlmArgs of a version: with MoE backends of these names, of the line after 1.2 or not."""
    moe = create_model("MoeConfig", __base__=MoeConfig, backend=(Literal[moe_backends], "AUTO"))
    rows = {**COMMON, **(FROM_1_3 if is_main else UNTIL_1_2), "moe_config": (moe, moe)}
    if not is_main:
        rows |= {name: (rows[name][0], default) for name, default in OLD_DEFAULTS.items()}
    if is_main:
        graphs = create_model("CudaGraphConfig", __base__=CudaGraphConfig, mode=(Literal["decode", "encode"], "decode"))
        rows["cuda_graph_config"] = (graphs | None, graphs)
    fields = {
        name: (kind, Field(default_factory=default) if isinstance(default, type) else default)
        for name, (kind, default) in rows.items()
    }
    return create_model("TorchLlmArgs", __base__=_Arguments, **fields)
