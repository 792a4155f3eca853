"""The HF transformers engine: what it is and what it can do. Imports no torch; `session.py` does, in the worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import EMULATED, NATIVE, PRECISIONS, UNSUPPORTED
from harness_hf.kept import keep_compiled_code
from harness_hf.rungs import LADDER, WITH_TP, asked

if TYPE_CHECKING:
    from harness import Load, Session
    from harness.device import Device

UNUSED = ("sklearn", "scipy")  # transformers imports them, where they are, for what no language model runs
BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="hf",
            summary="HF transformers on PyTorch: the reference; quantised precisions are emulated exactly",
            requires=("torch", "safetensors", "compressed-tensors", "transformers"),
            oldest="5.10",
            capabilities=frozenset({"generate", "score", "logits", "sample", "torch_profiler", "nsys"}),
            support=support,
            load=load,
            options=frozenset({"quantize", "moe_backend", "tp"}),
            rungs=LADDER,
            rungs_with_tp=WITH_TP,
        )
    ]


def support(precision: str, device: Device, version: str | None, rungs: str = "default") -> Support:
    """`rungs` as in Setup: with the rung fp8, FP8 is native."""
    if device.kind not in ("cpu", "cuda"):
        return Support(UNSUPPORTED, "here PyTorch computes on CPUs and NVIDIA GPUs")
    if precision == "fp32":
        return Support(NATIVE)
    if "fp8" in asked(rungs, precision, device).on:
        return Support(NATIVE)
    if precision != "bf16":
        can = asked("grouped_experts+fp8", precision, device).on
        more = "; --rungs grouped_experts+fp8 and more multiply in FP8" if "fp8" in can else ""
        return Support(EMULATED, f"every {precision} value is exact, products are computed in BF16{more}")
    if device.kind == "cuda" and not PRECISIONS["bf16"].on_tensor_cores(device.sm):
        return Support(
            EMULATED, f"SM {device.sm} has no BF16 tensor cores, they need {PRECISIONS['bf16'].tensor_cores}"
        )
    if device.kind == "cpu" and not BF16_INSTRUCTIONS.intersection(device.flags):
        return Support(NATIVE, "PyTorch's BF16 kernels; this CPU has no BF16 instructions, so they multiply in FP32")
    return Support(NATIVE)


def load(load: Load) -> Session:
    keep_compiled_code()
    with _as_if_missing(UNUSED):
        from harness_hf.session import HfSession
    if load.setup.tp > 1:
        from harness_hf.ranks import Ranks

        return Ranks(load)
    return HfSession(load)


@contextmanager
def _as_if_missing(names: tuple[str, ...]) -> Iterator[None]:
    """A fifth of what importing takes, where they are installed. Afterwards they can be imported as ever."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's word for a module that must not be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
