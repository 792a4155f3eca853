"""Small checkpoints of every format, written by hand, for tests of what reads them."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from harness.tensorfile import BITS

LAYERS, EXPERTS, HIDDEN, INNER, WORDS = 2, 4, 256, 128, 32


@dataclass
class Folder:
    """A checkpoint before it is written; tests plant their faults in it."""

    tensors: dict[str, tuple[str, list[int], bytes]]
    config: dict
    modelopt: dict | None = None
    shards: int = 1
    others: dict[str, bytes] = field(default_factory=dict)  # further files

    @property
    def said(self) -> dict:
        return self.config["quantization_config"]

    def write(self, path: Path) -> Path:
        path.mkdir(exist_ok=True)
        names, weight_map = list(self.tensors), {}
        for shard in range(self.shards):
            file = f"model-{shard + 1:05}-of-{self.shards:05}.safetensors" if self.shards > 1 else "model.safetensors"
            mine = names[shard :: self.shards]
            (path / file).write_bytes(packed({name: self.tensors[name] for name in mine}))
            weight_map |= dict.fromkeys(mine, file)
        if self.shards > 1:
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (path / "config.json").write_text(json.dumps(self.config))
        if self.modelopt is not None:
            (path / "hf_quant_config.json").write_text(json.dumps({"quantization": self.modelopt}))
        for name, content in self.others.items():
            (path / name).write_bytes(content)
        return path


def packed(tensors: dict) -> bytes:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def blank(dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    return dtype, list(shape), bytes(math.prod(shape) * BITS[dtype] // 8)


def f32(*numbers: float, shape: tuple[int, ...] = ()) -> tuple[str, list[int], bytes]:
    return "F32", list(shape), struct.pack(f"<{len(numbers)}f", *numbers)


def coded(dtype: str, shape: tuple[int, ...], pattern: bytes) -> tuple[str, list[int], bytes]:
    """The shape filled with the pattern's bytes over and over."""
    size = math.prod(shape) * BITS[dtype] // 8
    return dtype, list(shape), (pattern * size)[:size]


BLOCKS = bytes([0x30, 0x40, 0x41])  # some sound E4M3 scales
HALVES = b"\x00\x3f\x80\x3e"  # 0.5, 0.25 in BF16


def scale_of(name: str) -> float:
    """A calibrated-looking value; equal for gate and up projection of an expert."""
    return 0.01 + sum(name.replace("up_proj", "gate_proj").encode()) / 1e5


def bf16(name, rows, columns):
    return {f"{name}.weight": blank("BF16", rows, columns)}


def fp8(name, rows, columns):
    scales = {f"{name}.weight_scale": f32(scale_of(name)), f"{name}.input_scale": f32(scale_of(name) / 2)}
    return {f"{name}.weight": blank("F8_E4M3", rows, columns), **scales}


def fp8_dynamic(name, rows, columns):
    numbers = [scale_of(name)] * rows
    return {f"{name}.weight": blank("F8_E4M3", rows, columns), f"{name}.weight_scale": f32(*numbers, shape=(rows, 1))}


def fp8_block(name, rows, columns):
    shape = (math.ceil(rows / 128), math.ceil(columns / 128))
    scale = f32(*[scale_of(name)] * math.prod(shape), shape=shape)
    return {f"{name}.weight": blank("F8_E4M3", rows, columns), f"{name}.weight_scale_inv": scale}


