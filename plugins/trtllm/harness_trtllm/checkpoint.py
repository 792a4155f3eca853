"""What TensorRT-LLM would make of a checkpoint, found before it loads: it says nothing when it loads unquantised.

The precision is the checkpoint's; no argument of the engine sets it. Reads JSON, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import LoadFailed, Setup, Unsupported, provenance
from harness.model.weights import folder_of

FORMATS = {  # the engine's algorithms -> our precisions
    None: "bf16",
    "FP8": "fp8",
    "FP8_BLOCK_SCALES": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A16_MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "W4A8_MXFP4_MXFP8": "mxfp4",
}
MODELOPT, CONFIG = "hf_quant_config.json", "config.json"
NOT_PRODUCTS = ["lm_head", "*embed_tokens*", "*mlp.gate", "*shared_expert_gate"]


@dataclass(frozen=True)
class Quant:
    """What the engine will read: an algorithm (None: unquantised), that of keys and values, and where it says so."""

    algorithm: str | None = None
    kv_algorithm: str | None = None
    said_in: str = CONFIG


def local(setup: Setup) -> Path:
    """The checkpoint's folder; one known to the hub only is fetched. Raises LoadFailed."""
    folder = folder_of(setup.source)
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(setup.source))
        except Exception as error:
            raise LoadFailed(f"{setup.source}: no folder, and not to be had from the hub: {error}") from error
    if not (folder / CONFIG).exists():
        raise LoadFailed(f"{folder}: no checkpoint: it has no {CONFIG}")
    return folder


def read(folder: Path, sm: int | None, reads_inline: bool) -> Quant:
    """The order is the engine's. `reads_inline`: whether this version parses ModelOpt's and nvfp4 sections in it.

    Raises Unsupported for what would load unquantised without a word."""
    if (folder / MODELOPT).exists():
        said = _json(folder / MODELOPT).get("quantization") or {}
        return Quant(said.get("quant_algo"), said.get("kv_cache_quant_algo"), MODELOPT)
    said = _json(folder / CONFIG).get("quantization_config")
    if not said:
        return Quant()
    method = said.get("quant_method")
    if method == "fp8":
        return Quant(_fp8(said, folder))
    if method == "mxfp4":
        return Quant(_mxfp4(sm))
    if method == "compressed-tensors":
        return Quant(_compressed(said, folder, reads_inline))
    if reads_inline and method in ("modelopt", "nvfp4"):
        return Quant(said.get("quant_algo") or "NVFP4", said.get("kv_cache_quant_algo"))
    hint = f"; export it with {MODELOPT}" if method == "modelopt" else ""
    raise Unsupported(f"{folder}: this TensorRT-LLM would ignore quant_method {method!r} and load it wrong{hint}")


def check(setup: Setup, quant: Quant) -> None:
    """Raises Unsupported where the checkpoint is of another precision."""
    if quant.algorithm == "MIXED_PRECISION":
        raise Unsupported(f"{setup.source} mixes precisions by layer; no one name of a precision is true of it")
    found = FORMATS.get(quant.algorithm, quant.algorithm)
    if found != setup.precision:
        named = f"{found} ({quant.algorithm} in {quant.said_in})" if quant.algorithm else "not quantised"
        advice = f"give --checkpoint {setup.precision}=PATH" if setup.precision != "bf16" else f"ask for {found}"
        raise Unsupported(f"{setup.source} is {named}; TensorRT-LLM takes precision from the checkpoint: {advice}")


def prepared(setup: Setup, folder: Path, quant: Quant, sm: int | None, into: Path) -> tuple[Path, Quant]:
    """What the engine opens: the folder; or `into`, with links to its files and other words about precision, for random
    weights in a format the checkpoint lacks, and where keys and values would be quantised with the weights."""
    if setup.weights == "dummy" and quant.algorithm is None and setup.precision != "bf16":
        algorithm = _mxfp4(sm) if setup.precision == "mxfp4" else provenance.QUANT_ALGO[setup.precision]
        spared = NOT_PRODUCTS + ["*self_attn*"] * (setup.quantize == "experts")
        said = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": spared}
        said |= {"group_size": 16} if algorithm == "NVFP4" else {}
        new = {MODELOPT: {"producer": {"name": "modelopt"}, "quantization": said}}
        return _linked(folder, into, new), Quant(algorithm, None, "a layout written for random weights")
    if quant.kv_algorithm is None:
        return folder, quant
    name = quant.said_in
    words = _json(folder / name)
    section = words["quantization" if name == MODELOPT else "quantization_config"]
    section["kv_cache_quant_algo"] = None  # else an FP8 checkpoint brings FP8 keys, a BF16 one BF16 keys
    return _linked(folder, into, {name: words}), Quant(quant.algorithm, None, name)


def config_of(folder: Path) -> dict[str, Any]:
    return _json(folder / CONFIG)


def _mxfp4(sm: int | None) -> str:
    return "W4A16_MXFP4" if (sm or 0) < 100 else "W4A8_MXFP4_MXFP8"


def _fp8(said: Mapping[str, Any], folder: Path) -> str:
    block = said.get("weight_block_size")
    if block is None:
        raise Unsupported(
            f"{folder}: fp8 without weight_block_size in {CONFIG}: TensorRT-LLM would load it as unquantised without a"
            f" word; a per-tensor FP8 checkpoint needs ModelOpt's {MODELOPT}"
        )
    if list(block) != [128, 128]:
        raise Unsupported(f"{folder}: FP8 blocks of {block}; TensorRT-LLM reads 128 x 128 only")
    return "FP8_BLOCK_SCALES"


def _compressed(said: Mapping[str, Any], folder: Path, reads_inline: bool) -> str:
    weights = [group.get("weights") or {} for group in (said.get("config_groups") or {}).values()]
    kinds = {(each.get("num_bits"), each.get("strategy"), each.get("group_size")) for each in weights}
    if len(kinds) == 1:
        bits, strategy, group = kinds.pop()
        if bits == 8 and strategy in ("channel", "token"):
            return "FP8_PER_CHANNEL_PER_TOKEN"
        if bits == 8 and (strategy == "block" or group == 128):
            return "FP8_BLOCK_SCALES"
        if reads_inline and bits == 4 and group == 16:
            return "NVFP4"
    found = sorted(kinds, key=str)
    raise Unsupported(f"{folder}: this TensorRT-LLM does not read compressed-tensors weights of {found}")


def _linked(folder: Path, into: Path, new: Mapping[str, Any]) -> Path:
    into.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name not in new:
            (into / file.name).symlink_to(file.resolve())
    for name, words in new.items():
        (into / name).write_text(json.dumps(words), encoding="utf-8")
    return into


def _json(path: Path) -> dict[str, Any]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path} cannot be read: {error}") from error
    if not isinstance(words, dict):
        raise LoadFailed(f"{path}: expected one JSON object")
    return words
