"""Values through a number format: quantised and taken back, so that they are exactly what the format can hold.

The conversions are compressed-tensors'. Scales are computed and applied in FP32, as the kernels of real engines do;
the result is given in the dtype of the input. All scales come from the values themselves (amax), none is calibrated.
"""

from __future__ import annotations

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp, generate_gparam

_FLOAT = {"type": "float", "symmetric": True}
_E4M3_SCALES = {"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn}
_E8M0_SCALES = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}

# precision -> (weights, activations)
_ARGS = {
    "fp8": (
        QuantizationArgs(num_bits=8, strategy="tensor", **_FLOAT),
        QuantizationArgs(num_bits=8, strategy="tensor", **_FLOAT),
    ),
    "fp8_block": (
        QuantizationArgs(num_bits=8, strategy="block", block_structure=[128, 128], **_FLOAT),
        QuantizationArgs(num_bits=8, strategy="group", group_size=128, **_FLOAT),
    ),
    "nvfp4": (QuantizationArgs(num_bits=4, strategy="tensor_group", group_size=16, **_FLOAT, **_E4M3_SCALES),) * 2,
    "mxfp4": (QuantizationArgs(num_bits=4, strategy="group", group_size=32, **_FLOAT, **_E8M0_SCALES),) * 2,
}
DIVISORS = {"fp8": 1, "fp8_block": 128, "nvfp4": 16, "mxfp4": 32}  # every quantised dimension is a multiple


def weight_through(precision: str, weight_OI: torch.Tensor) -> torch.Tensor:
    """One matrix, [out, in], as `precision` would store it."""
    return _through(weight_OI, _ARGS[precision][0])


def activation_through(precision: str, hidden_TI: torch.Tensor) -> torch.Tensor:
    """The input of a product, [..., in]. Scales that span the whole tensor span all tokens of this call."""
    if hidden_TI.numel() == 0:
        return hidden_TI
    return _through(hidden_TI.flatten(0, -2), _ARGS[precision][1]).view_as(hidden_TI)


@torch.no_grad()
def _through(value: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    exact = value.float()
    tensor_scale = generate_gparam(*exact.aminmax()) if args.strategy == "tensor_group" else None
    if args.strategy == "block":
        rows, columns = args.block_structure
        blocks = exact.unflatten(-1, (-1, columns)).unflatten(0, (-1, rows))  # [out/128, 128, in/128, 128]
        scale, zero = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), args)
    else:
        scale, zero = compute_dynamic_scales_and_zp(exact, args, None, tensor_scale)
    return fake_quantize(exact, scale, zero, args, global_scale=tensor_scale).to(value.dtype)
