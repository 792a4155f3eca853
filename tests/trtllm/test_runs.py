"""The double below `harness run`, as a person runs it: beside HF, with its bad luck, and no process left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judging.compare import compare

KIT = Path(__file__).parents[1] / "engines" / "test_trtllm.py"


@pytest.mark.parametrize("era", ["1_2", "1_4"])
def test_the_double_holds_the_contract_of_every_engine(era, tmp_path, environment_of):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", KIT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment_of(era))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def records(tmp_path_factory, environment_of, sizes):
    """By engine, version and workload: of HF and 1.2 as they are; of 1.4 under PyTorch's profiler, so in one process."""
    folder, found = tmp_path_factory.mktemp("run"), []
    for era, options in (("1_2", ["--engine", "hf,trtllm"]), ("1_4", ["--engine", "trtllm", "--profile", "torch"])):
        command = [sys.executable, "-m", "harness", "run", "--json", "--precision", "bf16", *sizes, *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment_of(era), cwd=folder)
        assert done.returncode == 0, done.stderr
        found += json.loads(done.stdout)
    return {(record["engine"], record["engine_version"][:3], record["workload"]): record for record in found}


@pytest.fixture(scope="module")
def hf(records):
    return {workload: record for (engine, _, workload), record in records.items() if engine == "hf"}


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_perplexity_agrees_with_transformers_to_five_digits(records, hf, version):
    theirs = records["trtllm", version, "ppl"]
    assert theirs["perplexity"] == pytest.approx(hf["ppl"]["perplexity"], rel=1e-5)
    assert compare(hf["ppl"], theirs).differing == {}


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_a_timed_record_says_what_ran_and_where_the_model_was(records, version):
    timed = records["trtllm", version, "perf"]
    assert (timed["status"], timed["moe_backend"]) == ("ok", "CUTLASS")
    assert timed["engine_version"].endswith("+double")
    assert timed["ttft_ms"]["n"] == timed["tpot_ms"]["n"] == 2 and timed["itl_ms"] is None
    assert timed["effective"]["prefix_cache_hits"] == 0 and timed["effective"]["downgrades"] == []
    assert timed["effective"]["model_in_this_process"] == (version == "1.4")
    assert ("model in this process" in timed["effective"]["clock"]) == (version == "1.4")
    assert timed["effective"]["cuda_graphs"], "timed passes run with graphs, whatever comes after them"


def test_pytorchs_profiler_sees_the_engines_own_thread_in_steps_and_modules(records):
    record = records["trtllm", "1.4", "perf"]
    profile = record["profile"]
    assert (profile["valid"], profile["problems"], record["conditions"]["profiler"]) == (True, [], "off")
    assert {phase: found["steps"] for phase, found in profile["phases"].items()} == {"prefill": 1, "decode": 3}
    for phase in profile["phases"].values():
        counts = {name: share["kernel_count"] for name, share in phase["categories"].items()}
        assert {"expert_gemm", "dense_gemm", "gate_gemm", "attention", "routing_permute"} <= counts.keys()
        assert counts["expert_gemm"] >= 2 * 4 * phase["steps"]  # gate/up and down of four layers


def test_validate_runs_on_whole_distributions(trtllm):
    sizes = ["--num-chunks", 2, "--input-len", 64, "--num-tokens", 4]
    made = trtllm("baseline", "--output", "b", "--precision", "bf16", *sizes)
    assert made.returncode == 0, made.stderr
    done = trtllm("validate", "--baseline", "b", "--engine", "trtllm", "--precision", "bf16", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (0, True), done.stderr
    assert found["ladder"][0]["divergence"]["kl_forward"]["max"] < 1e-3


def test_an_engine_that_hangs_at_the_end_costs_no_cell_and_a_downgrade_is_read_from_its_log(trtllm, install):
    install("impatient", "from harness_trtllm import arguments\n\narguments.SHUTDOWN_S = 0.5\n")
    trtllm.use("1_2", "hang_on_shutdown")
    done = trtllm(*trtllm.small_run("--workload", "perf", "--moe-backend", "trtllm"))
    assert done.returncode == 0, done.stderr
    (record,) = trtllm.records()
    assert (record["status"], record["moe_backend"]) == ("ok", "CUTLASS")
    assert "Using CutlassFusedMoE instead" in record["effective"]["downgrades"][0]
    (log,) = (trtllm.folder / "out" / "logs").glob("*.log")
    assert "TensorRT-LLM did not end within 0.5 s; it is killed" in log.read_text()
    assert trtllm.processes() == {}


@pytest.mark.parametrize(
    ("fault", "workload", "failure", "words"),
    [
        ("dies", "perf", "crashed", ""),
        ("nan", "ppl", "bad_output", ""),
        ("oom", "perf", "out_of_memory", "60.00 GiB"),  # said in the engine's own process
    ],
)
def test_bad_luck_is_classified_and_no_process_is_left(trtllm, fault, workload, failure, words):
    trtllm.use("1_2", fault)
    if fault == "nan":  # of the model, wherever it lives: here without a probe and a process of its own
        trtllm.env["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1"
    done = trtllm(*trtllm.small_run("--workload", workload))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    (record,) = trtllm.records()
    assert record["failure"]["class"] == failure and words in record["failure"]["message"]
    assert trtllm.processes() == {}


def test_the_table_is_shown_for_a_gpu_one_has_not(trtllm):
    done = trtllm("list", "precisions", "--engine", "trtllm", "--sm", 90, "--json")
    rows = {row["precision"]: row for row in json.loads(done.stdout)}
    assert rows["nvfp4"]["compute_mode"] == "unsupported" and "SM 90" in rows["nvfp4"]["reason"]
