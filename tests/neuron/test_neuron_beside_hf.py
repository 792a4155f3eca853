"""The Neuron plugin beside HF on tinymoe, by the double: the same token ids, one table, facts from the live engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judging.compare import compare

ROOT = Path(__file__).parents[2]
HARNESS = [sys.executable, "-m", "harness"]
SIZES = "--input-len 32 --output-len 8 --num-iterations 3 --warmup-iterations 1 --batch-size 2 --num-chunks 16".split()


@pytest.fixture(scope="module")
def records(tmp_path_factory, double_env):
    """Of both engines in one command, by engine and workload."""
    folder = tmp_path_factory.mktemp("run")
    command = [*HARNESS, "run", "--engine", "hf,neuron", "--precision", "fp32", "--output-dir", folder, *SIZES]
    done = subprocess.run(command, capture_output=True, text=True, env=double_env, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in (folder / "records").iterdir()]
    return {(record["engine"], record["workload"]): record for record in found}


def test_perplexity_agrees_with_transformers_to_five_digits(records):
    ours, theirs = records["hf", "ppl"], records["neuron", "ppl"]
    assert {record["status"] for record in records.values()} == {"ok"}
    assert ours["conditions"]["token_ids_sha256"] == theirs["conditions"]["token_ids_sha256"]
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-5)
    assert theirs["per_chunk_ppls"] == pytest.approx(ours["per_chunk_ppls"], rel=1e-4)


def test_the_accuracy_of_the_two_engines_is_comparable_and_their_speed_differs_in_what_is_compiled(records):
    ours, theirs = records["hf", "ppl"], records["neuron", "ppl"]
    assert compare(ours, theirs).differing == {}
    ours, theirs = records["hf", "perf"], records["neuron", "perf"]
    assert set(compare(ours, theirs).differing) == {"compiled"}


def test_the_loaded_weights_say_what_ran_and_what_is_not_known_has_a_reason(records):
    facts = records["neuron", "perf"]["effective"]
    assert (facts["precision"], facts["compute_mode"], facts["kv_dtype"]) == ("fp32", "native", "float32")
    experts = [layer for layer in facts["layers"] if layer["kind"] == "experts"]
    assert [(layer["layers"], layer["weight_dtypes"]) for layer in experts] == [("0-3", "float32")] * 2
    assert set(facts["formats"]) == {"experts", "router", "attention", "embedding", "head"}
    assert set(facts["unread"]) == {name for name, value in facts.items() if value is None}
    assert facts["moe_backend"] is None and "does not name its kernels" in facts["unread"]["moe_backend"]
    assert facts["compiled_for"] == {"batch": 2, "context": 32, "total": 40}


def test_no_record_of_the_double_can_be_taken_for_a_real_one(records):
    record = records["neuron", "perf"]
    assert record["engine_version"] == record["effective"]["engine_version"] == "0.9.0+double"


def test_every_token_has_a_time_of_its_own(records):
    for iteration in records["neuron", "perf"]["raw"]["token_ns"]:
        (timeline,) = iteration
        assert timeline["requests"] == [0, 1] and len(set(timeline["ns"])) == 8


def test_its_logits_match_those_of_transformers(double_env, tmp_path):
    sizes = ["--num-chunks", "4", "--input-len", "32", "--num-tokens", "8"]
    options = {"cwd": tmp_path, "env": double_env, "text": True, "capture_output": True}
    subprocess.run([*HARNESS, "baseline", "--output", "b", "--precision", "fp32", *sizes], check=True, **options)
    asked = ["--engine", "neuron", "--precision", "fp32", "--json"]
    done = subprocess.run([*HARNESS, "validate", "--baseline", "b", *asked], **options)
    found = json.loads(done.stdout)
    (rung,), (record,) = found["ladder"], found["records"]
    assert (done.returncode, found["passed"]) == (0, True), done.stderr
    assert rung["divergence"]["tokens"] == 124 and rung["divergence"]["top1_agreement"] == 1
    assert rung["divergence"]["kl_forward"]["max"] < 1e-6
    assert record["logit_matching"]["tokens_checked"] == 32 and record["logit_matching"]["divergences"] == []


def test_the_contests_evaluation_counts_the_kernel_ratio_in_what_was_compiled(double_env, tmp_path, records):
    work = records["neuron", "perf"]["effective"]["compile_work_folder"]
    asked = ["--engine", "neuron", "--prompt", "Every token is as likely", "--seq-len", "40", "--flop-source", work]
    command = [*HARNESS, "evaluate", *asked, "--num-iterations", "2", "--num-tokens-to-check", "4", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=double_env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["score"]["accuracy"], found["score"]["kernel_flop_ratio"]) == (1, 0)  # the double has no kernels
    assert found["report"]["unmeasured"] == {} and found["report"]["n"]["token_generation_model"] == 2 * 31
    made = [json.loads(path.read_text()) for path in (tmp_path / "benchmark_results/records").iterdir()]
    (facts,) = [record["effective"] for record in made if record["engine"] == "neuron"]
    assert (facts["precision"], facts["compute_mode"]) == ("bf16", "native")
    assert facts["compiled_for"] == {"batch": 1, "context": 40, "total": 40}


def test_neuron_holds_the_contract_of_every_engine_and_its_own(double_env, tmp_path):
    files = [ROOT / "tests/engines/test_neuron.py", ROOT / "tests/neuron/test_neuron_sessions.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=double_env)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