def nvfp4(name, rows, columns):
    return {
        f"{name}.weight": blank("U8", rows, columns // 2),
        f"{name}.weight_scale": coded("F8_E4M3", (rows, columns // 16), BLOCKS),
        f"{name}.weight_scale_2": f32(scale_of(name)),
        f"{name}.input_scale": f32(scale_of(name) / 2),
    }


def nvfp4_packed(name, rows, columns):
    renamed = {"weight": "weight_packed", "weight_scale_2": "weight_global_scale", "input_scale": "input_global_scale"}
    found = {key.rpartition("."): tensor for key, tensor in nvfp4(name, rows, columns).items()}
    return {f"{stem}.{renamed.get(leaf, leaf)}": tensor for (stem, _, leaf), tensor in found.items()}


def int4(name, rows, columns):
    return {
        f"{name}.weight_packed": blank("I32", rows, columns // 8),
        f"{name}.weight_scale": coded("BF16", (rows, columns // 32), HALVES),
        f"{name}.weight_shape": ("I64", [2], struct.pack("<2q", rows, columns)),
    }


def model(linear, attention=None) -> dict:
    """Tensors of a small mixture of experts; `linear` makes those of a product, `attention` those of attention's."""
    attention = attention or linear
    tensors = {"model.embed_tokens.weight": blank("BF16", WORDS, HIDDEN), "model.norm.weight": blank("BF16", HIDDEN)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        tensors[f"{stem}.input_layernorm.weight"] = blank("BF16", HIDDEN)
        tensors |= bf16(f"{stem}.mlp.gate", EXPERTS, HIDDEN)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors |= attention(f"{stem}.self_attn.{name}", HIDDEN, HIDDEN)
        for expert in range(EXPERTS):
            tensors |= linear(f"{stem}.mlp.experts.{expert}.gate_proj", INNER, HIDDEN)
            tensors |= linear(f"{stem}.mlp.experts.{expert}.up_proj", INNER, HIDDEN)
            tensors |= linear(f"{stem}.mlp.experts.{expert}.down_proj", HIDDEN, INNER)
    return tensors | bf16("lm_head", WORDS, HIDDEN)


GATES = [f"model.layers.{layer}.mlp.gate" for layer in range(LAYERS)]
EXCLUDED = ["lm_head", *GATES]


def config(**quantization) -> dict:
    plain = {"num_experts": EXPERTS, "num_hidden_layers": LAYERS, "dtype": "bfloat16"}
    return plain | ({"quantization_config": quantization} if quantization else {})


def modelopt(linear, algorithm: str, **more) -> Folder:
    both = {"quant_algo": algorithm, **more}
    kv = {"num_bits": 8, "type": "float", "dynamic": False} if more.get("kv_cache_quant_algo") else None
    said = {"quant_method": "modelopt", **both, "ignore": EXCLUDED, "kv_cache_scheme": kv}
    said.pop("kv_cache_quant_algo", None)
    return Folder(model(linear), config(**said), {**both, "exclude_modules": EXCLUDED})


def with_kv_scales(folder: Folder, value: float = 0.5) -> Folder:
    for layer in range(LAYERS):
        for name in "kv":
            folder.tensors[f"model.layers.{layer}.self_attn.{name}_proj.{name}_scale"] = f32(value)
    return folder


def compressed(linear, weights: dict, inputs: dict | None, form: str) -> Folder:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    ignore = ["lm_head", "re:.*mlp.gate$"]
    said = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ignore}
    return Folder(model(linear), config(**said))


def mixed() -> Folder:
    listed = {}
    for layer in range(LAYERS):
        listed[f"model.layers.{layer}.mlp.experts"] = {"quant_algo": "NVFP4", "group_size": 16}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            listed[f"model.layers.{layer}.self_attn.{name}"] = {"quant_algo": "FP8"}
    both = {"quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    said = config(quant_method="modelopt", **both, ignore=EXCLUDED)
    return Folder(model(nvfp4, fp8), said, {**both, "exclude_modules": EXCLUDED})


def fused(tensors_of) -> dict:
    """Experts of a layer in one tensor, everything else BF16."""
    tensors = {name: tensor for name, tensor in model(bf16).items() if ".experts." not in name}
    for layer in range(LAYERS):
        tensors |= tensors_of(f"model.layers.{layer}.mlp.experts.gate_up_proj", 2 * INNER, HIDDEN)
        tensors |= tensors_of(f"model.layers.{layer}.mlp.experts.down_proj", HIDDEN, INNER)
    return tensors


def gpt_oss() -> Folder:
    def of(name, rows, columns):
        return {
            f"{name}_blocks": blank("U8", EXPERTS, rows, columns // 32, 16),
            f"{name}_scales": coded("U8", (EXPERTS, rows, columns // 32), b"\x7a\x7b"),
            f"{name}_bias": blank("BF16", EXPERTS, rows),
        }

    left = ["model.layers.*.self_attn", "model.layers.*.mlp.gate", "model.embed_tokens", "lm_head"]
    return Folder(fused(of), config(quant_method="mxfp4", modules_to_not_convert=left))


def fused_fp8() -> Folder:
    def of(name, rows, columns):
        numbers = [[0.1 * (expert + shift) for expert in range(EXPERTS)] for shift in (1, 2)]
        return {
            name: blank("F8_E4M3", EXPERTS, rows, columns),
            f"{name}_weight_scale": f32(*numbers[0], shape=(EXPERTS,)),
            f"{name}_input_scale": f32(*numbers[1], shape=(EXPERTS,)),
        }

    left = ["lm_head", "*self_attn*", "*mlp.gate"]
    both = {"quant_algo": "FP8", "kv_cache_quant_algo": None}
    said = config(quant_method="modelopt", **both, ignore=left)
    return Folder(fused(of), said, {**both, "exclude_modules": left})


def fused_bf16() -> Folder:
    return Folder(fused(lambda name, rows, columns: {name: blank("BF16", EXPERTS, rows, columns)}), config())


NVFP4_WEIGHTS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
INT4_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FORMATS = {
    "bf16": lambda: Folder(model(bf16), config()),
    "fused bf16": fused_bf16,
    "modelopt fp8": lambda: with_kv_scales(modelopt(fp8, "FP8", kv_cache_quant_algo="FP8")),
    "fused modelopt fp8": fused_fp8,
    "modelopt nvfp4": lambda: modelopt(nvfp4, **{"algorithm": "NVFP4"}, group_size=16),
    "modelopt mixed": mixed,
    "fp8 block": lambda: Folder(model(fp8_block), config(**BLOCK, modules_to_not_convert=EXCLUDED)),
    "compressed fp8": lambda: compressed(
        fp8_dynamic, FP8_WEIGHTS, {"strategy": "token", "dynamic": True}, "float-quantized"
    ),
    "compressed nvfp4": lambda: compressed(
        nvfp4_packed, NVFP4_WEIGHTS, {"strategy": "tensor_group", "dynamic": "local"}, "nvfp4-pack-quantized"
    ),
    "compressed int4": lambda: compressed(int4, INT4_WEIGHTS, None, "pack-quantized"),
    "gpt-oss mxfp4": gpt_oss,
}
