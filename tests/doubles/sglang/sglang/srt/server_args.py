"""The arguments of the engine. One that is not listed here is an error, as in SGLang."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

QUANTIZATIONS = (
    "awq fp8 mxfp8 gptq gptq_marlin awq_marlin bitsandbytes gguf modelopt modelopt_fp8 modelopt_fp4 nvfp4_online "
    "modelopt_mixed petit_nvfp4 w8a8_int8 w8a8_fp8 moe_wna16 w4afp8 mxfp4 compressed-tensors quark humming"
).split()
LOAD_FORMATS = "auto pt safetensors npcache dummy sharded_state gguf bitsandbytes mistral".split()
DTYPES = "auto half float16 bfloat16 float float32".split()


@dataclasses.dataclass
class ServerArgs:
    """Those the facts name, with their defaults."""

    model_path: str
    tokenizer_path: str | None = None
    skip_tokenizer_init: bool = False
    load_format: str = "auto"
    json_model_override_args: str = "{}"
    trust_remote_code: bool = False
    revision: str | None = None
    context_length: int | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    device: str | None = None
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    attn_dp_size: int = 1
    ep_size: int = 1
    moe_dp_size: int = 1
    moe_a2a_backend: str = "none"
    moe_runner_backend: str = "auto"
    attention_backend: str | None = None
    prefill_attention_backend: str | None = None
    decode_attention_backend: str | None = None
    mem_fraction_static: float | None = None
    max_total_tokens: int | None = None
    max_running_requests: int | None = None
    max_prefill_tokens: int = 16384
    chunked_prefill_size: int | None = None
    stream_interval: int = 1
    disable_radix_cache: bool = False
    disable_cuda_graph: bool = False
    disable_overlap_schedule: bool = False
    enable_torch_compile: bool = False
    enable_layerwise_nvtx_marker: bool = False
    random_seed: int | None = None
    enable_metrics: bool = False
    enable_return_routed_experts: bool = False
    enable_deterministic_inference: bool = False
    expert_distribution_recorder_mode: str | None = None
    speculative_algorithm: str | None = None
    watchdog_timeout: float = 300
    log_level: str = "info"
    custom_sigquit_handler: Callable[..., Any] | None = None

    def resolved_dict(self) -> dict[str, Any]:
        """The arguments after defaults were decided; the MoE runner may stay "auto"."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "attention_backend": self.attention_backend or "fa3",
            "chunked_prefill_size": self.chunked_prefill_size or 8192,
        }

    def check(self) -> None:
        """Raises ValueError for a choice SGLang does not have."""
        for name, choices in (("load_format", LOAD_FORMATS), ("dtype", DTYPES), ("quantization", QUANTIZATIONS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name} {value!r} is not one of {choices}")
        for name, type_ in (("skip_tokenizer_init", bool), ("disable_radix_cache", bool), ("tp_size", int)):
            if type(getattr(self, name)) is not type_:
                raise ValueError(f"{name} must be {type_.__name__}, got {getattr(self, name)!r}")


@dataclasses.dataclass
class PortArgs:
    """Where the processes meet: here one pipe."""

    requests: Any
