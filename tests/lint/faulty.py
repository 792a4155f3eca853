"""The faults that a lint of checkpoints has to find: how each is planted, and what is to be said of it."""

from __future__ import annotations

import json
import math

from checkpoints import (
    BLOCKS,
    EXCLUDED,
    GATES,
    HALVES,
    HIDDEN,
    INNER,
    LAYERS,
    Folder,
    bf16,
    blank,
    coded,
    f32,
    fp8,
    model,
    nvfp4,
    packed,
    scale_of,
    with_kv_scales,
)

EXPERT = "model.layers.1.mlp.experts.2"
Q = "model.layers.0.self_attn.q_proj"


def put(name: str, tensor):
    return lambda folder: folder.tensors.update({name: tensor})


def drop(*parts: str):
    """Without all tensors whose names hold one of the parts."""

    def plant(folder: Folder) -> None:
        folder.tensors = {n: t for n, t in folder.tensors.items() if not any(part in n for part in parts)}

    return plant


def replaced(name: str, linear, rows: int, columns: int):
    def plant(folder: Folder) -> None:
        drop(name + ".")(folder)
        folder.tensors |= linear(name, rows, columns)

    return plant


def said(**changes):
    return lambda folder: folder.said.update(changes)


def in_modelopt(**changes):
    return lambda folder: folder.modelopt.update(changes)


def both(**changes):
    def plant(folder: Folder) -> None:
        folder.said.update({("ignore" if key == "exclude_modules" else key): value for key, value in changes.items()})
        folder.modelopt.update(changes)

    return plant


def without_modelopt(folder: Folder) -> None:
    folder.modelopt = None


def silent_config(folder: Folder) -> None:
    del folder.config["quantization_config"]


def every(suffix: str, tensor_of):
    """Replaces all tensors whose name ends so by `tensor_of(tensor)`."""

    def plant(folder: Folder) -> None:
        changed = {name: tensor_of(tensor) for name, tensor in folder.tensors.items() if name.endswith(suffix)}
        assert changed
        folder.tensors |= changed

    return plant


