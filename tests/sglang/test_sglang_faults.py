"""SGLang's bad manners: it kills its caller, it stops early, it caches. Each is classified, and nothing is left."""

from __future__ import annotations

import pytest


def failures(harness) -> list[tuple[str, str]]:
    found = [record["failure"] for record in harness.records() if record["status"] == "failed"]
    return [(failure["class"], failure["message"]) for failure in found]


def test_a_scheduler_that_runs_out_of_memory_while_loading_is_said_in_its_own_words(sglang):
    done = sglang.run("--workload", "perf", sins=("oom",))
    ((kind, message),) = failures(sglang)
    assert (done.returncode, kind) == (1, "out_of_memory"), done.stderr
    assert "Tried to allocate 20.00 GiB" in message and "Traceback" not in done.stderr
    assert sglang.processes() == {}


def test_a_scheduler_that_dies_at_work_kills_its_caller_and_costs_its_cell_only(sglang):
    done = sglang.run("--workload", "perf,ppl", "--batch-size", "1", "--num-chunks", "1", sins=("die",))
    records = {record["workload"]: record for record in sglang.records()}
    assert done.returncode == 1 and records["ppl"]["status"] == "ok", done.stderr
    failure = records["perf"]["failure"]
    assert failure["class"] == "crashed" and "SIGKILL" in failure["message"]
    assert "illegal memory access" in failure["log_tail"]
    assert sglang.processes() == {}


@pytest.mark.parametrize(
    ("sin", "workload", "words"),
    [
        ("stop", "perf", "3 of 4 tokens"),
        ("cached", "perf", "tokens from its prefix cache"),
        ("nan", "ppl", "not finite"),
        ("shifted", "ppl", "scored 15 tokens of a prompt of 16"),
    ],
)
def test_answers_that_mean_something_else_are_refused(sglang, sin, workload, words):
    sglang.run("--workload", workload, sins=(sin,))
    ((kind, message),) = failures(sglang)
    assert kind == "bad_output" and words in message


def test_an_unknown_moe_runner_fails_in_sglangs_own_words(sglang):
    sglang.run("--workload", "perf", "--moe-backend", "nonsense")
    ((kind, message),) = failures(sglang)
    assert kind == "load_failed" and "'nonsense' is not a valid MoeRunnerBackend" in message


def test_a_runner_no_layer_tells_of_is_null_with_the_reason(sglang):
    sglang.run("--workload", "perf", sins=("auto",))
    (record,) = sglang.records()
    assert record["status"] == "ok" and record["effective"]["moe_backend"] is None
    assert "no layer said" in record["effective"]["unread"]["moe_backend"]


def test_without_a_gpu_nothing_is_started_and_the_reason_is_said(sglang):
    done = sglang.run("--workload", "perf", has_gpu=False)
    (record,) = sglang.records()
    assert record["status"] == "skipped" and "CUDA kernels only" in record["reason"]
    assert done.returncode == 0, done.stderr


def test_a_profile_is_broken_down_by_phase(sglang):
    done = sglang.run("--workload", "perf", "--batch-size", "2", "--profile", "torch")
    (record,) = sglang.records()
    assert done.returncode == 0, done.stderr
    profile = record["profile"]
    assert profile["valid"] and len(profile["files"]) == 1, profile["problems"]
    assert (profile["phases"]["prefill"]["steps"], profile["phases"]["decode"]["steps"]) == (1, 3)
    assert profile["phases"]["decode"]["categories"]["expert_gemm"]["kernel_count"] >= 3 * 2 * 4  # steps, two products, layers
