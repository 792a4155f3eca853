"""How near a step comes to its GPU's limits: bytes and FLOPs counted from config.json, over known or measured peaks.

Counted is what no engine can do without: each weight that is used is read once, keys and values are written once and
read once, products are multiply-accumulates (2 FLOPs) of the tokens asked for. So a step that took less than its floor
means that the count or the peak is wrong, or that the routing was far from uniform.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.jsonfile import Node
from harness.model.shape import KIND_OF, Config, Shape, Uncountable, shape_of
from harness.precision import EMULATED, PRECISIONS, WEIGHT_ONLY

BITS = {name: precision.bits for name, precision in PRECISIONS.items()} | {"fp16": 16, "fp8 per channel": 8}
RATE_OF = {"fp16": "bf16", "fp8_block": "fp8", "fp8 per channel": "fp8", "mxfp4": "nvfp4"}  # multiplied as fast as
CACHE_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8": "fp8", "fp8_e4m3": "fp8"}
CACHE_FORMATS |= {"float8_e4m3fn": "fp8", "fp8_e5m2": "fp8", "float8_e5m2": "fp8"}
ASSUMED = (
    "routing is uniform: N tokens that choose k of E experts use E x (1 - (1 - k/E)^N) of them",
    "intermediate results stay on the chip, no weight is read twice, work is spread evenly over the devices",
)
_KEYS = "seconds bytes flops bytes_per_s flops_per_s hbm_share tensor_share floor_seconds bound share_of_limit"
NOTHING = dict.fromkeys(f"{_KEYS} problem reason assumed".split())


@dataclass(frozen=True)
class Part:
    """What one part of a model reads, writes and multiplies in one step."""

    name: str
    bytes: float
    flops: float
    format: str  # multiplied in; not always what the weights are stored in


@dataclass(frozen=True)
class Work:
    """One step: a prefill of whole prompts, or one token more for each sequence."""

    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        return math.fsum(part.bytes for part in self.parts)

    @property
    def flops(self) -> float:
        return math.fsum(part.flops for part in self.parts)


@dataclass(frozen=True)
class Peaks:
    """The limits of one GPU. Measured ones stand in for those of a data sheet with `dataclasses.replace`."""

    hbm_bytes_per_s: float
    flops_per_s: Mapping[str, float]  # dense products by format: fp32 (no tensor cores), bf16, fp8, nvfp4
    source: str  # in words


def count(
    config: Config,
    formats: Mapping[str, str],
    batch: int,
    tokens: int,
    context: float,
    kv_dtype: str,
    multiplied: Mapping[str, str] | None = None,
    logits: int = 1,
) -> Work:
    """The work of one step of `batch` sequences with `tokens` new tokens each, after `context` tokens in the cache.

    `formats`: of the stored weights by kind of layer (a record's `effective.formats`); `multiplied`: in which they are
    multiplied, where that is another one. `kv_dtype` by its name in torch. `logits`: per sequence, 1 in generation.
    Raises Uncountable for a config.json or a format that says too little.
    """
    shape, new = shape_of(config), batch * tokens
    cache_format = CACHE_FORMATS.get(kv_dtype)
    if cache_format is None:
        raise Uncountable(f"the dtype {kv_dtype!r} of the KV cache is not known here")
    used = _used_experts(shape, new)
    rows = {"experts": new * shape.chosen / shape.experts if shape.experts else 0, "head": batch * logits}
    share_read = {"experts": used / shape.experts if shape.experts else 0, "embedding": 0}
    parts = []
    for name, weights in shape.weights.items():
        if not weights:
            continue
        format = _format_of(name, formats)
        size = weights * share_read.get(name, 1) if name != "embedding" else new * shape.hidden  # a row per token
        flops = 2 * weights * rows.get(name, new) if name not in ("embedding", "norms") else 0
        parts.append(Part(name, size * BITS[format] / 8, flops, (multiplied or {}).get(KIND_OF[name], format)))
    pairs = batch * sum(_pairs(tokens, context, window) for window in shape.windows)
    read = batch * sum(min(context, window - 1) if window else context for window in shape.windows)
    per_token = shape.cached * BITS[cache_format] / 8
    macs = shape.pair_decode if tokens == 1 else shape.pair_prefill
    parts += [
        Part("attention scores", 0, 2 * pairs * macs, cache_format),
        Part("KV cache read", read * per_token, 0, cache_format),
        Part("KV cache write", new * len(shape.windows) * per_token, 0, cache_format),
    ]
    return Work(tuple(parts))


def peaks_of(gpu_name: str | None) -> Peaks | None:
    """Dense peaks of a GPU by its name in NVML, from public data sheets; None for one that is not listed."""
    name = (gpu_name or "").removeprefix("NVIDIA ")
    for row in _known_peaks():
        if re.fullmatch(row["gpu"], name):
            flops = {format: value * 1e12 for format, value in row["tflops"].items()}
            return Peaks(row["hbm_tb_per_s"] * 1e12, flops, row["source"])
    return None


def roofline(work: Work, seconds: float, peaks: Peaks | None, devices: int = 1) -> dict[str, Any]:
    """What a step achieved, and which share of the limit that is. Plain data, null with `reason` where it is not known.

    `floor_seconds` is the larger of bytes over bandwidth and of FLOPs over the peaks of the formats they are done in;
    `share_of_limit` is floor / seconds, never clipped: above 1 it comes with a `problem`.
    """
    found = {**NOTHING, "seconds": seconds, "bytes": work.bytes, "flops": work.flops, "assumed": list(ASSUMED)}
    if not (math.isfinite(seconds) and seconds > 0):
        return {**found, "seconds": None, "reason": f"no time to divide by: {seconds!r} s"}
    found |= {"bytes_per_s": work.bytes / seconds, "flops_per_s": work.flops / seconds}
    if peaks is None:
        return {**found, "reason": "no peaks are known of this device; give measured ones"}
    memory = work.bytes / (peaks.hbm_bytes_per_s * devices)
    found["hbm_share"] = memory / seconds
    rates = {part: peaks.flops_per_s.get(RATE_OF.get(part.format, part.format)) for part in work.parts if part.flops}
    if missing := sorted({part.format for part, rate in rates.items() if rate is None}):
        return {**found, "reason": f"no peak is known for products in {', '.join(missing)} ({peaks.source})"}
    products = math.fsum(part.flops / rate for part, rate in rates.items()) / devices
    floor = max(memory, products)
    if floor > seconds:
        found["problem"] = (
            f"took {seconds * 1e3:.4g} ms, less than the floor of {floor * 1e3:.4g} ms: the count or the peak is wrong"
        )
    return {
        **found,
        "tensor_share": products / seconds,
        "floor_seconds": floor,
        "bound": "memory" if memory >= products else "products",
        "share_of_limit": floor / seconds,
    }


def of_record(
    record: Mapping[str, Any], config: Config | None, peaks: Peaks | None = None
) -> dict[str, dict[str, Any]]:
    """`prefill` and `decode` of a perf record, each as `roofline` gives it and with its `time` and `peaks` in words.

    Peaks are looked up by the record's GPU where none are given. Where nothing can be said all values are null and
    `reason` says why. Prefill takes until the last request of a batch has its first token; a decode step is the median
    gap between tokens, as the mean holds the gaps in which other requests were prefilled.
    """
    node = Node(record, "record")  # read with care: it may come from another hand
    gpu_name = record.get("gpu_name")
    peaks = peaks or peaks_of(gpu_name if isinstance(gpu_name, str) else None)
    found = {}
    for phase, measured in (("prefill", _prefill), ("decode", _decode)):
        try:
            _check(node)
            time, seconds, tokens, context = measured(node)
            work = count(**_as_run(node, config), tokens=tokens, context=context)
            found[phase] = {"time": time, **roofline(work, seconds, peaks, _devices(node))}
        except UsageError as error:
            found[phase] = {"time": None, **NOTHING, "reason": str(error)}
        found[phase]["peaks"] = peaks.source if peaks else None
    return found


def _check(node: Node) -> None:
    workload, status = node.at("workload").text(), node.at("status").text()
    if workload != "perf" or status not in ("ok", "mismatch"):
        raise Uncountable(f"no speed was measured: {workload}, {status}")
    if node.at("compute_mode").text() == EMULATED:
        raise Uncountable("emulated: the format's products were not computed, so its speed means nothing")
    if missing := [name for name in ("batch_size", "input_len", "output_len") if not node.at(name).count()]:
        raise Uncountable(f"the record has no {', '.join(missing)}")


def _prefill(node: Node) -> tuple[str, float, int, float]:
    """What the time is, seconds, new tokens and tokens in the cache of each sequence."""
    if not (rate := node.at("prefill_tokens_per_sec").number()):
        raise Uncountable("the time to the first token was not measured")
    if node.at("conditions", "prefix_cache_hits").value:
        raise Uncountable("a part of the prompts came from the prefix cache")
    tokens = node.at("input_len").count()
    return "last TTFT of the batch, mean", node.at("batch_size").count() * tokens / rate, tokens, 0


def _decode(node: Node) -> tuple[str, float, int, float]:
    """The same of one token more."""
    if not (gap := node.at("itl_ms", "p50").number()):
        raise Uncountable("no gaps between tokens were measured")
    if node.at("conditions", "speculative_decoding").value not in (None, "off"):
        raise Uncountable("with speculative decoding a step gives more than one token")
    # The first token comes from the prefill; each step sees one token more than the one before it.
    context = node.at("input_len").count() + (node.at("output_len").count() - 2) / 2
    return "median ITL", gap / 1e3, 1, context


def _as_run(node: Node, config: Config | None) -> dict[str, Any]:
    """The arguments of `count` that a record has."""
    if config is None:
        raise Uncountable("the model's config.json is not at hand")
    formats, kv_dtype = node.at("effective", "formats"), node.at("effective", "kv_dtype").text()
    if not formats.value or not kv_dtype:
        raise Uncountable("the engine did not say the number formats of its layers, or of its cache")
    return {
        "config": config,
        "formats": {kind: formats.at(kind).text() for kind in set(KIND_OF.values())},
        "batch": node.at("batch_size").count(),
        "kv_dtype": kv_dtype,
        "multiplied": dict(_multiplied(node.at("effective", "layers").items())),
    }


def _multiplied(layers: Iterable[Node]) -> Iterator[tuple[str, str]]:
    """Kinds of layer and the format of their products: the wider one of weights and activations."""
    for layer in layers:
        kind, weights, mode = (layer.at(name).text() for name in ("kind", "format", "compute_mode"))
        activations = layer.at("activations").text() or "as weights"
        if mode == EMULATED:
            raise Uncountable(f"emulated: the {kind} were not computed in {weights}")
        if mode == WEIGHT_ONLY or activations == "16 bit":
            yield kind, "bf16"
        elif activations != "as weights" and weights in BITS:
            if activations not in BITS:
                raise Uncountable(f"the {kind} multiply by {activations}, a format that is not known here")
            yield kind, max(weights, activations, key=BITS.__getitem__)


def _devices(node: Node) -> int:
    tp, ep = (node.at("requested", name).count() or 1 for name in ("tp", "ep"))
    return node.at("effective", "ranks").count() or max(tp, ep)


def _format_of(part: str, formats: Mapping[str, str]) -> str:
    kind = KIND_OF[part]
    found = formats.get(kind) or (formats.get("embedding") if kind == "head" else None)  # tied: one layer, two names
    if found not in BITS:
        what = "is not said" if found is None else f"is {found!r}, which cannot be counted"
        raise Uncountable(f"the number format of the {part} (kind {kind}) {what}")
    return found


def _used_experts(shape: Shape, tokens: int) -> float:
    """Expected number of different experts per layer; exact for one token."""
    if not shape.experts or tokens == 1:
        return shape.chosen
    return shape.experts * (1 - (1 - shape.chosen / shape.experts) ** tokens)


def _pairs(tokens: int, context: float, window: int | None) -> float:
    """Pairs of a query and a key that it sees, itself among them, of one sequence in one layer."""
    growing = tokens if window is None else min(max(math.floor(window - context), 0), tokens)
    return growing * context + growing * (growing + 1) / 2 + (tokens - growing) * (window or 0)


@cache
def _known_peaks() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parents[1] / "data" / "peaks.json").read_text(encoding="utf-8"))
