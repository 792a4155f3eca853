"""Opens a model: safetensors only, nothing missing, no code from its repository unless asked; or random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness import LoadFailed, Setup, Unsupported
from harness.provenance import PLAIN
from harness_hf.modules import every_experts
from harness_hf.rungs import Asked

EXPERTS = "grouped_mm"  # one product per layer; the fastest of transformers' on a CPU and for prefill on a GPU


def open_model(setup: Setup, device: torch.device, rungs: Asked) -> PreTrainedModel:
    """The model on `device`, in FP32 if that is the precision, else in BF16, ready for inference; with --tp this rank's
    part of it, in a process group of all ranks.

    Raises LoadFailed, Unsupported, or what transformers raises."""
    if (folder := Path(setup.source)).is_absolute() and not folder.is_dir():
        raise LoadFailed(f"there is no folder {folder}")  # transformers would take it for a hub id
    config = AutoConfig.from_pretrained(setup.source, trust_remote_code=setup.trust_remote_code)
    if quantised := getattr(config, "quantization_config", None):
        method = (
            quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "?")
        )
        raise LoadFailed(
            f"{setup.source} is quantised already ({method}); the hf engine takes BF16 checkpoints and quantises them itself"
        )
    config._experts_implementation = _experts_implementation(setup, rungs)
    make = _random if setup.weights == "dummy" else _stored
    # where nothing is said transformers chooses: SDPA where the model has it
    attention = {} if "sdpa" in rungs.on else {"attn_implementation": "eager"}
    model = make(config, setup, device, **attention, **_cut(config, setup)).eval()
    if setup.tp > 1 and (whole := [name for name, experts in every_experts(model) if _is_whole(experts.down_proj)]):
        raise Unsupported(f"transformers leaves the experts of {type(model).__name__} whole on every rank ({whole[0]})")
    return model


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of it."""
    return parameter if _is_whole(parameter) else parameter.to_local()


def _is_whole(parameter: torch.Tensor) -> bool:
    return not hasattr(parameter, "to_local")


def _cut(config: Any, setup: Setup) -> dict[str, Any]:
    """What makes from_pretrained cut the model over the ranks, by the plan it has for this architecture."""
    if setup.tp == 1:
        return {}
    try:
        from transformers.distributed import DistributedConfig

        cut = DistributedConfig(tp_size=setup.tp)
    except (ImportError, TypeError):
        raise Unsupported(f"--tp: transformers {transformers.__version__} does not cut models this way; 5.17 does")
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):  # it copies no key/value heads, and cuts none in two
        if (heads := getattr(text, name, None) or 0) % setup.tp:
            raise Unsupported(
                f"--tp {setup.tp} does not divide {name} = {heads}; transformers splits heads, copies none"
            )
    return {"distributed_config": cut}


def _dtype(setup: Setup) -> torch.dtype:
    return torch.float32 if setup.precision == "fp32" else torch.bfloat16


def _experts_implementation(setup: Setup, rungs: Asked) -> str:
    if setup.moe_backend == "auto":  # an emulated product needs an implementation that shows both inputs
        return EXPERTS if "grouped_experts" in rungs.on or setup.precision not in PLAIN else "eager"
    known = ("eager", *ALL_EXPERTS_FUNCTIONS.valid_keys())
    if setup.moe_backend not in known:
        raise LoadFailed(f"transformers has no experts implementation {setup.moe_backend!r}; it has {', '.join(known)}")
    if setup.moe_backend == "eager" and setup.precision not in PLAIN:
        raise LoadFailed("the eager experts hide the input of their second product, so it cannot be converted")
    return setup.moe_backend


def _stored(config: Any, setup: Setup, device: torch.device, **how: Any) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        setup.source,
        config=config,
        dtype=_dtype(setup),
        use_safetensors=True,  # never a pickle
        trust_remote_code=setup.trust_remote_code,
        output_loading_info=True,
        **how,
    )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):  # transformers fills holes with random numbers
        if found := info.get(problem):
            words = ", ".join(map(str, sorted(found, key=str)[:3]))
            raise LoadFailed(
                f"{setup.source} is no whole checkpoint: {len(found)} {problem.replace('_', ' ')}, such as {words}"
            )
    return model if setup.tp > 1 else model.to(device)


def _random(
    config: Any, setup: Setup, device: torch.device, distributed_config: Any = None, **how: Any
) -> PreTrainedModel:
    """Weights as the model's own initialiser draws them, on the device itself, from the seed. With --tp every rank draws
    all of them, then keeps its part: the model is the one that a single device draws, and must fit there beside it."""
    torch.manual_seed(setup.seed)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(setup), trust_remote_code=setup.trust_remote_code, **how
        )
    if distributed_config is None:
        return model
    how |= {"dtype": _dtype(setup), "distributed_config": distributed_config}
    part = type(model).from_pretrained(None, config=config, state_dict=model.state_dict(), **how)
    for parameter in part.parameters():
        if not _is_whole(parameter):  # a slice would keep all of the tensor that it is of
            parameter._local_tensor = parameter._local_tensor.clone()
    del model
    torch.cuda.empty_cache()
    return part
