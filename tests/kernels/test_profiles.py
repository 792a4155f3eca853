"""What a profile says in the record of its cell, from traces made by hand."""

import json

import pytest
from byhand import ATTENTION, EXPERT, kineto

from harness.jsonfile import Node
from harness.recording.profiling import added, analysis_of

BF16_EXPERTS = "bmm_Bfloat16_Bfloat16Bfloat16_Fp32_t128x8x128_swiGlu"
RECORD = {
    "status": "ok",
    "reason": None,
    "engine": "some",
    "precision": "bf16",
    "compute_mode": "native",
    "batch_size": 1,
    "ttft_ms": {"mean": 0.36},
    "itl_ms": {"p50": 0.36},
    "effective": {"layers": [{"kind": "experts", "layers": "0-1, 3"}, {"kind": "router", "layers": "0-9"}]},
}


@pytest.fixture
def profiled(tmp_path):
    """The record after a trace with these kernels of 50 us each was left beside it."""

    def profiled(*names: str, **record) -> dict:
        folder = tmp_path / "traces/one"
        folder.mkdir(parents=True, exist_ok=True)
        ops = [(name, 5, 50) for name in names]
        kineto(folder / "rank0.json", ("prefill", ops), ("decode", ops), ("decode", ops))
        return added({**RECORD, **record}, folder / "profile_x", "torch", (), tmp_path)

    return profiled


def test_phases_have_the_wall_time_of_the_run_without_profiler(profiled, tmp_path):
    found = profiled(*[EXPERT] * 3, *[ATTENTION] * 3)
    profile = found["profile"]
    assert profile["files"] == ["traces/one/rank0.json"] and found["status"] == "ok"
    decode = profile["phases"]["decode"]  # 300 us of kernels a step
    assert (decode["steps"], decode["wall"], decode["ms_per_step"]) == (2, "unprofiled", 0.36)
    assert decode["idle_ms"] == pytest.approx(0.06)
    assert decode["amdahl"]["lower"] == decode["amdahl"]["upper"] == pytest.approx(1 / (1 - 0.15 / 0.36))
    shorter = profiled(*[EXPERT] * 3, *[ATTENTION] * 3, itl_ms={"p50": 0.2})["profile"]
    assert shorter["phases"]["decode"]["wall"] == "profiled" and "it is other work" in shorter["problems"][0]


def test_layers_are_counted_from_the_facts(profiled):
    problems = profiled(*[EXPERT] * 4, *[ATTENTION] * 3)["profile"]["problems"]
    assert len(problems) == 1 and "no multiple of 3 layers" in problems[0]
    assert profiled(*[EXPERT] * 3, *[ATTENTION] * 3)["profile"]["problems"] == []


def test_kernels_that_contradict_the_label_make_the_record_a_mismatch(profiled):
    kernels = [*[BF16_EXPERTS] * 3, *[ATTENTION] * 3]
    wrong = profiled(*kernels, precision="fp8")
    assert wrong["status"] == "mismatch" and wrong["reason"].startswith("by its kernels: 100 % of the expert GEMM time")
    assert profiled(*kernels)["status"] == "ok"
    assert profiled(*kernels, precision="fp8", status="mismatch", reason="before")["reason"] == "before"


def test_a_trace_that_cannot_be_read_costs_the_profile_and_not_the_record(profiled, tmp_path):
    profiled(EXPERT)
    (tmp_path / "traces/one/rank0.json").write_text("{}")
    found = added(RECORD, tmp_path / "traces/one/profile_x", "torch", (), tmp_path)
    assert found["status"] == "ok" and "rank0.json" in found["profile"]["problem"]


def test_the_answer_of_a_record_is_found_wherever_the_record_lies_in_its_folder(profiled, tmp_path):
    found = profiled(*[EXPERT] * 3, *[ATTENTION] * 3)
    for place in ("records", "some/model/TP1"):
        (tmp_path / place).mkdir(parents=True)
        path = tmp_path / place / "r.json"
        path.write_text(json.dumps(found))
        name, answer = analysis_of(Node(found, str(path)), path)
        assert name == "some bf16 batch 1" and answer.at("valid").value is True
