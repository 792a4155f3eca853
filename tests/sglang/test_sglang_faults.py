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
    asked = ("--workload", "perf,ppl", "--batch-size", "1", "--num-chunks", "1", "--precision", "fp8")
    done = sglang.run(*asked, sins=("die", "auto"))
    records = {record["workload"]: record for record in sglang.records()}
    assert done.returncode == 1 and records["ppl"]["status"] == "ok", done.stderr
    failure = records["perf"]["failure"]
    assert failure["class"] == "crashed" and "SIGKILL" in failure["message"]
    assert "illegal memory access" in failure["log_tail"]
    assert sglang.processes() == {}
    _check_that_experts_alone_are_fp8(records["ppl"]["effective"])
    _check_that_no_runner_is_told(records["ppl"]["effective"])


def _check_that_experts_alone_are_fp8(facts):
    assert (facts["precision"], facts["quantize"], facts["quantization"]) == ("fp8", "experts", "fp8")
    assert (facts["formats"]["experts"], facts["formats"]["attention"]) == ("fp8", "bf16")
    assert facts["environment"]["variables"]["SGLANG_FP8_IGNORED_LAYERS"] == "self_attn"


def _check_that_no_runner_is_told(facts):
    """The sin "auto"."""
    assert facts["moe_backend"] is None and "no layer said" in facts["unread"]["moe_backend"]


@pytest.mark.parametrize(
    ("sins", "words"),
    [
        (("stop", "nan"), {"perf": "3 of 4 tokens", "ppl": "not finite"}),
        (("cached", "shifted"), {"perf": "tokens from its prefix cache", "ppl": "scored 15 tokens of a prompt of 16"}),
    ],
)
def test_answers_that_mean_something_else_are_refused(sglang, sins, words):
    sglang.run("--workload", "perf,ppl", sins=sins)
    found = {record["workload"]: record["failure"] for record in sglang.records()}
    assert {failure["class"] for failure in found.values()} == {"bad_output"}
    assert all(words[workload] in found[workload]["message"] for workload in words), found


def test_an_unknown_moe_runner_fails_in_sglangs_own_words(sglang):
    sglang.run("--workload", "perf", "--moe-backend", "nonsense")
    ((kind, message),) = failures(sglang)
    assert kind == "load_failed" and "'nonsense' is not a valid MoeRunnerBackend" in message


def test_without_a_gpu_nothing_is_started_and_the_reason_is_said(sglang):
    done = sglang.run("--workload", "perf", has_gpu=False)
    (record,) = sglang.records()
    assert record["status"] == "skipped" and "CUDA kernels only" in record["reason"]
    assert done.returncode == 0, done.stderr
