"""From the layers of a live model to what may be said of the whole. Every engine describes its layers; this adds up.

A description is plain data: `kind` (see kind_of), `module`, `quant_method`, `backend`, `kernel` (class names or words,
None where they cannot be read), `format` (of the weights as multiplied: a precision's name or the engine's own word),
`activations` (their format), `weight_dtypes` (as stored) and `compute_mode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]
PLAIN = ("fp32", "bf16", "fp16")
QUANT_ALGO = {"fp8": "FP8", "fp8_block": "FP8_BLOCK_SCALES", "nvfp4": "NVFP4", "mxfp4": "MXFP4"}  # ModelOpt's names


def kind_of(name: str) -> str:
    """Class of a layer by its name: experts, attention, head, router, embedding or other."""
    last = name.rpartition(".")[2]
    if ".experts" in name:
        return "experts"
    if "lm_head" in name:
        return "head"
    if last in ("gate", "router") or last.endswith("expert_gate"):
        return "router"
    if "embed" in last:
        return "embedding"
    return "attention" if "attn" in name or "attention" in name else "other"


def group(described: Iterable[tuple[str, Layer]]) -> list[dict[str, Any]]:
    """One entry for equal layers of a model, with their numbers as `layers`: "0-3, 5"; None outside the layers."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for name, description in described:
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        groups.setdefault(tuple(description.items()), []).extend([] if number is None else [number])
    return [{**dict(key), "layers": _ranges(numbers)} for key, numbers in groups.items()]


def summary(layers: Sequence[Layer]) -> dict[str, Any]:
    """The facts that follow from the layers: `precision` and `compute_mode` are those of the experts (of all linear
    layers in a model without experts), and name each part when they are not all alike."""
    products = [layer for layer in layers if layer["kind"] == "experts"] or _linear(layers)
    precision = _all_of(products, "format")
    return {
        "precision": precision,
        "compute_mode": _all_of(products, "compute_mode"),
        "quant_algo": QUANT_ALGO.get(precision),
        "quantize": _scope(layers),
        "weight_dtypes": _by_kind(layers, "weight_dtypes"),
        "formats": _by_kind(layers, "format"),
        "moe_backend": joined(layer["backend"] or layer["kernel"] for layer in products),
        "moe_kernel": joined(layer["kernel"] for layer in products),
        "layers": list(layers),
    }


def joined(words: Iterable[str | None]) -> str | None:
    """Different words as one, `a, b`; None when there is none."""
    return ", ".join(sorted({word for word in words if word})) or None


def _linear(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer["kind"] in ("attention", "other")]


def _all_of(layers: Sequence[Layer], what: str) -> str:
    values = {layer[what] for layer in layers}
    if len(values) == 1:
        return values.pop() or "unknown"
    return ", ".join(f"{layer[what] or 'unknown'} (layers {layer['layers']})" for layer in layers) or "unknown"


def _scope(layers: Sequence[Layer]) -> str | None:
    """What is quantised: `experts`, `linear` (attention's products, too), or None for nothing."""
    kinds = {layer["kind"] for layer in layers if layer["format"] not in (None, *PLAIN)}
    return "linear" if kinds & {"attention", "other"} else "experts" if "experts" in kinds else None


def _by_kind(layers: Sequence[Layer], what: str) -> dict[str, str | None]:
    kinds = dict.fromkeys(layer["kind"] for layer in layers)
    return {kind: joined(layer[what] for layer in layers if layer["kind"] == kind) for kind in kinds}


def _ranges(numbers: Sequence[int]) -> str | None:
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1][1:] = [number]
        else:
            pieces.append([number])
    return ", ".join("-".join(map(str, piece)) for piece in pieces) or None
