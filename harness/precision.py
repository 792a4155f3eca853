"""What a precision name means, and what the tensor cores of a GPU can do with it. No engine's opinion is in here."""

from __future__ import annotations

from dataclasses import dataclass

NATIVE = "native"  # the device's own arithmetic for the format (tensor cores on a GPU)
WEIGHT_ONLY = "weight_only"  # weights stored in the format, products computed in BF16
EMULATED = "emulated"  # every value passes through the format, products computed in BF16: accuracy true, speed not
UNSUPPORTED = "unsupported"
COMPUTE_MODES = (NATIVE, WEIGHT_ONLY, EMULATED, UNSUPPORTED)


@dataclass(frozen=True)
class Support:
    """What an engine does with a precision on a device: a compute mode and the reason for it, in words."""

    mode: str  # one of COMPUTE_MODES
    reason: str = ""


@dataclass(frozen=True)
class Precision:
    """One number format for the matrix products of a model, weights and activations alike."""

    name: str
    bits: float  # bits per weight, scales included
    weights: str
    activations: str
    tensor_cores: str  # in words, for messages

    def on_tensor_cores(self, sm: int) -> bool:
        """Whether tensor cores of compute capability `sm` (e.g. 90) multiply this format.

        Source: NVIDIA CUDA C++ Programming Guide, tensor core element types by compute capability.
        """
        if self.name == "fp32":
            return False
        if self.name == "bf16":
            return sm >= 80
        if self.name.startswith("fp8"):
            return sm >= 89
        return sm in (100, 103, 120, 121)


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", 32, "FP32", "FP32", "none; TF32 is not FP32"),
        Precision("bf16", 16, "BF16", "BF16", "SM 80 and later"),
        Precision("fp8", 8, "E4M3, one scale per tensor", "E4M3, one scale per tensor", "SM 89 and later"),
        Precision(
            "fp8_block", 8 + 32 / 128**2, "E4M3, scale per 128 x 128", "E4M3, scale per 1 x 128", "SM 89 and later"
        ),
        Precision(
            "nvfp4",
            4.5,
            "E2M1, E4M3 scale per 16, FP32 scale per tensor",
            "E2M1, E4M3 scale per 16, FP32 scale per tensor",
            "SM 100, 103, 120, 121",
        ),
        Precision("mxfp4", 4.25, "E2M1, E8M0 scale per 32", "E2M1, E8M0 scale per 32", "SM 100, 103, 120, 121"),
    )
}
