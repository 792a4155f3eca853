"""Do the kernels agree with the precision label? Only as far as their names carry a format; many carry none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.precision import EMULATED, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY

OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
NAME = "kernels agree with the precision"

# What the name of an expert GEMM says of the format it multiplies; the first that matches counts. UE4M3 and UE8M0 are
# formats of block scales: E4M3 with a U before it does not mean FP8 values.
FORMATS = (
    ("weight-only", re.compile(r"marlin|wna16|w[48]a16|gptq|awq|int4|mixed_?input", re.IGNORECASE)),
    ("FP4", re.compile(r"e2m1|fp4|float4|nvf4|mxf4|ue4m3", re.IGNORECASE)),
    ("FP8", re.compile(r"(?<!u)e4m3|(?<!u)e5m2|fp8|float8|w8a8|mxf8", re.IGNORECASE)),
    ("BF16", re.compile(r"bfloat16|bf16", re.IGNORECASE)),
)
WANTED = {"bf16": "BF16", "fp8": "FP8", "fp8_block": "FP8", "nvfp4": "FP4", "mxfp4": "FP4"}
QUANTISES = re.compile(r"(?<!de)quant", re.IGNORECASE)


@dataclass(frozen=True)
class Check:
    name: str
    status: str  # OK, WARNING, FAILED or NOT_CHECKED
    reason: str


def kernels_agree(
    kernels: Iterable[tuple[str, str, int]], precision: str | None, compute_mode: str | None = None
) -> Check:
    """`kernels`: category, name and summed ns of every kernel. `compute_mode`: None when it is not known."""
    if precision is None:
        return Check(NAME, NOT_CHECKED, "the precision is not given (--precision P)")
    wanted = WANTED.get(precision)
    if wanted is None or compute_mode in (EMULATED, UNSUPPORTED):
        what = f"{compute_mode} {precision}" if precision in PRECISIONS else f"precision {precision!r}"
        return Check(NAME, NOT_CHECKED, f"nothing is known of the kernels of {what}")
    kernels = list(kernels)
    times: dict[str | None, int] = {}
    for category, name, time in kernels:
        if category == "expert_gemm":
            times[_format(name)] = times.get(_format(name), 0) + time
    if not times:
        return Check(NAME, NOT_CHECKED, "no expert GEMM was recognised")
    told = {word: time for word, time in times.items() if word}
    quantises = any(category == "quant_dequant" or _quantises(category, name) for category, name, _ in kernels)
    if not told:
        return _untold(wanted, precision, compute_mode, quantises)
    most = max(told, key=told.get)
    share = told[most] / sum(times.values())
    said = f"{percent(share, '.0f')} of the expert GEMM time is in kernels named {most}"
    if compute_mode == WEIGHT_ONLY:
        fits = most == "weight-only" or most == "BF16" and any(category == "quant_dequant" for category, *_ in kernels)
        return Check(NAME, OK if fits else FAILED, f"{said}; the label is {precision}, weight-only")
    if most == "weight-only" and compute_mode is None and wanted != "BF16":
        return Check(NAME, WARNING, f"{said}: stored low, multiplied in 16 bit; as {precision} it is weight-only")
    return Check(NAME, OK if most == wanted else FAILED, f"{said}; the label is {precision}, multiplied as {wanted}")


def percent(share: float, form: str = ".1f") -> str:
    return f"{share * 100:{form}} %"


def _untold(wanted: str, precision: str, compute_mode: str | None, quantises: bool) -> Check:
    if wanted == "BF16":
        if quantises:
            return Check(NAME, NOT_CHECKED, "names of expert GEMMs carry no format, and something is quantised")
        return Check(NAME, OK, "names of expert GEMMs carry no format; nothing is quantised, as BF16 wants it")
    if quantises or compute_mode == WEIGHT_ONLY:
        return Check(NAME, NOT_CHECKED, "cannot tell: names of expert GEMMs carry no format")
    missing = f"no name carries {wanted} and nothing quantises activations, as native {precision} must"
    return Check(NAME, FAILED, missing)


def _format(name: str) -> str | None:
    return next((word for word, pattern in FORMATS if pattern.search(name)), None)


def _quantises(category: str, name: str) -> bool:
    """Alone or fused, as in silu_and_mul_quant; what writes a KV cache in FP8 is attention and says nothing."""
    return category != "attention" and bool(QUANTISES.search(name))
