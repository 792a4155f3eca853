"""Tensors sorted into layers: a weight and its scales. How it is stored, and how many weights it really holds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.lint.values import whole_numbers
from harness.provenance import kind_of
from harness.tensorfile import Tensor

# What a tensor is to its layer, by the end of its name; after "." or, in fused experts, after "_".
WEIGHT = ("weight", "weight_packed", "qweight", "blocks")
WEIGHT_SCALE = ("weight_scale", "weight_scale_inv", "scale_inv", "scales", "scale")
TENSOR_SCALE = ("weight_scale_2", "weight_global_scale")  # nvfp4's second scale, one per tensor
INPUT_SCALE = ("input_scale", "input_global_scale")
KV_SCALE = ("k_scale", "v_scale", "kv_scale", "k_global_scale", "v_global_scale")
BESIDES = ("weight_shape", "weight_zero_point", "weight_g_idx", "qzeros", "g_idx", "output_scale", "pre_quant_scale")
SCALES = (*WEIGHT_SCALE, *TENSOR_SCALE, *INPUT_SCALE, *KV_SCALE)
VAGUE = ("scale", "scales", "blocks")  # not a quantised layer's unless its weight is there, too
ROLE = re.compile(rf"(.+?)[._]({'|'.join((*WEIGHT, *SCALES, *BESIDES))})", re.DOTALL)

PLAIN = {"F64": "fp64", "F32": "fp32", "BF16": "bf16", "F16": "fp16"}
FP8_TYPES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
WHOLE_NUMBERS = ("BOOL", "I16", "U16", "I32", "U32", "I64", "U64")
PER_CHANNEL = "fp8_channel"


@dataclass(frozen=True)
class Layer:
    """A weight and what belongs to it. Fused experts are one layer with `parts` experts."""

    name: str  # of the module: "model.layers.0.mlp.experts.3.up_proj"
    kind: str  # see kind_of
    weight: Tensor
    scales: Mapping[str, Tensor]  # by role

    @property
    def parts(self) -> int:
        return self.weight.shape[0] if self.kind == "experts" and len(self.weight.shape) > 2 else 1

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with: norms, convolutions and tables of numbers are not; no format quantises them."""
        if not self.weight.elements or self.weight.dtype in WHOLE_NUMBERS and not self.is_packed:
            return False
        return len(self.weight.shape) == 2 or self.kind == "experts" and len(self.weight.shape) in (3, 4)

    @property
    def is_packed(self) -> bool:
        """Integers of few bits in words of 32."""
        return self.weight.dtype == "I32" and self.weight.name.endswith(("weight_packed", "qweight"))

    def scale(self, roles: Iterable[str]) -> Tensor | None:
        return next((self.scales[role] for role in roles if role in self.scales), None)

    @property
    def rows(self) -> int:
        return self.weight.shape[1 if self.parts > 1 or len(self.weight.shape) > 2 else 0]

    @property
    def columns(self) -> int:
        """As stored: packed columns count once."""
        return math.prod(self.weight.shape[2 if len(self.weight.shape) > 2 else 1 :])


@dataclass(frozen=True)
class Sorted:
    """All tensors of a checkpoint."""

    layers: list[Layer]
    loose: list[Tensor]  # biases, sinks, corrections: neither weight of a layer nor scale
    kv_scales: dict[str, Tensor]
    orphans: list[Tensor]  # scales whose weight is not there


def sort(tensors: Mapping[str, Tensor]) -> Sorted:
    stems: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, role = split(name, tensor)
        stems.setdefault(stem, {})[role] = tensor
    found = Sorted([], [], {}, [])
    for stem, roles in stems.items():
        weight = next((roles[role] for role in WEIGHT if role in roles), None)
        for role, tensor in roles.items():
            if role in KV_SCALE:
                found.kv_scales[tensor.name] = tensor
            elif weight is None and role in (*SCALES, *BESIDES) and role not in VAGUE:
                found.orphans.append(tensor)
            elif weight is None or role == "":
                found.loose.append(tensor)
        if weight is not None:
            scales = {role: tensor for role, tensor in roles.items() if role not in (*WEIGHT, *KV_SCALE, "")}
            found.layers.append(Layer(stem, class_of(weight.name), weight, scales))
    return found


def split(name: str, tensor: Tensor) -> tuple[str, str]:
    """Layer and role of a tensor; the role is empty where the name tells none."""
    if match := ROLE.fullmatch(name):
        return match[1], match[2]
    is_fused = len(tensor.shape) == 3 and class_of(name) == "experts"
    return name, "weight" if is_fused and not name.endswith("bias") else ""


def class_of(name: str) -> str:
    """Layer class of a tensor: that of the module it is in."""
    return kind_of(name.rpartition(".")[0] or name)


def stored_as(layer: Layer) -> str:
    """The format of a layer by its types and shapes, whatever a configuration says: a name of harness.precision, or
    `fp8_channel`, `mxfp8`, `int8`, `packed` (integers of fewer bits in words of 32), or the type itself."""
    dtype, scale = layer.weight.dtype, layer.scale(WEIGHT_SCALE)
    if not layer.is_matrix:
        return PLAIN.get(dtype, dtype.lower())
    if dtype in FP8_TYPES:
        return _fp8(layer, scale)
    if dtype == "U8":
        return _four_bits(layer, scale)
    if layer.is_packed:
        return "packed"
    if dtype == "I8" and scale is not None:
        return "int8"
    return PLAIN.get(dtype, dtype.lower())


def _fp8(layer: Layer, scale: Tensor | None) -> str:
    if scale is None:
        return "fp8"
    if scale.dtype in ("U8", "F8_E8M0") and scale.elements * 32 == layer.weight.elements:
        return "mxfp8"
    if "weight_scale_inv" in layer.scales or "scale_inv" in layer.scales:
        return "fp8" if scale.elements == 1 and layer.weight.elements > 1 << 14 else "fp8_block"
    each = scale.elements / layer.parts
    if each == 1:
        return "fp8"
    return PER_CHANNEL if each in (layer.rows, layer.columns) else "fp8_block"


def _four_bits(layer: Layer, scale: Tensor | None) -> str:
    """Two weights to a byte. By the number of bytes a scale serves: 8 in nvfp4, 16 in mxfp4."""
    if layer.scale(TENSOR_SCALE) is not None or scale is not None and scale.dtype == "F8_E4M3":
        return "nvfp4"
    if scale is not None and scale.dtype in ("U8", "F8_E8M0") or layer.weight.name.endswith("blocks"):
        return "mxfp4"
    return "u8"


def weights_in(layer: Layer, stored: str, bits: int | None) -> int | None:
    """How many weights a layer holds; None where nothing says how many bits one has. Raises OSError."""
    weight = layer.weight
    if stored in ("nvfp4", "mxfp4"):
        return weight.elements * 2
    if stored == "u8":
        return weight.elements * 2 if bits == 4 else None
    if stored == "packed":
        shape = layer.scales.get("weight_shape")
        if shape is not None and shape.dtype in ("I64", "I32") and shape.elements <= 3:
            return math.prod(whole_numbers(shape)) or None
        return weight.elements * 32 // bits if bits else None
    return weight.elements
