"""The roofline counts what a config.json says, refuses what it does not say, and shares no limit it does not know."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from shapes import QWEN3_30B

from harness.model.models import DATA
from harness.model.shape import FAMILIES, Uncountable, shape_of
from harness.recording.roofline import NOTHING, Peaks, Work, count, of_record, peaks_of, roofline

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared"
RECORDS = sorted((ROOT / "docs/h200/records").glob("*.json"))
KINDS = ("experts", "attention", "other", "router", "head", "embedding")
BF16 = dict.fromkeys(KINDS, "bf16")
COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "intermediate_size": 96,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
}
ROUTED = {"n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 48, "first_k_dense_replace": 1}
LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
OTHERS = {"num_local_experts": 8}
# Parameters as transformers 5.17 builds these models (sum of numel of AutoModelForCausalLM.from_config on meta).
BUILT = [
    ("llama", {}, 139840),
    ("mistral", {}, 139840),
    ("qwen2", {}, 140352),
    ("qwen3", {"head_dim": 32}, 189248),
    ("mixtral", OTHERS, 657984),
    (
        "qwen2_moe",
        {"num_experts": 8, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}
        | {"mlp_only_layers": [1]},
        203904,
    ),
    (
        "qwen3_moe",
        {"num_experts": 8, "moe_intermediate_size": 48, "head_dim": 32, "decoder_sparse_step": 1}
        | {"mlp_only_layers": [0]},
        356672,
    ),
    ("olmoe", {"num_experts": 8}, 658368),
    ("phimoe", OTHERS | {"attention_bias": True, "lm_head_bias": True}, 659456),
    ("granitemoe", OTHERS, 657984),
    ("granitemoeshared", OTHERS | {"shared_intermediate_size": 56}, 700992),
    (
        "gpt_oss",
        OTHERS
        | {"head_dim": 32, "sliding_window": 16, "attention_bias": True}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        716656,
    ),
    ("deepseek_v2", ROUTED | LATENT | {"n_shared_experts": 2, "q_lora_rank": None}, 381120),
    ("deepseek_v3", ROUTED | LATENT | {"q_lora_rank": 24}, 344352),
    ("glm4_moe", ROUTED | {"head_dim": 32, "attention_bias": True, "use_qk_norm": True}, 385344),
    ("minimax_m2", OTHERS | {"head_dim": 32}, 707904),
]
ALIKE = {"kimi_k2", "qwen3_vl_moe_text"}  # the same code under another name


@pytest.mark.parametrize(("name", "config", "parameters"), BUILT, ids=[row[0] for row in BUILT])
def test_the_parameters_are_those_of_the_model_that_transformers_builds(name, config, parameters):
    assert shape_of({"model_type": name, **COMMON, **config}).parameters == parameters


def test_every_known_architecture_was_held_against_transformers():
    assert {name for name, *_ in BUILT} | ALIKE == set(FAMILIES)


def test_the_embedded_models_parameters_are_exact():
    config = json.loads((DATA / "tinymoe/config.json").read_text())
    assert shape_of(config).parameters == 4_467_456


def test_the_records_of_a_real_run_have_the_parameters_that_were_counted():
    stated = {json.loads(path.read_text())["effective"].get("parameters") for path in RECORDS}
    assert stated == {None, shape_of(QWEN3_30B).parameters}


def test_published_totals_are_met():
    path = SHARED / "contracts/models.json"
    if not path.exists():
        pytest.skip("facts of real models are not at hand")
    for model in json.loads(path.read_text())["models"]:
        arch, dense = model["arch"], model["arch"].get("dense_intermediate_size")
        config = {
            **{"decoder_sparse_step": 1, "mlp_only_layers": [], "model_type": model["model_type"]},
            **arch,
            "n_routed_experts": arch["num_experts"],
            "n_shared_experts": arch["num_shared_experts"],
            "intermediate_size": dense or arch["moe_intermediate_size"],
            "layer_types": ["sliding_attention", "full_attention"] * (arch["num_hidden_layers"] // 2)
            if "layer_types" in arch
            else None,
        }
        shape = shape_of(config)
        assert shape.parameters == pytest.approx(model["computed"]["total_params"], rel=1e-4), model["name"]
        assert shape.cached * len(shape.windows) == model["computed"]["kv_elems_per_token"], model["name"]


def test_one_token_reads_the_active_weights_once():
    work = count(QWEN3_30B, BF16, 1, 1, 0, "bfloat16")
    parts = {part.name: part for part in work.parts}
    assert parts["experts"].bytes == 2 * 48 * 8 * 3 * 2048 * 768, "exactly the chosen 8 of 128"
    assert parts["embedding"].bytes == 2 * 2048, "one row of it"
    assert parts["head"].bytes == 2 * 2048 * 151936, "all of it"
    assert parts["head"].flops == 2 * 2048 * 151936
    assert work.bytes == pytest.approx(6.06e9, rel=0.01)
    assert work.flops == pytest.approx(work.bytes, rel=0.001), "a BF16 weight has 2 bytes and does 2 FLOPs per token"


def test_more_tokens_reach_more_experts_but_never_more_than_there_are():
    bytes_of = [
        next(part.bytes for part in count(QWEN3_30B, BF16, batch, 1, 0, "bfloat16").parts if part.name == "experts")
        for batch in (1, 2, 16, 64, 100_000)
    ]
    everything = 2 * 48 * 128 * 3 * 2048 * 768
    assert [found / everything for found in bytes_of] == pytest.approx(
        [8 / 128, 1 - (120 / 128) ** 2, 1 - (120 / 128) ** 16, 1 - (120 / 128) ** 64, 1]
    )


@pytest.mark.parametrize(
    ("format", "size"),
    [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8", 1), ("fp8_block", 1 + 4 / 128**2), ("nvfp4", 9 / 16),
     ("mxfp4", 17 / 32)],
)  # fmt: skip
def test_a_format_costs_its_bits_and_its_scales(format, size):
    parts = count(QWEN3_30B, BF16 | {"experts": format}, 1, 1, 0, "bfloat16").parts
    assert next(part.bytes for part in parts if part.name == "experts") == size * 48 * 8 * 3 * 2048 * 768


def test_a_prompt_attends_to_itself_causally_and_a_new_token_to_all_before_it():
    def scores(tokens, context):
        parts = {part.name: part for part in count(QWEN3_30B, BF16, 3, tokens, context, "bfloat16").parts}
        return parts["attention scores"].flops / (3 * 48 * 2 * 2 * 32 * 128), parts["KV cache read"].bytes

    assert scores(512, 0) == (512 * 513 / 2, 0)
    assert scores(1, 575) == (576, 3 * 575 * 98304)
    by_chunks = scores(256, 0)[0] + scores(256, 256)[0]
    assert by_chunks == scores(512, 0)[0], "cutting a prompt in two changes no product"


def test_a_layer_with_a_window_looks_no_further_back():
    name, config, _ = next(row for row in BUILT if row[0] == "gpt_oss")
    config = {"model_type": name, **COMMON, **config}
    pair = 2 * 2 * 4 * 32  # FLOPs of one query and key in 4 heads of 32

    def of(part, tokens, context):
        work = count(config, BF16, 1, tokens, context, "bfloat16")
        return next(found for found in work.parts if found.name == part)

    assert of("attention scores", 1, 100).flops == pair * (2 * 101 + 2 * 16)
    assert of("KV cache read", 1, 100).bytes == 2 * 2 * 2 * 32 * (2 * 100 + 2 * 15)
    inside = sum(min(i, 16) for i in range(1, 41))
    assert of("attention scores", 40, 0).flops == pair * (2 * 40 * 41 / 2 + 2 * inside)


def test_latent_attention_decodes_on_its_cache():
    name, config, _ = next(row for row in BUILT if row[0] == "deepseek_v3")
    config = {"model_type": name, **COMMON, **config}
    one, many = (count(config, BF16, 1, tokens, 9, "bfloat16") for tokens in (1, 2))
    scores = [next(part.flops for part in work.parts if part.name == "attention scores") for work in (one, many)]
    assert scores == [2 * 4 * 10 * 4 * (32 + 8 + 32), 2 * 4 * (10 + 11) * 4 * (16 + 8 + 16)]
    assert next(part.bytes for part in one.parts if part.name == "KV cache read") == 2 * 9 * 4 * (32 + 8)


def test_the_language_model_is_found_in_a_config_of_several():
    assert shape_of({"model_type": "pictures", "text_config": QWEN3_30B}) == shape_of(QWEN3_30B)


@pytest.mark.parametrize("key", [key for key in QWEN3_30B if key != "tie_word_embeddings"])
def test_a_missing_key_is_named_and_not_filled_in(key):
    with pytest.raises(Uncountable, match=f"{key}|num_experts, n_routed|architecture None"):
        count({name: value for name, value in QWEN3_30B.items() if name != key}, BF16, 1, 1, 0, "bfloat16")


def test_whether_head_and_embedding_are_one_matters_for_the_total_alone():
    config = {name: value for name, value in QWEN3_30B.items() if name != "tie_word_embeddings"}
    assert count(config, BF16, 1, 1, 0, "bfloat16") == count(QWEN3_30B, BF16, 1, 1, 0, "bfloat16")
    with pytest.raises(Uncountable, match="tie_word_embeddings"):
        shape_of(config).parameters  # noqa: B018


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba9"}, "architecture 'mamba9' is not known here"),
        ({"model_type": ["qwen3_moe"]}, "architecture"),
        ({"hidden_size": "2048"}, "hidden_size is '2048', expected a whole number from 1 on"),
        ({"hidden_size": 0}, "hidden_size is '0'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is 'True'"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok is 129, of 128 experts"),
        ({"mlp_only_layers": 3}, "expected a list"),
        ({"layer_types": ["linear_attention"] * 48}, "'linear_attention', which is not known"),
        ({"layer_types": ["full_attention"]}, "layer_types does not have 48 entries"),
        ({"sliding_window": 4096}, "which layers use it is not said"),
    ],
)
def test_what_cannot_be_counted_is_said_in_one_line(change, words):
    with pytest.raises(Uncountable) as error:
        shape_of({**QWEN3_30B, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_format_or_a_cache_that_is_not_known_is_refused():
    with pytest.raises(Uncountable, match="experts .* is 'bf16, fp8', which cannot be counted"):
        count(QWEN3_30B, BF16 | {"experts": "bf16, fp8"}, 1, 1, 0, "bfloat16")
    with pytest.raises(Uncountable, match="router .*is not said"):
        count(QWEN3_30B, {kind: "bf16" for kind in KINDS if kind != "router"}, 1, 1, 0, "bfloat16")
    with pytest.raises(Uncountable, match="dtype 'auto' of the KV cache"):
        count(QWEN3_30B, BF16, 1, 1, 0, "auto")


@pytest.mark.parametrize(
    ("name", "terabytes", "bf16"),
    [
        ("NVIDIA H200", 4.8, 989.5),
        ("NVIDIA H100 80GB HBM3", 3.35, 989.5),
        ("NVIDIA H100 PCIe", 2.0, 756.5),
        ("NVIDIA A100-SXM4-40GB", 1.555, 312),
        ("NVIDIA A100 80GB PCIe", 1.935, 312),
        ("NVIDIA GB200", 8.0, 2500),
        ("NVIDIA GeForce RTX 4090", 1.008, 165.2),
        ("NVIDIA L40S", 0.864, 362.05),
        ("NVIDIA L4", 0.3, 121),
    ],
)
def test_a_gpu_has_the_dense_peaks_of_its_data_sheet(name, terabytes, bf16):
    peaks = peaks_of(name)
    assert (peaks.hbm_bytes_per_s, peaks.flops_per_s["bf16"]) == (terabytes * 1e12, bf16 * 1e12)


@pytest.mark.parametrize("name", [None, "", "NVIDIA H2000", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Intel(R) Xeon(R)"])
def test_a_part_of_a_gpu_or_an_unknown_one_has_no_peaks(name):
    assert peaks_of(name) is None


def test_low_formats_are_no_slower_than_high_ones_and_every_row_has_a_source():
    for row in json.loads((DATA / "peaks.json").read_text()):
        rates = [row["tflops"][format] for format in ("fp32", "bf16", "fp8", "nvfp4") if format in row["tflops"]]
        assert rates == sorted(rates) and row["source"] and 0.1 < row["hbm_tb_per_s"] < 20, row["gpu"]


PEAKS = Peaks(4e12, {"bf16": 1e15, "fp8": 2e15}, "a made-up GPU")


def test_the_floor_is_the_larger_of_its_two_sides():
    decode = count(QWEN3_30B, BF16, 1, 1, 512, "bfloat16")
    found = roofline(decode, 4e-3, PEAKS)
    assert found["bound"] == "memory" and found["floor_seconds"] == decode.bytes / 4e12
    assert found["share_of_limit"] == found["hbm_share"] == pytest.approx(decode.bytes / 4e12 / 4e-3)
    prefill = count(QWEN3_30B, BF16, 64, 512, 0, "bfloat16")
    found = roofline(prefill, 0.5, PEAKS)
    assert found["bound"] == "products" and found["share_of_limit"] == pytest.approx(prefill.flops / 1e15 / 0.5)
    assert roofline(prefill, 0.5, PEAKS, devices=2)["share_of_limit"] == pytest.approx(found["share_of_limit"] / 2)


def test_each_part_is_held_against_the_peak_of_the_format_it_is_multiplied_in():
    formats = BF16 | {"experts": "fp8_block"}
    native = count(QWEN3_30B, formats, 64, 512, 0, "bfloat16")
    weight_only = count(QWEN3_30B, formats, 64, 512, 0, "bfloat16", multiplied={"experts": "bf16"})
    experts = 2 * 64 * 512 * 48 * 8 * 3 * 2048 * 768
    rest = native.flops - experts
    assert roofline(native, 1.0, PEAKS)["tensor_share"] == pytest.approx(experts / 2e15 + rest / 1e15)
    assert roofline(weight_only, 1.0, PEAKS)["tensor_share"] == pytest.approx((experts + rest) / 1e15)
    assert weight_only.bytes == native.bytes


def test_faster_than_the_floor_is_a_problem_and_is_not_clipped():
    found = roofline(count(QWEN3_30B, BF16, 1, 1, 0, "bfloat16"), 1e-3, PEAKS)
    assert found["share_of_limit"] > 1.5 and "the count or the peak is wrong" in found["problem"]
    assert roofline(count(QWEN3_30B, BF16, 1, 1, 0, "bfloat16"), 2e-3, PEAKS)["problem"] is None


def test_without_a_peak_there_is_no_share_but_a_reason():
    work = count(QWEN3_30B, BF16 | {"experts": "nvfp4"}, 1, 1, 0, "bfloat16")
    found = roofline(work, 1e-2, PEAKS)
    assert found["share_of_limit"] is found["tensor_share"] is found["bound"] is None
    assert found["reason"] == "no peak is known for products in nvfp4 (a made-up GPU)" and found["hbm_share"] > 0
    found = roofline(work, 1e-2, None)
    assert found["hbm_share"] is None and "no peaks" in found["reason"] and found["bytes_per_s"] == work.bytes / 1e-2


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_gives_no_rate(seconds):
    found = roofline(Work(()), seconds, PEAKS)
    assert found["bytes_per_s"] is found["seconds"] is None and "no time" in found["reason"]


def record(**changes) -> dict:
    layer = {"kind": "experts", "format": "bf16", "activations": "as weights", "compute_mode": "native"}
    return {
        "workload": "perf",
        "status": "ok",
        "gpu_name": "NVIDIA H200",
        "compute_mode": "native",
        "conditions": {"prefix_cache_hits": 0, "speculative_decoding": "off"},
        "requested": {"tp": 1, "ep": 1},
        "effective": {"formats": BF16, "kv_dtype": "bfloat16", "layers": [layer]},
        "batch_size": 1,
        "input_len": 512,
        "output_len": 128,
        "prefill_tokens_per_sec": 512 / 0.0234,
        "itl_ms": {"mean": 9.9, "p50": 4.32},
        **changes,
    }


def test_a_record_is_held_against_the_limits_of_its_gpu():
    found = of_record(record(), QWEN3_30B)
    decode = count(QWEN3_30B, BF16, 1, 1, 575, "bfloat16")
    assert found["decode"]["bytes"] == decode.bytes and found["decode"]["time"] == "median ITL"
    assert found["decode"]["share_of_limit"] == pytest.approx(decode.bytes / 4.8e12 / 4.32e-3)
    assert found["prefill"]["seconds"] == pytest.approx(0.0234) and found["prefill"]["peaks"].startswith("NVIDIA H200")
    measured = replace(peaks_of("NVIDIA H200"), hbm_bytes_per_s=4.25e12, source="copy, measured")
    found = of_record(record(), QWEN3_30B, measured)["decode"]
    assert found["share_of_limit"] == pytest.approx(0.334, abs=0.001) and found["peaks"] == "copy, measured"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "skipped"}, "no speed was measured: perf, skipped"),
        ({"workload": "ppl"}, "no speed was measured: ppl, ok"),
        ({"compute_mode": "emulated"}, "emulated"),
        ({"effective": {}}, "did not say the number formats"),
        ({"effective": {"formats": BF16, "kv_dtype": None}}, "or of its cache"),
        ({"batch_size": None}, "the record has no batch_size"),
    ],
)
def test_a_record_that_tells_nothing_has_nulls_and_a_reason(changes, reason):
    for phase in of_record(record(**changes), QWEN3_30B).values():
        assert reason in phase["reason"] and all(phase[name] is None for name in NOTHING if name != "reason")


def test_each_phase_has_its_own_reason():
    found = of_record(record(itl_ms=None), QWEN3_30B)
    assert found["prefill"]["reason"] is None and "no gaps between tokens" in found["decode"]["reason"]
    found = of_record(record(conditions={"prefix_cache_hits": 1, "speculative_decoding": "ngram"}), QWEN3_30B)
    assert "prefix cache" in found["prefill"]["reason"] and "speculative decoding" in found["decode"]["reason"]
    assert "config.json is not at hand" in of_record(record(), None)["decode"]["reason"]
    assert "no peaks are known" in of_record(record(gpu_name=None), QWEN3_30B)["decode"]["reason"]


def test_weights_stored_low_and_multiplied_in_16_bits_are_held_against_the_16_bit_peak():
    def experts_of(**layer):
        layer = {"kind": "experts", "format": "nvfp4", "activations": "nvfp4", "compute_mode": "native", **layer}
        facts = {"formats": BF16 | {"experts": "nvfp4"}, "kv_dtype": "bfloat16", "layers": [layer]}
        return of_record(record(effective=facts), QWEN3_30B)["decode"]

    assert "no peak is known for products in nvfp4" in experts_of()["reason"], "this GPU has no such arithmetic"
    for layer in ({"compute_mode": "weight_only"}, {"activations": "16 bit"}, {"activations": "fp8"}):
        assert experts_of(**layer)["reason"] is None
    assert "were not computed in nvfp4" in experts_of(compute_mode="emulated")["reason"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_no_real_record_is_faster_than_its_floor(path):
    written = json.loads(path.read_text())
    for phase, found in of_record(written, QWEN3_30B).items():
        if written["status"] == "ok":
            assert found["problem"] is None and 0.1 < found["share_of_limit"] < 0.9, phase
        else:
            assert found["share_of_limit"] is None and found["reason"]
