"""The ladder of the HF engine: its rungs in order, which a load asks for, and why one cannot be on. No torch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import LoadFailed
from harness.engine import Rung
from harness.precision import PRECISIONS

if TYPE_CHECKING:
    from harness.device import Device

NODES = Path("/sys/devices/system/node")
NOT_ASKED = "not asked for"
FP8 = ("fp8", "fp8_block")  # per tensor, in blocks


def _anywhere(precision: str, device: Device) -> str | None:
    return None


def _on_a_gpu(precision: str, device: Device) -> str | None:
    return None if device.kind == "cuda" else "needs an NVIDIA GPU"


def _tf32(precision: str, device: Device) -> str | None:
    if device.kind != "cuda" or not device.sm or device.sm < 80:
        return "TF32 is arithmetic of NVIDIA's tensor cores from SM 80 on"
    return "fp32 is the reference: no TF32" if precision == "fp32" else None


def _numa(precision: str, device: Device) -> str | None:
    if device.kind != "cuda":
        return "binds to the node of an NVIDIA GPU"
    nodes = len(list(NODES.glob("node[0-9]*")))
    return "this machine has one NUMA node" if nodes < 2 else None


def _graphs(precision: str, device: Device) -> str | None:
    if precision == "fp32":
        return "PyTorch has no grouped product in FP32 that a graph could hold"
    return _on_a_gpu(precision, device)


def _compile(precision: str, device: Device) -> str | None:
    if device.kind == "cuda":
        return _graphs(precision, device)
    return None if any(map(shutil.which, ("g++", "c++", "clang++"))) else "no C++ compiler is on the path"


def _fused_step(precision: str, device: Device) -> str | None:
    if precision not in ("bf16", *FP8):
        return "its kernels are for BF16 and FP8"
    if device.kind == "cuda" and not PRECISIONS["bf16"].on_tensor_cores(device.sm or 0):
        return f"BF16 tensor cores need {PRECISIONS['bf16'].tensor_cores}"
    return _on_a_gpu(precision, device)


def _fp8(precision: str, device: Device) -> str | None:
    if device.kind != "cuda" or not PRECISIONS[precision].on_tensor_cores(device.sm or 0):
        return f"FP8 tensor cores need {PRECISIONS[precision].tensor_cores}"
    return None


_FIXED, _GRAPH = ("static_cache",), ("static_cache", "grouped_experts")
LADDER = (
    Rung("tf32", "TF32 for FP32 products and cuDNN; a BF16 model has no FP32 product", problem=_tf32),
    Rung("numa", "the process stays on the cores beside the GPU", problem=_numa),
    Rung("sdpa", "scaled dot-product attention in place of matrices and softmax", problem=_anywhere),
    Rung("grouped_experts", "one grouped product for all experts in place of a loop over them", problem=_anywhere),
    Rung("static_cache", "keys and values in one allocation that never moves", problem=_anywhere),
    Rung("compile", "torch.compile of the decode step", needs=_GRAPH, problem=_compile),
    Rung(  # the mask of eager attention is made of a number that comes from the host, which no graph can hold
        "cuda_graphs", "the decode step replayed as a CUDA graph", needs=("sdpa", *_GRAPH), problem=_graphs
    ),
    Rung(
        "by_layer",
        "one layer compiled for all of them and the step in one graph: compiles sooner, launches less",
        needs=("compile",),
        problem=_compile,
    ),
    Rung("fused_projections", "query, key, value in one product; gate and up of dense layers too", problem=_anywhere),
    Rung(
        "compiled_prefill",
        "prefill's layers compiled, one layer for all, once per length and batch size",
        needs=_GRAPH,
        problem=_compile,
    ),
    Rung(
        "compiled_scoring",
        "the body of a scoring pass compiled; the head's logits reduced without an FP32 copy",
        needs=("grouped_experts",),
        problem=_compile,
    ),
    Rung(
        "fp8",
        "products on FP8 tensor cores; without it FP8 is emulated",
        changes_output=True,
        needs=("grouped_experts",),
        precisions=FP8,
        problem=_fp8,
    ),
    Rung(
        "fused_step",
        "the decode step in kernels of our own, over a cache of their own",
        replaces=("compile", "ngram", "fp8_kv", "chunked_prefill", "prefix_cache"),
        problem=_fused_step,
    ),
    Rung(
        "fp8_kv",
        "keys and values stored in E4M3, a scale per token and head",
        changes_output=True,
        needs=_FIXED,
        problem=_anywhere,
    ),
    Rung(
        "ngram", "n-grams of the text so far are tried as drafts; output stays greedy", needs=_FIXED, problem=_anywhere
    ),
    Rung("chunked_prefill", "long prompts in pieces into the cache", needs=_FIXED, problem=_anywhere),
    Rung("prefix_cache", "a prefix that prompts share is computed once", needs=_FIXED, problem=_anywhere),
)
NAMES = tuple(rung.name for rung in LADDER)
WITH_TP = ("sdpa", "grouped_experts", "static_cache", "cuda_graphs")  # those that hold on a model that is cut over GPUs


@dataclass(frozen=True)
class Asked:
    """The rungs of one load."""

    on: frozenset[str]
    off: dict[str, str]  # every other rung of the ladder, with the reason
    by_name: bool = False  # asked for by their names

    def without(self, name: str, why: str) -> Asked:
        """The same, with one rung off, and those that need it."""
        if name not in self.on:
            return self
        found = replace(self, on=self.on - {name}, off={**self.off, name: why})
        for rung in LADDER:
            if name in rung.needs:
                found = found.without(rung.name, f"needs {name}: {why}")
        return found


def asked(text: str, precision: str, device: Device) -> Asked:
    """`text`: "default", "none", or names joined by "+". Raises LoadFailed for a name that is not on the ladder."""
    by_name = text not in ("default", "none")
    names = text.split("+") if by_name else _default(precision, device) if text == "default" else ()
    if unknown := sorted(set(names) - set(NAMES)):
        raise LoadFailed(f"the hf engine has no rung {', '.join(unknown)}; it has {', '.join(NAMES)}")
    found = Asked(frozenset(names), {name: NOT_ASKED for name in NAMES if name not in names}, by_name)
    for rung in LADDER:
        missing = [need for need in rung.needs if need not in names]
        if why := rung.why_off(precision, device) or (f"needs {', '.join(missing)}" if missing else None):
            found = found.without(rung.name, why)
    if precision in FP8 and "fp8" not in found.on:
        found = found.without("fused_step", "needs fp8: its kernels read weights that are FP8, not emulated")
    for rung in LADDER:  # a plan never asks for both
        for name in rung.replaces if rung.name in found.on else ():
            found = found.without(name, f"{rung.name} does its work")
    return found


def _default(precision: str, device: Device) -> tuple[str, ...]:
    """What this engine always did."""
    if device.kind != "cuda":
        return ("sdpa", "grouped_experts")
    graphs = () if precision == "fp32" else ("compile", "cuda_graphs")
    return ("sdpa", "grouped_experts", "static_cache", *graphs)
