"""vLLM under its own profiler, through `harness run --profile torch`."""

import pytest


def test_vllm_on_a_cpu_is_broken_down_by_module_and_phase(vllm):
    done = vllm(*vllm.vllm("--precision", "bf16", "--workload", "perf", "--batch-size", "1,2", "--profile", "torch"))
    assert done.returncode == 0, done.stderr
    records = {record["batch_size"]: record for record in vllm.records()}
    assert records.keys() == {1, 2}
    for record in records.values():
        profile = record["profile"]
        assert len(profile["files"]) == 1  # of one rank
        assert profile["phases"]["decode"]["steps"] == 3 and profile["valid"], profile["problems"]
        for phase in profile["phases"].values():
            shares = {name: share["percent"] for name, share in phase["categories"].items()}
            assert sum(shares.values()) == pytest.approx(100)
            counts = {name: share["kernel_count"] for name, share in phase["categories"].items()}
            assert counts["expert_gemm"] == 4 * phase["steps"]  # one fused operation a layer
            assert counts.get("unclassified", 0) < 0.05 * sum(counts.values())
    assert len({record["profile"]["files"][0] for record in records.values()}) == 2  # each its own trace
