"""Memory of a load: against what GPUs held, what makers publish, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.model.footprint import footprint
from harness.model.models import DATA, known
from harness.model.shape import shape_of
from harness.model.weights import config_of

GIB = 1 << 30
RECORDS = sorted((Path(__file__).parents[1] / "docs/h200/records").glob("*.json"))


def of(name, precision="bf16", quantize="experts", tp=1, ep=1, batch_size=1, tokens=1024, **more):
    config = config_of(known()[name].path)
    more = {"kv_heads": config["num_key_value_heads"]} | more
    return footprint(shape_of(config), precision, quantize, tp, ep, batch_size, tokens, **more)


def test_what_a_gpu_had_left_for_its_cache_is_what_the_weights_did_not_take():
    """vLLM fills the memory that is left: from one precision to another its cache grows by what the weights shrink."""
    pools = {}
    for record in map(json.loads, (path.read_text() for path in RECORDS)):
        if record["engine"] == "vllm":
            blocks = record["effective"]["kv_blocks"] * record["effective"]["kv_block_size"]
            assert record["effective"]["kv_dtype"] == "bfloat16"
            pools[record["precision"]] = blocks * of("qwen3-30b-a3b", tokens=1).cache
    assert pools.keys() == {"bf16", "fp8", "fp8_block", "nvfp4"}
    whole = of("qwen3-30b-a3b").weights
    for precision in ("fp8", "fp8_block", "nvfp4"):
        saved = whole - of("qwen3-30b-a3b", precision).weights
        assert pools[precision] - pools["bf16"] == pytest.approx(saved, rel=0.03), precision


def test_the_weights_transformers_held_on_a_gpu_are_met():
    held = {json.loads(path.read_text())["effective"].get("parameters") for path in RECORDS} - {None}
    assert [of("qwen3-30b-a3b").weights] == [2 * parameters for parameters in held]
    assert of("qwen3-30b-a3b").weights / GIB == pytest.approx(56.9, abs=0.05)


@pytest.mark.parametrize(
    ("name", "precision", "quantize", "gib"),
    [("gpt-oss-20b", "mxfp4", "experts", 12.8), ("gpt-oss-120b", "mxfp4", "experts", 60.8)],
)
def test_published_sizes_of_checkpoints_are_met(name, precision, quantize, gib):
    assert of(name, precision, quantize).weights / GIB == pytest.approx(gib, rel=0.01)


def test_the_embedded_model_takes_what_its_file_has():
    config = json.loads((DATA / "tinymoe/config.json").read_text())
    found = footprint(shape_of(config), "bf16", "experts", 1, 1, 1, 160).weights
    assert found == pytest.approx((DATA / "tinymoe/model.safetensors").stat().st_size, rel=0.01)


@pytest.mark.parametrize("name", [name for name, model in known().items() if model.config])
def test_ranks_together_hold_the_model_once_and_a_little_of_it_more_often(name):
    whole = of(name).weights
    assert whole == 2 * shape_of(known()[name].config).parameters
    for tp in (2, 4, 8):
        for ep in (1, tp):
            share = of(name, tp=tp, ep=ep).weights
            assert whole / tp < share < 1.01 * whole / tp, "router, norms, copies of key/value heads"


def test_experts_that_do_not_divide_evenly_make_one_rank_the_fullest():
    experts = 2 * shape_of(known()["qwen3-30b-a3b"].config).weights["experts"]
    even, uneven = of("qwen3-30b-a3b", tp=4, ep=4).weights, of("qwen3-30b-a3b", tp=3, ep=3).weights
    assert uneven - even > experts * (43 / 128 - 32 / 128), "43 of 128 on the first of three"


def test_key_value_heads_are_split_until_each_rank_has_one_and_copied_beyond():
    caches = [of("qwen3-30b-a3b", tp=tp).cache for tp in (1, 2, 4, 8)]
    assert caches == [1024 * 98304, 1024 * 49152, 1024 * 24576, 1024 * 24576], "4 heads"
    # 48 layers, hidden 2048, a head of 128, keys and values: at tp 8 a whole head each, half of one if it could be cut
    copied = of("qwen3-30b-a3b", tp=8).weights - of("qwen3-30b-a3b", tp=8, kv_heads=8).weights
    assert copied == pytest.approx(48 * 2048 * 128 * 2 / 2 * 2)


def test_latent_attention_keeps_its_cache_whole_on_every_rank():
    assert of("deepseek-v3.1").cache == of("deepseek-v3.1", tp=8).cache == 1024 * 70272


def test_a_sliding_window_bounds_the_cache_of_its_layers():
    short, long = of("gpt-oss-20b", tokens=128).cache, of("gpt-oss-20b", tokens=1128).cache
    assert short == 128 * 49152
    assert long - short == 1000 * 49152 / 2, "every second layer looks back 128 tokens"


def test_the_cache_follows_batch_and_format():
    assert of("glm-4.6", batch_size=16).cache == 16 * of("glm-4.6").cache
    assert of("glm-4.6", kv_bits=8).cache == of("glm-4.6").cache / 2


def test_the_scope_of_quantisation_says_which_parts_shrink():
    shape = shape_of(known()["deepseek-v3.1"].config)
    experts, linear = (of("deepseek-v3.1", "fp8", scope).weights for scope in ("experts", "linear"))
    rest = sum(shape.weights[part] for part in ("shared experts", "dense MLP", "attention projections"))
    assert of("deepseek-v3.1").weights - experts == shape.weights["experts"]
    assert experts - linear == rest
    assert of("deepseek-v3.1", "fp32").weights == 2 * of("deepseek-v3.1").weights


def test_activations_by_hand():
    hidden, gate_and_up, vocabulary = 2048, 8 * 2 * 768, 151936
    by_hand = {tp: 16 * 512 * (hidden + gate_and_up / tp) * 2 + 16 * vocabulary * 4 for tp in (1, 4)}
    for tp, size in by_hand.items():
        assert of("qwen3-30b-a3b", batch_size=16, tokens=512, tp=tp).activations == size
    assert of("qwen3-30b-a3b", batch_size=16, tokens=512, tp=4, ep=4).activations == by_hand[1], (
        "all chosen on one rank"
    )


def test_a_dense_model_has_no_experts():
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    config |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "tie_word_embeddings": True,
    }
    shape = shape_of(config)
    found = footprint(shape, "fp8", "experts", 1, 1, 1, 10)
    assert found.weights == 2 * shape.parameters
    assert found.activations == 10 * (64 + 2 * 256) * 2 + 100 * 4
    assert found.total == found.weights + found.cache + found.activations
