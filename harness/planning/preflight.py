"""What a config.json rules out by arithmetic alone, said before anything is loaded, in the words of the broken rule."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.cells import Cell, Setup
from harness.device import Device
from harness.model.footprint import Footprint, footprint
from harness.model.shape import EXPERT_COUNTS, FAMILIES, Shape, Uncountable, shape_of
from harness.model.weights import config_of
from harness.precision import EMULATED

FP8_BLOCK = 128
GIB = 1 << 30
TIGHT = 0.95  # of a GPU's memory: what is left goes to the CUDA context, graphs and workspaces
MOST_RANKS = 64  # looked at for a split that fits
MOST_LAYERS = 10_000  # a config.json that says more is no model's, and would take long to count
# What other programs keep in a model's folder, and no engine here opens.
FOREIGN = {
    "*.engine": "a compiled TensorRT engine; the PyTorch backend opens the Hugging Face checkpoint it was built from",
    "*.gguf": "llama.cpp's GGUF; give the Hugging Face checkpoint",
    "*.npz": "MLX's weights; give the Hugging Face checkpoint",
}


def broken_rule(
    setup: Setup, parameters: Mapping[str, Any], compute_mode: str, device: Device | None = None
) -> str | None:
    """The first rule that this cell breaks; None where none is broken, or nothing can be told of the model.

    That the weights fit is looked at where the memory of `device` is known."""
    if reason := _foreign(setup.source):
        return reason
    broken = next(_broken(setup, parameters, compute_mode, _model_of(setup).config), None)
    return broken or (_too_large(setup, parameters, compute_mode, device) if device else None)


def memory(setup: Setup, parameters: Mapping[str, Any], compute_mode: str) -> Footprint | None:
    """What this cell takes on each GPU. Where a checkpoint's scope of quantisation is not said, the least it can be.
    None where config.json says too little, or names another format than the cell: what would run is then not known."""
    model = _model_of(setup)
    precision = "bf16" if compute_mode == EMULATED else setup.precision  # emulation keeps 16 bits
    if model.shape is None or model.stored and not _is_of(precision, model.stored):
        return None
    scope = _scope(model.stored) if model.stored else "linear" if setup.checkpoint else setup.quantize
    return _counted(model, precision, scope, setup.tp, setup.ep, parameters.get("batch_size", 1), _tokens(parameters))


def tight(setup: Setup, parameters: Mapping[str, Any], compute_mode: str, device: Device) -> str | None:
    """Words for a cell whose weights fit, but which may take more than TIGHT of the memory (an upper estimate)."""
    there, need, ranks = device.memory_bytes, memory(setup, parameters, compute_mode), _sharing(setup, device)
    if not there or need is None or not TIGHT * there < need.total * ranks or need.weights * ranks > there:
        return None
    parts = {"weights": need.weights, "KV cache": need.cache, "activations": need.activations}
    sum_of = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return f"tight: {sum_of} = {need.total / GIB:.1f} GiB {_where(setup, device)}, {there / GIB:.1f} GiB there"


def duplicates(cells: Iterable[Cell], runs: Callable[[Setup], str | None]) -> list[tuple[Cell, Cell, str]]:
    """Pairs of cells that would measure the same thing, the first to be kept, and why.

    `runs` says which MoE backend a setup's `moe_backend` comes to, None where that is not known; of `auto` nothing is
    then assumed, any other name stands for itself. Skipped cells are left out."""
    first: dict[tuple[Setup, str, str], Cell] = {}
    found = []
    for cell in cells:
        asked = cell.setup.moe_backend
        backend = runs(cell.setup) or (asked if asked != "auto" else None)
        if cell.skip is not None or backend is None:
            continue
        same = replace(cell.setup, moe_backend=backend.lower())
        kept = first.setdefault((same, cell.workload, json.dumps(cell.parameters, sort_keys=True)), cell)
        if kept is not cell:
            names = dict.fromkeys((kept.setup.moe_backend, asked))
            found.append((kept, cell, f"--moe-backend {' and '.join(names)}: both run {backend.lower()}"))
    return found


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
    longest = _tokens(parameters)
    if (most := _count(config, "max_position_embeddings")) and longest > most:
        yield f"{longest} tokens are more than the model's {most} positions (max_position_embeddings)"


def _too_large(setup: Setup, parameters: Mapping[str, Any], compute_mode: str, device: Device) -> str | None:
    """Weights alone beyond the memory there is. On a CPU all ranks share the host's."""
    there, need = device.memory_bytes, memory(setup, parameters, compute_mode)
    if not there or need is None or need.weights * _sharing(setup, device) <= there:
        return None
    emulated = " emulated in bf16" if compute_mode == EMULATED else ""
    split = f"tp {setup.tp}, ep {setup.ep}" if setup.ep > 1 else f"tp {setup.tp}"
    weights = f"weights {need.weights / GIB:.1f} GiB {_where(setup, device)} ({setup.precision}{emulated}, {split})"
    wider = _wider(setup, parameters, compute_mode, need.weights, there) if device.kind == "cuda" else ""
    return f"{weights}, {there / GIB:.1f} GiB there{wider}"


