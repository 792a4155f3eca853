"""The double below `harness run`, as a person runs it: beside HF, with its bad luck, and no process left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.compare import compare

KIT = Path(__file__).parents[1] / "engines" / "test_trtllm.py"


@pytest.mark.parametrize("era", ["1_2", "1_4"])
def test_the_double_holds_the_contract_of_every_engine(era, tmp_path, environment_of):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", KIT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment_of(era))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("era", ["1_2", "1_4"])
def test_perplexity_agrees_with_transformers_to_five_digits(trtllm, era):
    trtllm.use(era)
    done = trtllm(*trtllm.small_run("--engine", "hf,trtllm", "--moe-backend", "auto"))
    assert done.returncode == 0, done.stderr
    records = {(record["engine"], record["workload"]): record for record in trtllm.records()}
    ours, theirs = records["hf", "ppl"], records["trtllm", "ppl"]
    assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-5)
    assert compare(ours, theirs).differing == {}
    timed = records["trtllm", "perf"]
    assert (timed["status"], timed["moe_backend"]) == ("ok", "CUTLASS")
    assert timed["engine_version"].endswith("+double")
    assert timed["ttft_ms"]["n"] == timed["tpot_ms"]["n"] == 2 and timed["itl_ms"] is None
    assert timed["effective"]["prefix_cache_hits"] == 0 and timed["effective"]["downgrades"] == []
    assert trtllm.processes() == {}


def test_validate_runs_on_whole_distributions(trtllm):
    sizes = ["--num-chunks", 2, "--input-len", 64, "--num-tokens", 4]
    made = trtllm("baseline", "--output", "b", "--precision", "bf16", *sizes)
    assert made.returncode == 0, made.stderr
    done = trtllm("validate", "--baseline", "b", "--engine", "trtllm", "--precision", "bf16", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (0, True), done.stderr
    assert found["ladder"][0]["divergence"]["kl_forward"]["max"] < 1e-3


def test_a_downgrade_is_read_from_the_log(trtllm):
    done = trtllm(*trtllm.small_run("--engine", "trtllm", "--workload", "perf", "--moe-backend", "trtllm"))
    (record,) = trtllm.records()
    assert done.returncode == 0 and record["moe_backend"] == "CUTLASS"
    assert "Using CutlassFusedMoE instead" in record["effective"]["downgrades"][0]


def test_an_engine_that_hangs_at_the_end_costs_no_cell_and_is_not_left(trtllm):
    trtllm.use("1_2", "hang_on_shutdown")
    done = trtllm(*trtllm.small_run("--engine", "trtllm", "--workload", "perf"))
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in trtllm.records()] == ["ok"]
    assert trtllm.processes() == {}


@pytest.mark.parametrize(
    ("fault", "workload", "failure"),
    [("dies", "perf", "crashed"), ("nan", "ppl", "bad_output"), ("oom", "perf", "out_of_memory")],
)
def test_bad_luck_is_classified_and_no_process_is_left(trtllm, fault, workload, failure):
    trtllm.use("1_2", fault)
    done = trtllm(*trtllm.small_run("--engine", "trtllm", "--workload", workload))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert [record["failure"]["class"] for record in trtllm.records()] == [failure]
    assert trtllm.processes() == {}


def test_the_table_is_shown_for_a_gpu_one_has_not(trtllm):
    done = trtllm("list", "precisions", "--engine", "trtllm", "--sm", 90, "--json")
    rows = {row["precision"]: row for row in json.loads(done.stdout)}
    assert rows["nvfp4"]["compute_mode"] == "unsupported" and "SM 90" in rows["nvfp4"]["reason"]
