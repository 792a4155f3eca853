"""The real vLLM beside HF on tinymoe: the same token ids, one table, facts from the live engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judging.compare import compare
from harness.recording.conditions import CONDITIONS

ROOT = Path(__file__).parents[2]
SIZES = ["--num-iterations", 3, "--warmup-iterations", 1, "--batch-size", 2, "--num-chunks", 8]


@pytest.fixture(scope="module")
def run(tmp_path_factory, vllm_python):
    """Both engines in one command; returns its output and its records by engine, precision and workload. FP32 is
    test_in_fp32_its_logits_match_those_of_transformers."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--engine", "hf,vllm", "--precision", "bf16,fp8", "--workload", "perf,ppl", *map(str, SIZES)]
    command = [sys.executable, "-m", "harness", "run", *arguments, "--python", f"vllm={vllm_python}"]
    done = subprocess.run([*command, "--output-dir", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (folder / "records").iterdir()]
    return done.stdout, {(r["engine"], r["precision"], r["workload"]): r for r in records}, folder


def test_every_cell_is_measured_or_says_why_not(run):
    _, records, _ = run
    statuses = {cell: record["status"] for cell, record in records.items()}
    skipped = {("hf", "fp8", "perf"), ("vllm", "fp8", "perf"), ("vllm", "fp8", "ppl")}
    assert {cell for cell, status in statuses.items() if status == "skipped"} == skipped
    assert set(statuses.values()) == {"ok", "skipped"}
    assert "no CPU kernel for fp8" in records["vllm", "fp8", "perf"]["reason"]


def test_perplexity_agrees_with_transformers_on_the_same_tokens(run):
    _, records, _ = run
    ours, theirs = records["hf", "bf16", "ppl"], records["vllm", "bf16", "ppl"]
    assert ours["conditions"]["token_ids_sha256"] == theirs["conditions"]["token_ids_sha256"]
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=5e-3)
    assert theirs["per_chunk_ppls"] == pytest.approx(ours["per_chunk_ppls"], rel=5e-2)


@pytest.mark.parametrize("workload", ["perf", "ppl"])
def test_the_two_engines_are_comparable_and_every_condition_is_known(run, workload):
    _, records, _ = run
    ours, theirs = records["hf", "bf16", workload], records["vllm", "bf16", workload]
    assert compare(ours, theirs).differing == {}
    sizes = {"batch_size", "output_len", "sampling", "ignore_eos"} if workload == "ppl" else set()
    assert {name for name in CONDITIONS if theirs["conditions"][name] is None} <= sizes


def test_the_facts_are_those_of_the_live_engine(run):
    _, records, _ = run
    facts = records["vllm", "bf16", "perf"]["effective"]
    assert (facts["precision"], facts["compute_mode"], facts["moe_backend"]) == ("bf16", "native", "CPU")
    assert facts["moe_kernel"].endswith("UnquantizedExperts") and facts["moe_backends_passed_over"] == []
    experts = [layer for layer in facts["layers"] if layer["kind"] == "experts"]
    assert [(layer["layers"], layer["weight_dtypes"]) for layer in experts] == [("0-3", "bfloat16")]
    assert {"attention", "experts", "head", "router", "embedding"} == set(facts["weight_dtypes"])
    assert facts["attention_kernel"] == "CPUAttentionBackendImpl" and facts["kv_dtype"] == "bfloat16"
    assert facts["prefix_cache"] is False and facts["prefix_cache_hits"] == 0
    assert facts["compile_mode"] == "NONE" and facts["max_num_seqs"] > 0 and facts["kv_blocks"] > 0
    assert set(facts["unread"]) == {name for name, value in facts.items() if value is None}


def test_every_token_has_a_time_of_its_own(run):
    _, records, _ = run
    record = records["vllm", "bf16", "perf"]
    for iteration in record["raw"]["token_ns"]:
        assert sorted(index for timeline in iteration for index in timeline["requests"]) == [0, 1]
        for timeline in iteration:
            assert len(timeline["ns"]) == record["output_len"] == len(set(timeline["ns"]))
    assert record["ttft_ms"]["n"] == 3 * 2 and record["itl_ms"]["n"] == 3 * 2 * (record["output_len"] - 1)


def test_the_table_ranks_what_is_comparable_and_says_what_was_skipped(run):
    output, _, _ = run
    assert " at batch 2, 128+32" in output
    assert "vLLM has no CPU kernel for fp8" in output


def test_folders_of_two_runs_compare(run):
    _, _, folder = run
    command = [sys.executable, "-m", "harness", "compare", folder, folder, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (done.returncode, found["comparable"], found["differing"]) == (0, True, {}), done.stderr
    assert {difference["verdict"] for difference in found["metrics"].values()} == {"no difference"}


def test_in_fp32_its_logits_match_those_of_transformers(vllm_python, tmp_path):
    """Over windows, and decoding greedily: the engine error without BF16's rounding in it."""
    command = [sys.executable, "-m", "harness"]
    sizes = ["--num-chunks", "4", "--input-len", "64", "--num-tokens", "8"]
    subprocess.run([*command, "baseline", "--output", "b", "--precision", "fp32", *sizes], cwd=tmp_path, check=True)
    asked = ["--engine", "vllm", "--precision", "fp32", "--python", f"vllm={vllm_python}", "--json"]
    done = subprocess.run(
        [*command, "validate", "--baseline", "b", *asked], cwd=tmp_path, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    (rung,) = found["ladder"]
    assert (done.returncode, found["passed"], rung["cause"]) == (0, True, "engine"), done.stderr
    assert rung["divergence"]["tokens"] == 252 and rung["divergence"]["kl_is"].startswith("exact")
    assert 0 < rung["divergence"]["kl_forward"]["max"] < 1e-6 and rung["divergence"]["top1_agreement"] == 1
    differences = rung["divergence"]["nll_difference"]["of_absolute_values"]
    assert differences["max"] < 1e-4  # so perplexity agrees to five digits
    assert rung["divergence"]["routing"] is None and "does not tell" in rung["divergence"]["routing_unread"]
    (record,) = found["records"]
    assert record["effective"]["kv_dtype"] == "float32"
    assert record["logit_matching"]["tokens_checked"] == 32 and record["logit_matching"]["divergences"] == []


def test_vllm_holds_the_contract_of_every_engine(vllm_python, tmp_path):
    command = [vllm_python, "-m", "pytest", "-p", "no:cacheprovider", ROOT / "tests/engines/test_vllm.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
