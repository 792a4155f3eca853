"""The SGLang plugin beside HF on tinymoe, by the double: the same token ids, one table, facts from the live engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judging.compare import compare
from harness.recording.conditions import CONDITIONS

ROOT = Path(__file__).parents[2]
SIZES = "--input-len 64 --output-len 8 --num-iterations 2 --warmup-iterations 1 --batch-size 2 --num-chunks 16".split()


@pytest.fixture(scope="module")
def records(tmp_path_factory, double_env):
    """Of both engines in one command, by engine and workload. FP32 is test_its_logits_match_those_of_transformers."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "harness", "run", "--engine", "hf,sglang", "--precision", "bf16"]
    arguments = [*command, "--workload", "perf,ppl", *SIZES, "--output-dir", folder]
    done = subprocess.run(arguments, capture_output=True, text=True, env=double_env, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in (folder / "records").iterdir()]
    assert {record["status"] for record in found} == {"ok"} and len(found) == 4, done.stderr
    return {(record["engine"], record["workload"]): record for record in found}


def test_perplexity_agrees_with_transformers(records):
    ours, theirs = records["hf", "ppl"], records["sglang", "ppl"]
    assert ours["conditions"]["token_ids_sha256"] == theirs["conditions"]["token_ids_sha256"]
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-4)
    assert theirs["per_chunk_ppls"] == pytest.approx(ours["per_chunk_ppls"], rel=1e-2)


@pytest.mark.parametrize("workload", ["perf", "ppl"])
def test_nothing_about_its_records_is_unknown_to_a_comparison(records, workload):
    ours, theirs = records["hf", workload], records["sglang", workload]
    assert compare(ours, theirs).differing == {}
    sizes = {"batch_size", "output_len", "sampling", "ignore_eos"} if workload == "ppl" else set()
    assert {name for name in CONDITIONS if theirs["conditions"][name] is None} <= sizes


def test_the_moe_runner_is_read_from_the_layers_and_never_auto(records):
    facts = records["sglang", "perf"]["effective"]
    assert (facts["moe_backend_argument"], facts["moe_backend"]) == ("auto", "triton")
    assert facts["moe_kernel"] == "fused_experts_none_to_triton" and "scheduler process" in facts["moe_backend_learned"]
    experts = [layer for layer in facts["layers"] if layer["kind"] == "experts"]
    assert [(layer["layers"], layer["weight_dtypes"]) for layer in experts] == [("0-3", "bfloat16")]


def test_no_prefix_is_cached_and_what_is_not_known_has_a_reason(records):
    facts = records["sglang", "perf"]["effective"]
    assert (facts["prefix_cache"], facts["prefix_cache_kind"], facts["prefix_cache_hits"]) == (False, "ChunkCache", 0)
    assert set(facts["unread"]) == {name for name, value in facts.items() if value is None}
    assert facts["arguments_left_out"] == [] and facts["ranks"] == 1
    assert set(facts["environment"]["variables"]) == {"SGLANG_DOUBLE", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"}


def test_no_record_of_the_double_can_be_taken_for_a_real_one(records):
    record = records["sglang", "perf"]
    assert record["engine_version"] == record["effective"]["engine_version"] == "0.5.23+double"
    assert "double" in record["conditions"]["device"]


def test_every_token_has_a_time_of_its_own_and_the_engine_tells_of_the_first(records):
    record = records["sglang", "perf"]
    for iteration in record["raw"]["token_ns"]:
        assert sorted(index for timeline in iteration for index in timeline["requests"]) == [0, 1]
        for timeline in iteration:
            assert len(timeline["ns"]) == record["output_len"] == len(set(timeline["ns"]))
    assert record["effective"]["engine_ttft_ms"] > 0


def test_its_logits_match_those_of_transformers(double_env, tmp_path):
    command = [sys.executable, "-m", "harness"]
    sizes = ["--num-chunks", "4", "--input-len", "64", "--num-tokens", "8"]
    options = {"cwd": tmp_path, "env": double_env, "text": True, "capture_output": True}
    subprocess.run([*command, "baseline", "--output", "b", "--precision", "fp32", *sizes], check=True, **options)
    asked = ["--engine", "sglang", "--precision", "fp32", "--json"]
    done = subprocess.run([*command, "validate", "--baseline", "b", *asked], **options)
    found = json.loads(done.stdout)
    (rung,), (record,) = found["ladder"], found["records"]
    assert (done.returncode, found["passed"], rung["cause"]) == (0, True, "engine"), done.stderr
    assert rung["divergence"]["tokens"] == 252 and rung["divergence"]["top1_agreement"] == 1
    assert rung["divergence"]["kl_forward"]["max"] < 1e-6
    assert rung["divergence"]["nll_difference"]["of_absolute_values"]["max"] < 1e-4  # perplexity to five digits
    assert record["logit_matching"]["tokens_checked"] == 32 and record["logit_matching"]["divergences"] == []


def test_sglang_holds_the_contract_of_every_engine(double_env, tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ROOT / "tests/engines/test_sglang.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=double_env)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
