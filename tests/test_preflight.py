"""What cannot work by arithmetic alone is said before anything is loaded, in the words of the broken rule."""

from __future__ import annotations

import json

import pytest

from harness.cells import Setup
from harness.precision import EMULATED, NATIVE
from harness.preflight import broken_rule

QWEN3_30B = {  # by its config.json
    **{"model_type": "qwen3_moe", "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128},
    **{"moe_intermediate_size": 768, "max_position_embeddings": 40960},
}
GPT_OSS = {
    **{"model_type": "gpt_oss", "num_attention_heads": 64, "num_key_value_heads": 8, "num_local_experts": 32},
    **{"intermediate_size": 2880, "max_position_embeddings": 131072},
}


def broken(folder, config, parameters={}, mode=NATIVE, precision="bf16", **setup) -> str | None:
    (folder / "config.json").write_text(json.dumps(config))
    return broken_rule(Setup("an-engine", "a-model", str(folder), precision, **setup), parameters, mode)


@pytest.mark.parametrize(
    ("config", "setup", "words"),
    [
        (QWEN3_30B, {"tp": 3}, "--tp 3 does not divide the 32 attention heads"),
        (QWEN3_30B, {"tp": 2, "ep": 4}, "--ep 4 does not divide --tp 2"),
        (QWEN3_30B | {"num_experts": 6}, {"tp": 4, "ep": 4}, "--ep 4 does not divide the 6 experts"),
        (QWEN3_30B | {"num_key_value_heads": 3}, {"tp": 4}, "3 key/value heads"),
        (QWEN3_30B | {"moe_intermediate_size": 770}, {"tp": 4}, "does not divide an expert's width of 770"),
        (QWEN3_30B, {"tp": 4, "precision": "fp8_block"}, "768 / (4 / 1) = 192 is no multiple of 128"),
        (GPT_OSS, {"precision": "fp8_block"}, "2880 is no multiple of 128"),
        ({"text_config": QWEN3_30B}, {"tp": 3}, "--tp 3 does not divide the 32 attention heads"),
    ],
)
def test_a_split_that_does_not_work_out_is_told_by_its_rule(tmp_path, config, setup, words):
    assert words in broken(tmp_path, config, **setup)


@pytest.mark.parametrize(
    ("config", "setup"),
    [
        (QWEN3_30B, {"tp": 8}),  # 4 key/value heads are copied, 2 ranks each
        (QWEN3_30B, {"tp": 4, "precision": "fp8"}),
        (QWEN3_30B, {"tp": 2, "precision": "fp8_block"}),
        (QWEN3_30B, {"tp": 4, "ep": 4, "precision": "fp8_block"}),  # whole experts
        (QWEN3_30B, {"tp": 4, "precision": "fp8_block", "mode": EMULATED}),  # values, not kernels
        ({}, {"tp": 3}),  # of a model that says nothing, nothing is said
        ({"num_attention_heads": "many", "num_experts": -1, "moe_intermediate_size": None}, {"tp": 3}),
    ],
)
def test_what_may_work_is_not_refused(tmp_path, config, setup):
    assert broken(tmp_path, config, **setup) is None


def test_more_tokens_than_positions_are_refused(tmp_path):
    sizes = {"input_len": 40000, "output_len": 960}
    assert broken(tmp_path, QWEN3_30B, sizes) is None
    words = broken(tmp_path, QWEN3_30B, sizes | {"output_len": 961})
    assert words == "40961 tokens are more than the model's 40960 positions (max_position_embeddings)"


@pytest.mark.parametrize("file", ["rank0.engine", "model-q4.gguf", "weights.npz"])
def test_another_programs_weights_are_named_as_such(tmp_path, file):
    (tmp_path / file).touch()
    assert f"{tmp_path} holds" in broken(tmp_path, QWEN3_30B)
    (tmp_path / "model.safetensors").touch()  # beside these, what other programs keep does no harm
    assert broken(tmp_path, QWEN3_30B) is None


def test_a_cell_that_breaks_a_rule_is_skipped_and_the_others_are_measured(harness):
    done = harness("run", "--engine", "echo", "--workload", "perf", "--output-dir", "out", "--precision", "bf16",
                   "--output-len", 4, "--input-len", "8,4096")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {record["input_len"]: (record["status"], record["reason"]) for record in harness.records()}
    assert found[8][0] == "ok" and found[4096][0] == "skipped"
    assert found[4096][1] == "4100 tokens are more than the model's 2048 positions (max_position_embeddings)"
    assert found[4096][1] in done.stdout + done.stderr
