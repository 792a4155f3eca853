"""Configurations. As in the original, a name that is not known is logged and forgotten, and every name has a default."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONFIG_FILE = "neuron_config.json"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")}
PLAIN = {
    "padding_side": "right",
    "allow_input_truncation": False,
    "on_cpu": False,
    "output_logits": False,
    "is_continuous_batching": False,
    "on_device_sampling_config": None,
    "async_mode": False,
    "enable_bucketing": False,
    "context_encoding_buckets": None,
    "token_generation_buckets": None,
    "quantized": False,
    "quantized_checkpoints_path": None,
    "quantization_type": "per_tensor_symmetric",
    "quantization_dtype": "int8",
    "kv_cache_quant": False,
    "speculation_length": 0,
    "is_prefix_caching": False,
    "chunked_prefill_config": None,
    "tp_degree": 1,
    "cp_degree": 1,
    "pp_degree": 1,
    "ep_degree": 1,
    "save_sharded_checkpoint": False,
    "skip_warmup": False,
    "fused_qkv": False,
    "qkv_kernel_enabled": False,
    "attn_kernel_enabled": None,
    "mlp_kernel_enabled": False,
    "attn_block_tkg_nki_kernel_enabled": False,
}
MOE = {
    "early_expert_affinity_modulation": False,
    "fused_shared_experts": False,
    "return_expert_index": False,
    "return_router_logits": False,
    "hybrid_sharding_config": None,
    "moe_tp_degree": 1,
    "moe_ep_degree": 1,
    "router_config": None,
}


def sins(name: str) -> bool:
    """Whether the double was told to commit this fault: a word of NEURON_DOUBLE."""
    return name in os.environ.get("NEURON_DOUBLE", "").split(",")


class NeuronConfig:
    """What a graph is compiled for."""

    def __init__(self, **kwargs: Any) -> None:
        self.batch_size = kwargs.pop("batch_size", 1)
        self.max_batch_size = kwargs.pop("max_batch_size", self.batch_size)
        self.seq_len = kwargs.pop("seq_len", 128)
        self.n_positions = kwargs.pop("n_positions", self.seq_len)
        self.overrides_torch_dtype = kwargs.pop("overrides_torch_dtype", True) if "torch_dtype" in kwargs else False
        dtype = kwargs.pop("torch_dtype", torch.bfloat16)
        if isinstance(dtype, str):
            assert dtype in DTYPES, f"no dtype {dtype}"
            dtype = DTYPES[dtype]
        self.torch_dtype = dtype
        self.max_context_length = kwargs.pop("max_context_length", self.seq_len)
        self.max_new_tokens = kwargs.pop("max_new_tokens", self.seq_len - self.max_context_length) or None
        self.max_length = kwargs.pop("max_length", self.seq_len)
        assert self.max_context_length <= self.max_length, "a context longer than the whole"
        for name, default in PLAIN.items():
            setattr(self, name, kwargs.pop(name, default))
        assert not self.quantized or self.quantized_checkpoints_path is not None, "quantized, and no checkpoint so"
        if self.chunked_prefill_config is not None:
            raise NotImplementedError("no chunked prefill here")
        if kwargs:
            logging.warning("NeuronConfig does not know %s", kwargs)


class MoENeuronConfig(NeuronConfig):
    """That, of a mixture of experts."""

    def __init__(self, capacity_factor: float | None = None, glu_mlp: bool = True, **kwargs: Any) -> None:
        self.capacity_factor, self.glu_mlp = capacity_factor, glu_mlp
        self.normalize_top_k_affinities = not kwargs.pop("disable_normalize_top_k_affinities", False)
        self.blockwise_matmul_config = kwargs.pop("blockwise_matmul_config", {})
        for name, default in MOE.items():
            given = kwargs.pop(name, default)
            setattr(self, name, default if sins(name) else given)
        super().__init__(**kwargs)


class InferenceConfig:
    """The model's own configuration, with `neuron_config` in it."""

    def __init__(
        self,
        neuron_config: NeuronConfig,
        fused_spec_config: Any = None,
        load_config: Callable[[InferenceConfig], None] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.neuron_config, self.fused_spec_config, self.metadata = neuron_config, fused_spec_config, metadata
        if load_config is not None:
            load_config(self)
        for name, value in kwargs.items():
            setattr(self, name, value)
        missing = [name for name in self.get_required_attributes() if not hasattr(self, name)]
        assert not missing, f"the config lacks {missing}"

    def get_required_attributes(self) -> list[str]:
        return []

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return NeuronConfig

    def save(self, model_path: str) -> None:
        os.makedirs(model_path, exist_ok=True)
        Path(model_path, CONFIG_FILE).write_text(self.to_json_string() + "\n")

    def to_json_string(self) -> str:
        return json.dumps(as_dict(self), indent=2, sort_keys=True)


def as_dict(value: Any) -> Any:
    """As plain JSON; a dtype by its name."""
    if isinstance(value, dict):
        return {key: as_dict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(inner) for inner in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return as_dict(vars(value)) if hasattr(value, "__dict__") else value
