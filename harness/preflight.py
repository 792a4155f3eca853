"""What a config.json rules out by arithmetic alone, said before anything is loaded, in the words of the broken rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.cells import Setup
from harness.precision import EMULATED
from harness.shape import EXPERT_COUNTS, FAMILIES
from harness.weights import config_of

FP8_BLOCK = 128
# What other programs keep in a model's folder, and no engine here opens.
FOREIGN = {
    "*.engine": "a compiled TensorRT engine; the PyTorch backend opens the Hugging Face checkpoint it was built from",
    "*.gguf": "llama.cpp's GGUF; give the Hugging Face checkpoint",
    "*.npz": "MLX's weights; give the Hugging Face checkpoint",
}


def broken_rule(setup: Setup, parameters: Mapping[str, Any], compute_mode: str) -> str | None:
    """The first rule that this cell breaks; None where none is broken, or nothing can be told of the model."""
    if reason := _foreign(setup.source):
        return reason
    config = config_of(setup.source) or config_of(setup.path) or {}
    text = config.get("text_config")
    return next(_broken(setup, parameters, compute_mode, text if isinstance(text, dict) else config), None)


def _broken(setup: Setup, parameters: Mapping[str, Any], compute_mode: str, config: Mapping[str, Any]) -> Iterator[str]:
    tp, ep = setup.tp, setup.ep
    if tp % ep:
        yield f"--ep {ep} does not divide --tp {tp}: experts are spread over the ranks of tensor parallelism"
        return
    slices = tp // ep  # of each expert
    heads, kv_heads = _count(config, "num_attention_heads"), _count(config, "num_key_value_heads")
    experts, width = _count(config, *EXPERT_COUNTS), _expert_width(config)
    if heads and heads % tp:
        yield f"--tp {tp} does not divide the {heads} attention heads (num_attention_heads)"
    if kv_heads and kv_heads % tp and tp % kv_heads:
        yield f"--tp {tp}: {kv_heads} key/value heads (num_key_value_heads) can be neither split nor copied evenly"
    if experts and experts % ep:
        yield f"--ep {ep} does not divide the {experts} experts of a layer"
    if width and width % slices:
        yield f"--tp {tp} / --ep {ep} = {slices} does not divide an expert's width of {width}"
    elif width and setup.precision == "fp8_block" and compute_mode != EMULATED and width // slices % FP8_BLOCK:
        yield (
            f"FP8 blocks: an expert's width / (tp / ep) = {width} / ({tp} / {ep}) = {width // slices} is no multiple"
            f" of {FP8_BLOCK}; choose a larger --ep or a smaller --tp"
        )
    longest = parameters.get("input_len", 0) + parameters.get("output_len", 0)
    if (most := _count(config, "max_position_embeddings")) and longest > most:
        yield f"{longest} tokens are more than the model's {most} positions (max_position_embeddings)"


def _foreign(source: str) -> str | None:
    """Of a folder whose weights are of another program's kind, and no others."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    found = next((what for pattern, what in FOREIGN.items() if any(folder.glob(pattern))), None)
    return found and f"{source} holds {found}"


def _expert_width(config: Mapping[str, Any]) -> int | None:
    family = FAMILIES.get(config.get("model_type"))
    return _count(config, (family and family.expert_width) or "moe_intermediate_size")


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a positive whole number."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
