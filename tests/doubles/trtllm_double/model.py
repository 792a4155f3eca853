"""The model inside the double: transformers on the CPU, shown as the tree of modules TensorRT-LLM would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trtllm_double import Era

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SERVED = {  # by MoE backend, the algorithms it serves; None: unquantised. Others go to CUTLASS, with a warning
    "TRTLLM": {"FP8_BLOCK_SCALES", "NVFP4", "W4A16_MXFP4", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8"},
    "CUTEDSL": {"FP8_BLOCK_SCALES", "NVFP4"},
}
SERVED_IN_MAIN = {
    **{"TRTLLM": SERVED["TRTLLM"], "CUTEDSL": {"NVFP4"}, "DEEPGEMM": {"FP8_BLOCK_SCALES"}, "DENSEGEMM": {"NVFP4"}},
    **{"MARLIN": {"NVFP4", "W4A16_NVFP4"}, "MEGAMOE_DEEPGEMM": {"W4A8_MXFP4_MXFP8"}, "MEGAMOE_CUTEDSL": {"NVFP4"}},
}
CLASSES = {
    **{"CUTLASS": "CutlassFusedMoE", "TRTLLM": "TRTLLMGenFusedMoE", "DEEPGEMM": "DeepGemmFusedMoE"},
    **{"CUTEDSL": "CuteDslFusedMoE", "WIDEEP": "WideEPMoE", "TRITON": "TritonFusedMoE", "VANILLA": "VanillaMoE"},
    **{"DENSEGEMM": "DenseGEMMFusedMoE", "MARLIN": "MarlinFusedMoE"},
    **{"MEGAMOE_DEEPGEMM": "MegaMoEDeepGemm", "MEGAMOE_CUTEDSL": "MegaMoECuteDsl"},
}
UNWRAPPED = ("WIDEEP", "TRITON", "VANILLA")
FP8 = torch.float8_e4m3fn
STORED = {"FP8": FP8, "FP8_BLOCK_SCALES": FP8, None: torch.bfloat16}  # others as packed bytes


def build(args: Any, era: Era) -> tuple[Callable[[], PreTrainedModel], nn.Module]:
    """What computes, and what is shown of it. Random weights are made when they are first needed: a look needs none."""
    folder = Path(args.model)
    if args.dtype not in ("auto", "bfloat16"):
        raise ValueError(f"the double computes in bfloat16, not {args.dtype}")
    quant, is_random = quant_config(folder, era), args.load_format.name == "DUMMY"
    if quant.quant_algo is not None and not is_random:
        raise NotImplementedError("the double reads unquantised weights only; quantised ones as random weights")
    more = args.model_kwargs or {}
    config = SimpleNamespace(**{**json.loads((folder / "config.json").read_text()), **more})
    model = shown(config, quant, args.moe_config.backend, era)
    inside = cache(lambda: _inside(folder, more, is_random, model))
    if not is_random:
        inside()
    return inside, model


def _inside(folder: Path, more: dict[str, Any], is_random: bool, model: nn.Module) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM  # late: it takes seconds

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name, value in more.items():
        setattr(config, name, value)
    config._experts_implementation = "grouped_mm"
    if is_random:
        torch.manual_seed(0)
        inside = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        inside = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.bfloat16)
    connect(inside, model)
    return inside.eval()


def quant_config(folder: Path, era: Era) -> SimpleNamespace:
    """As TensorRT-LLM reads a checkpoint: what it does not know it takes for unquantised."""
    algorithm, kv, spared = None, None, []
    inline = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    if (folder / "hf_quant_config.json").exists():
        said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
        algorithm, kv = said.get("quant_algo"), said.get("kv_cache_quant_algo")
        spared = said.get("exclude_modules") or []
    elif inline.get("quant_method") == "fp8" and inline.get("weight_block_size") == [128, 128]:
        algorithm = "FP8_BLOCK_SCALES"
    elif era.is_main and inline.get("quant_method") == "modelopt":
        algorithm, kv = inline.get("quant_algo"), inline.get("kv_cache_quant_algo")
    return SimpleNamespace(quant_algo=algorithm, kv_cache_quant_algo=kv, exclude_modules=spared)


def moe_backend(asked: str, algorithm: str | None, era: Era) -> str:
    """Which one serves. TensorRT-LLM says so on stdout when it is another than asked for, else not at all."""
    if asked == "AUTO":
        return "CUTLASS"
    if era.is_main and asked in SERVED_IN_MAIN and algorithm not in SERVED_IN_MAIN[asked]:
        print(f"[TRT-LLM] [W] MoE backend {asked} cannot serve this layer ({algorithm}); running CUTLASS instead.")
        return "CUTLASS"
    if not era.is_main and asked in SERVED and algorithm not in SERVED[asked]:
        print(f"[TRT-LLM] [W] {CLASSES[asked]} does not serve {algorithm}. Using CutlassFusedMoE instead.", flush=True)
        return "CUTLASS"
    return asked


def shown(config: Any, quant: SimpleNamespace, asked: str, era: Era) -> nn.Module:
    """Modules by TensorRT-LLM's names, with weights of one number each: types are there, sizes are not."""
    plain = SimpleNamespace(quant_algo=None, kv_cache_quant_algo=quant.kv_cache_quant_algo)

    def linear(name: str) -> nn.Module:
        own = plain if any(pattern.strip("*") in name for pattern in quant.exclude_modules) else quant
        return _module("Linear", own, ["weight"])

    layers = []
    for number in range(config.num_hidden_layers):
        prefix = f"model.layers.{number}"
        attention = _module("Qwen3Attention", quant, [])
        attention.qkv_proj, attention.o_proj = (linear(f"{prefix}.self_attn.{name}") for name in ("qkv_proj", "o_proj"))
        attention.attn = type("TrtllmAttention", (), {})()
        feed_forward = _module("Qwen3MoE", quant, [])
        feed_forward.gate = _module("Qwen3Gate", plain, ["weight"])
        chosen = moe_backend(asked, quant.quant_algo, era)
        experts = _module(CLASSES[chosen], quant, ["w3_w1_weight", "w2_weight"])
        if chosen not in UNWRAPPED:
            wrapper = _module("ConfigurableMoE", quant, [])
            wrapper.backend = experts
            experts = wrapper
        feed_forward.experts = experts
        layer = _module("Qwen3MoEDecoderLayer", quant, [])
        layer.self_attn, layer.mlp = attention, feed_forward
        layers.append(layer)
    inner = _module("Qwen3MoEModel", plain, [])
    inner.embed_tokens, inner.layers = _module("Embedding", plain, ["weight"]), nn.ModuleList(layers)
    whole = _module("Qwen3MoeForCausalLM", quant, [])
    whole.model, whole.lm_head = inner, _module("LMHead", plain, ["weight"])
    pretrained = SimpleNamespace(torch_dtype=torch.bfloat16, num_hidden_layers=config.num_hidden_layers)
    whole.model_config = SimpleNamespace(quant_config=quant, pretrained_config=pretrained, moe_backend=asked)
    return whole


def connect(inside: PreTrainedModel, model: nn.Module) -> None:
    """What computes runs through what is shown, so that hooks on the modules shown are called."""
    pairs = [(inside, model), (inside.model, model.model), (inside.model.embed_tokens, model.model.embed_tokens)]
    pairs.append((inside.lm_head, model.lm_head))
    for theirs, ours in zip(inside.model.layers, model.model.layers):
        pairs += [(theirs, ours), (theirs.self_attn, ours.self_attn), (theirs.mlp, ours.mlp)]
        pairs += [(theirs.self_attn.o_proj, ours.self_attn.o_proj), (theirs.mlp.gate, ours.mlp.gate)]
        pairs.append((theirs.mlp.experts, ours.mlp.experts))
    for theirs, ours in pairs:
        ours.forward = theirs.forward
        theirs.forward = ours.__call__


def _module(name: str, quant: SimpleNamespace, weights: list[str]) -> nn.Module:
    module = type(name, (nn.Module,), {})()
    module.quant_config = quant
    for word in weights:
        dtype = STORED.get(quant.quant_algo, torch.uint8)
        module.register_parameter(word, nn.Parameter(torch.zeros(1, 1).to(dtype), requires_grad=False))
    return module