def index(change):
    """Writes in two files and changes the index."""

    def plant(folder: Folder) -> None:
        folder.shards = 2
        names = list(folder.tensors)
        files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        weight_map = {name: files[number % 2] for number, name in enumerate(names)}
        change(weight_map)
        folder.others["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()

    return plant


def flipped(weight_map: dict) -> None:
    first, second = sorted(set(weight_map.values()))
    weight_map["lm_head.weight"] = first if weight_map["lm_head.weight"] == second else second


def other(name: str, content: bytes):
    return lambda folder: folder.others.update({name: content})


def several(*plants):
    def plant(folder: Folder) -> None:
        for each in plants:
            each(folder)

    return plant


def two_groups(folder: Folder) -> None:
    groups = folder.said["config_groups"]
    groups["group_1"] = {
        "targets": ["re:.*self_attn.*"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    }
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            stem = f"model.layers.{layer}.self_attn.{name}"
            folder.tensors[f"{stem}.weight_scale"] = f32(scale_of(stem))


NAN, INFINITE = f32(math.nan), f32(math.inf)
ZERO_BLOCKS = coded("F8_E4M3", (INNER, HIDDEN // 16), b"\0")
SOME_ZERO = coded("F8_E4M3", (INNER, HIDDEN // 16), b"\0" + BLOCKS)
NAN_BLOCKS = coded("F8_E4M3", (INNER, HIDDEN // 16), BLOCKS * 300 + b"\x7f")
FUSED_UP = "model.layers.0.mlp.experts.gate_up_proj"
INT8 = lambda name, rows, columns: {  # noqa: E731
    f"{name}.weight": blank("I8", rows, columns),
    f"{name}.weight_scale": f32(*[scale_of(name)] * rows, shape=(rows, 1)),
}
FAULTS = [  # format, what is planted, severity, code, a word of where or what
    ("bf16", put("model.layers.0.mlp.gate.weight", blank("F8_E4M3", 4, 256)), "error", "undeclared", "mlp.gate.weight"),
    ("modelopt nvfp4", lambda f: (silent_config(f), without_modelopt(f)), "error", "undeclared", "nvfp4"),
    ("bf16", lambda f: f.config.update(dtype="float16"), "note", "type-differs", "float16"),
    ("modelopt fp8", drop(f"{EXPERT}.up_proj.weight_scale"), "error", "missing-scale", f"{EXPERT}.up_proj"),
    ("modelopt nvfp4", drop(f"{Q}.weight_scale"), "error", "missing-scale", Q),
    ("modelopt nvfp4", drop(f"{Q}.weight_scale_2"), "error", "missing-scale", "second weight scale"),
    ("fp8 block", drop(f"{Q}.weight_scale_inv"), "error", "missing-scale", Q),
    ("compressed int4", drop(f"{Q}.weight_scale"), "error", "missing-scale", Q),
    ("compressed nvfp4", drop(f"{Q}.weight_global_scale"), "error", "missing-scale", Q),
    ("gpt-oss mxfp4", drop(f"{FUSED_UP}_scales"), "error", "missing-scale", FUSED_UP),
    ("modelopt fp8", put(f"{Q}.weight_scale", f32(0.0)), "error", "scale-zero", f"{Q}.weight_scale"),
    ("modelopt fp8", put(f"{Q}.weight_scale", f32(-0.0)), "error", "scale-zero", f"{Q}.weight_scale"),
    ("modelopt fp8", put(f"{Q}.input_scale", NAN), "error", "scale-nan", f"{Q}.input_scale"),
    ("modelopt fp8", put(f"{Q}.weight_scale", INFINITE), "error", "scale-infinite", f"{Q}.weight_scale"),
    ("modelopt fp8", put(f"{Q}.weight_scale", f32(-0.5)), "error", "scale-negative", f"{Q}.weight_scale"),
    ("modelopt nvfp4", put(f"{EXPERT}.up_proj.weight_scale_2", NAN), "error", "scale-nan", EXPERT),
    ("modelopt nvfp4", put(f"{EXPERT}.up_proj.weight_scale", NAN_BLOCKS), "error", "scale-nan", EXPERT),
    ("modelopt nvfp4", put(f"{EXPERT}.up_proj.weight_scale", ZERO_BLOCKS), "warning", "scales-all-zero", EXPERT),
    ("modelopt nvfp4", put(f"{EXPERT}.up_proj.weight_scale", SOME_ZERO), "note", "zero-blocks", "512 of 2048"),
    (
        *("fused modelopt fp8", put(f"{FUSED_UP}_weight_scale", f32(0.1, 0.2, math.nan, 0.4, shape=(4,)))),
        *("error", "scale-nan", f"{FUSED_UP}_weight_scale[2]"),
    ),
    (
        *("fused modelopt fp8", put(f"{FUSED_UP}_input_scale", f32(0.1, 0.2, 0.3, 1.0, shape=(4,)))),
        *("warning", "default-input-scale", f"{FUSED_UP}[3]"),
    ),
    (
        *("gpt-oss mxfp4", put(f"{FUSED_UP}_scales", coded("U8", (4, 256, 8), b"\x7a" * 9 + b"\xff"))),
        *("error", "scale-nan", FUSED_UP),
    ),
    ("fp8 block", put(f"{Q}.weight_scale_inv", f32(1, 2, -3, 4, shape=(2, 2))), "error", "scale-negative", Q),
    (
        "compressed int4",
        put(f"{Q}.weight_scale", coded("BF16", (256, 8), b"\x80\x7f" + HALVES)),
        "error",
        "scale-infinite",
        Q,
    ),
    ("modelopt fp8", put(f"{Q}.weight_scale", blank("I32")), "error", "scale-type", "I32"),
    ("modelopt nvfp4", put(f"{Q}.weight_scale", coded("F8_E4M3", (256, 8), BLOCKS)), "error", "scale-shape", Q),
    ("modelopt nvfp4", both(group_size=32), "error", "scale-shape", "are needed"),
    ("fp8 block", said(weight_block_size=[64, 64]), "error", "scale-shape", "are needed"),
    ("fp8 block", said(weight_block_size=[64, 64]), "note", "engine-refuses", "128 x 128"),
    ("gpt-oss mxfp4", put(f"{FUSED_UP}_scales", coded("U8", (4, 256, 4), b"\x7a")), "error", "scale-shape", FUSED_UP),
    ("modelopt fp8", put(f"{Q}.input_scale", f32(1, 2, 3, shape=(3,))), "error", "scale-shape", f"{Q}.input_scale"),
    (
        "modelopt fp8",
        replaced(f"{EXPERT}.up_proj", bf16, INNER, HIDDEN),
        "error",
        "stored-unquantised",
        f"{EXPERT}.up_proj",
    ),
    ("fp8 block", replaced(Q, bf16, HIDDEN, HIDDEN), "error", "stored-unquantised", Q),
    ("compressed nvfp4", replaced(Q, bf16, HIDDEN, HIDDEN), "error", "stored-unquantised", Q),
    ("modelopt mixed", replaced(Q, bf16, HIDDEN, HIDDEN), "error", "stored-unquantised", Q),
    ("modelopt mixed", replaced(Q, nvfp4, HIDDEN, HIDDEN), "error", "wrong-format", Q),
    ("modelopt nvfp4", replaced(Q, fp8, HIDDEN, HIDDEN), "error", "wrong-format", "declares nvfp4"),
    ("modelopt fp8", both(quant_algo="FP8_PB_WO"), "error", "wrong-format", "declares fp8_block"),
    ("fp8 block", said(weight_block_size=None), "error", "wrong-format", "stored as fp8_block"),
    ("modelopt nvfp4", both(exclude_modules=[*EXCLUDED, Q]), "error", "excluded-but-quantised", Q),
    ("modelopt nvfp4", both(quant_algo=None), "error", "excluded-but-quantised", "leaves them out"),
    ("modelopt nvfp4", both(exclude_modules=["lm_head"]), "note", "plain-not-excluded", "mlp.gate"),
    ("modelopt nvfp4", in_modelopt(exclude_modules=["lm_head", GATES[0]]), "error", "configs-disagree", GATES[1]),
    ("modelopt nvfp4", in_modelopt(quant_algo="FP8"), "error", "configs-disagree", "FP8 (fp8) and nvfp4"),
    ("modelopt nvfp4", said(group_size=32), "error", "configs-disagree", "[16] and [32]"),
    ("modelopt fp8", in_modelopt(kv_cache_quant_algo="NVFP4"), "error", "configs-disagree", "NVFP4 and FP8"),
    ("modelopt fp8", in_modelopt(kv_cache_quant_algo=None), "warning", "configs-disagree", "not quantised and FP8"),
    ("modelopt nvfp4", silent_config, "note", "config-silent", "NVFP4"),
    ("modelopt nvfp4", both(quant_algo="FP3"), "note", "unknown-scheme", "FP3"),
    ("fp8 block", said(quant_method="magic"), "note", "unknown-scheme", "magic"),
    ("modelopt mixed", both(quantized_layers=None), "error", "no-quantized-layers", "MIXED_PRECISION"),
    (
        *("modelopt nvfp4", several(both(exclude_modules=[*EXCLUDED, "*experts.2*"]), drop("experts.2."))),
        *("warning", "exclusion-matches-nothing", "*experts.2*"),
    ),
    (
        "modelopt nvfp4",
        both(exclude_modules=[*EXCLUDED, "model.layers.7"]),
        "warning",
        "exclusion-matches-nothing",
        "layers.7",
    ),
    (
        "compressed fp8",
        said(ignore=["lm_head", "re:.*mlp.gate$", "gate"]),
        "warning",
        "exclusion-matches-nothing",
        ": gate",
    ),
    ("compressed fp8", said(ignore=["lm_head", "re:.*mlp.gate$", "re:(("]), "error", "bad-exclusion", "re:(("),
    (
        *(
            "modelopt nvfp4",
            several(replaced(f"{EXPERT}.up_proj", bf16, INNER, HIDDEN), both(exclude_modules=[*EXCLUDED, EXPERT])),
        ),
        *("warning", "experts-not-quantised", f"{EXPERT}.up_proj"),
    ),
    ("fp8 block", lambda f: None, "note", "fp8-is-block", "fp8_block"),
    ("modelopt fp8", drop(f"{EXPERT}.up_proj.input_scale"), "warning", "expert-not-calibrated", f"{EXPERT}.up_proj"),
    ("modelopt fp8", drop(f"{Q}.input_scale"), "warning", "missing-input-scale", Q),
    ("compressed nvfp4", drop("input_global_scale"), "warning", "missing-input-scale", "stores one"),
    ("modelopt fp8", put(f"{EXPERT}.up_proj.input_scale", f32(1.0)), "warning", "default-input-scale", EXPERT),
    ("modelopt fp8", put(f"{Q}.input_scale", f32(1.0)), "warning", "default-input-scale", "layers never"),
    (
        "modelopt nvfp4",
        every("down_proj.input_scale", lambda _: f32(0.25)),
        "note",
        "same-input-scale",
        "experts.*.down_proj",
    ),
    ("modelopt fp8", every("weight_scale", lambda _: f32(1.0)), "warning", "default-weight-scale", "(experts)"),
    (
        "modelopt nvfp4",
        every("weight_scale", lambda t: coded(t[0], t[1], b"\x38")),
        "warning",
        "default-weight-scale",
        "1",
    ),
    ("modelopt nvfp4", every("weight_scale_2", lambda _: f32(1.0)), "warning", "default-weight-scale", "second"),
    ("modelopt nvfp4", put(f"{EXPERT}.up_proj.weight_scale_2", f32(0.7)), "warning", "gate-up-scales-differ", EXPERT),
    ("modelopt fp8", drop("k_scale", "v_scale"), "warning", "kv-scale-missing", "model.layers.0.self_attn"),
    (
        "modelopt fp8",
        drop("layers.1.self_attn.v_proj.v_scale"),
        "warning",
        "kv-scale-missing",
        "model.layers.1.self_attn",
    ),
    ("modelopt nvfp4", with_kv_scales, "note", "kv-scale-undeclared", "k_scale"),
    ("modelopt fp8", lambda f: with_kv_scales(f, 1.0), "note", "default-kv-scale", "k_scale"),
    ("modelopt fp8", drop(f"{EXPERT}.up_proj.weight"), "error", "missing-experts", "layers.1.mlp.experts.*.up_proj"),
    (
        "modelopt nvfp4",
        put("model.layers.1.mlp.extra.weight_scale", f32(1)),
        "warning",
        "scale-without-weight",
        "extra",
    ),
    ("bf16", drop("experts.3."), "error", "missing-experts", "3 of 4"),
    ("bf16", lambda f: f.config.update(num_experts=3), "error", "wrong-experts", "not the 3"),
    ("fused bf16", lambda f: f.config.update(num_experts=8), "error", "wrong-experts", "not the 8"),
    ("bf16", lambda f: f.config.update(num_hidden_layers=4), "error", "missing-layers", "2 layers: 2, 3"),
    ("bf16", index(lambda m: m.pop("lm_head.weight")), "error", "tensor-not-in-index", "lm_head.weight"),
    ("bf16", index(lambda m: m.update(ghost=m["lm_head.weight"])), "error", "missing-tensor", "ghost"),
    ("bf16", index(lambda m: m.update(ghost="model-9.safetensors")), "error", "missing-file", "model-9.safetensors"),
    (
        *("bf16", index(flipped)),
        *("error", "index-wrong-file", "lm_head.weight"),
    ),
    ("bf16", other("model-00001-of-00003.safetensors", packed({})), "error", "missing-file", "2, 3"),
    ("bf16", other("more.safetensors", packed({"x.weight": blank("BF16", 2)})), "warning", "no-index", "2 files"),
    (
        "bf16",
        other("more.safetensors", packed({"lm_head.weight": blank("BF16", 2)})),
        "error",
        "duplicate-tensor",
        "lm_head",
    ),
    ("bf16", other("more.safetensors", b"GGUF" + bytes(100)), "error", "broken-file", "more.safetensors"),
    ("bf16", other("more.safetensors", packed({"x": blank("BF16", 9)})[:-1]), "error", "broken-file", "cut short"),
    (
        *("bf16", several(index(lambda m: None), other("consolidated.safetensors", packed({"a": blank("BF16", 2)})))),
        *("note", "file-left-out", "consolidated.safetensors"),
    ),
    ("modelopt nvfp4", without_modelopt, "error", "loads-unquantised", "TensorRT-LLM 1.2"),
    (
        *(
            "modelopt fp8",
            several(without_modelopt, lambda f: f.config.update(quantization_config={"quant_method": "fp8"})),
        ),
        *("error", "loads-unquantised", "weight_block_size"),
    ),
    ("compressed int4", lambda f: None, "note", "engine-refuses", "4 bits"),
    ("compressed nvfp4", lambda f: None, "note", "engine-refuses", "TensorRT-LLM 1.2"),
    ("modelopt nvfp4", both(quant_algo="W4A16_NVFP4"), "note", "engine-refuses", "W4A16_NVFP4"),
    ("compressed fp8", two_groups, "error", "engine-misreads", "first of its config_groups"),
    (
        "compressed fp8",
        lambda f: (f.tensors.update(model(INT8)), f.said["config_groups"]["group_0"]["weights"].update(type="int")),
        *("error", "engine-misreads", "integers for FP8"),
    ),
]