def _wider(setup: Setup, parameters: Mapping[str, Any], compute_mode: str, weights: float, there: int) -> str:
    """The next split that the weights fit in and that breaks no rule."""
    tp = setup.tp
    while (tp := 2 * tp) <= MOST_RANKS:
        if weights * setup.tp > there * tp:
            continue  # no split does better than even
        for ep in dict.fromkeys((tp if setup.ep == setup.tp > 1 else setup.ep, tp)):
            wider = replace(setup, tp=tp, ep=ep)
            need = memory(wider, parameters, compute_mode)
            if need and need.weights <= there and broken_rule(wider, parameters, compute_mode) is None:
                options = f"--tp {tp} --ep {ep}" if ep > 1 else f"--tp {tp}"
                return f"; {options} would need {need.weights / GIB:.1f}"
    return f"; no --tp up to {MOST_RANKS} helps"


def _where(setup: Setup, device: Device) -> str:
    if device.kind == "cpu":
        return f"for each of {setup.tp} ranks" if setup.tp > 1 else "of memory"
    return f"on each of {setup.tp} GPUs" if setup.tp > 1 else "on one GPU"


def _sharing(setup: Setup, device: Device) -> int:
    """Ranks in one memory."""
    return setup.tp if device.kind == "cpu" else 1


def _scope(stored: Mapping[str, Any]) -> str:
    """Of a checkpoint, by its quantization_config: engines' names for what it leaves alone."""
    left = [stored[name] for name in ("ignore", "modules_to_not_convert", "exclude_modules") if stored.get(name)]
    return "experts" if "attn" in str(left) else "linear"


def _is_of(precision: str, stored: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that it holds this precision: `fp8_block` by `fp8`, `nvfp4` by `NVFP4`."""
    said = " ".join(str(stored.get(name)) for name in ("quant_method", "quant_algo", "format")).lower()
    return precision.partition("_")[0] in said


def _tokens(parameters: Mapping[str, Any]) -> int:
    """Of each sequence, at its end."""
    return parameters.get("input_len", 0) + parameters.get("output_len", 0)


@dataclass(frozen=True, eq=False)
class _Model:
    """What its config.json says. Equal to itself alone, which is enough for a key: `_read` keeps it."""

    config: Mapping[str, Any]  # of the language model; empty where there is none
    stored: Mapping[str, Any] | None  # quantization_config of the checkpoint that is opened
    shape: Shape | None  # None: it cannot be counted


def _model_of(setup: Setup) -> _Model:
    opened = _stamp(setup.source)
    return _read(setup.source, setup.path, opened, _stamp(setup.path) if setup.checkpoint else opened)


@lru_cache(maxsize=256)
def _read(source: str, path: str, *stamps: tuple[int, int] | None) -> _Model:
    """Kept, as thousands of cells are of a few models; a file that changed has another stamp."""
    opened = config_of(source)
    config = opened or (config_of(path) if path != source else None) or {}
    text, stored = config.get("text_config"), (opened or {}).get("quantization_config")
    config = text if isinstance(text, dict) else config
    try:
        shape = shape_of(config) if (_count(config, "num_hidden_layers") or 0) <= MOST_LAYERS else None
    except Uncountable:
        shape = None
    return _Model(config, stored if isinstance(stored, dict) else None, shape)


@lru_cache(maxsize=4096)
def _counted(model: _Model, precision: str, scope: str, tp: int, ep: int, batch_size: int, tokens: int) -> Footprint:
    kv_bits, kv_heads = 32 if precision == "fp32" else 16, _count(model.config, "num_key_value_heads")
    return footprint(model.shape, precision, scope, tp, ep, batch_size, tokens, kv_bits, kv_heads)


def _stamp(folder: str) -> tuple[int, int] | None:
    try:
        found = os.stat(f"{folder}/config.json")
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


def _foreign(source: str) -> str | None:
    """Of a folder whose weights are of another program's kind, and no others."""
    folder = Path(source)
    if not os.path.isdir(source) or any(folder.glob("*.safetensors")):
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
