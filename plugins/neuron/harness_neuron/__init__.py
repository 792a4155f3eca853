"""The Neuron engine: NxD Inference on AWS Trainium and Inferentia. Imports no torch; `session.py` does, in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import EngineSpec, Support, hookimpl
from harness.precision import NATIVE, UNSUPPORTED

if TYPE_CHECKING:
    from harness import Load, Session
    from harness.device import Device

DOUBLE = "+double"  # how the version of the stand-in of our tests ends: it computes on a CPU
REASONS = {
    "fp8": "NxD Inference quantises into checkpoints of its own layout, which this plugin neither makes nor reads",
    "fp8_block": "NxD Inference turns FP8 block checkpoints of Qwen3-MoE into 16 bits while it loads them",
    "nvfp4": "NVFP4 is a format of NVIDIA's tensor cores",
    "mxfp4": "NxD Inference has MXFP4 for gpt-oss only, which this plugin does not know",
}


@hookimpl
def harness_register_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="neuron",
            summary="NxD Inference on AWS Trainium and Inferentia: graphs compiled ahead, one for each shape",
            requires=("torch-neuronx", "neuronx-distributed", "neuronx-distributed-inference"),
            oldest="0.9",
            capabilities=frozenset({"generate", "score", "logits"}),
            support=support,
            load=load,
            options=frozenset({"tp", "ep", "skip_compile"}),
            install="torch-neuronx, neuronx-distributed and neuronx-distributed-inference are in AWS's own package "
            "index, see the Neuron documentation; those of the public registry are empty",
            holds="neuronx_distributed_inference/models/config.py",
        )
    ]


def support(precision: str, device: Device, version: str | None) -> Support:
    """What NxD Inference 0.9 does with a precision. The session reads from the loaded weights what it was."""
    is_double = device.kind == "cpu" and (version or "").endswith(DOUBLE)
    if device.kind != "neuron" and not is_double:
        what = f"this GPU is SM {device.sm}" if device.sm else "there is no /dev/neuron0 here"
        return Support(UNSUPPORTED, f"NxD Inference runs on AWS Trainium and Inferentia, {what}")
    if precision in REASONS:
        return Support(UNSUPPORTED, REASONS[precision])
    return Support(NATIVE, "compiled with --auto-cast=none: products in FP32" if precision == "fp32" else "")


def load(load: Load) -> Session:
    from harness_neuron.session import NeuronSession

    return NeuronSession(load)
