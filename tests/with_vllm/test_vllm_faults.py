"""vLLM's own bad luck: its errors are classified, its words are kept, and none of its processes is left."""

from __future__ import annotations

import os
import re
import signal

import pytest


def failures(harness) -> dict[str, dict]:
    return {record["model"]: record["failure"] for record in harness.records()}


def wait_for(process, harness, wait_until, condition) -> None:
    """Until `condition()`, while the run is alive."""
    assert wait_until(lambda: condition() or process.poll() is not None, 120), harness.stderr()
    assert process.poll() is None, harness.stderr()


def engine_cores(harness) -> list[int]:
    return [number for number, line in harness.processes().items() if "EngineCore" in line]


def test_a_model_vllm_cannot_open_fails_in_vllms_own_words(vllm, bent):
    folders = [
        "./nowhere",
        bent("corrupt", {"model.safetensors": b"\x00" * 64}),
        bent("unknown", quantization_config={"quant_method": "nonsense"}),
        bent("stranger", architectures=["StrangeForCausalLM"], model_type="strange"),
    ]
    done = vllm(*vllm.vllm("--precision", "bf16", "--workload", "perf", "--model", ",".join(map(str, folders))))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    found = failures(vllm)
    assert {name: failure["class"] for name, failure in found.items()} == {
        "nowhere": "load_failed",
        "corrupt": "load_failed",
        "unknown": "unsupported",
        "stranger": "load_failed",
    }
    assert "nonsense" in found["unknown"]["message"] and "strange" in found["stranger"]["message"]
    assert vllm.processes() == {}


@pytest.mark.parametrize("own_process", ["0", "1"])
def test_too_little_memory_for_the_kv_cache_is_out_of_memory(vllm, own_process):
    vllm.env |= {"VLLM_CPU_KVCACHE_SPACE": "100000", "VLLM_ENABLE_V1_MULTIPROCESSING": own_process}
    done = vllm(*vllm.vllm("--precision", "bf16", "--workload", "perf"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    (failure,) = failures(vllm).values()
    assert failure["class"] == "out_of_memory" and "memory" in failure["message"].lower()
    assert vllm.processes() == {}


def test_an_engine_core_that_dies_costs_its_cell_and_one_that_lives_is_not_left(vllm, wait_until):
    vllm.env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "DEBUG"}
    process = vllm.start(*vllm.vllm("--precision", "bf16", "--workload", "perf", "--num-iterations", 100000))
    wait_for(process, vllm, wait_until, lambda: re.search(r"perf: \d", vllm.stderr()))
    (core,) = engine_cores(vllm)
    os.kill(core, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [failure["class"] for failure in failures(vllm).values()] == ["crashed"], output
    assert vllm.processes() == {}


def test_a_run_stopped_while_the_engine_core_loads_leaves_no_process(vllm, wait_until):
    vllm.env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    process = vllm.start(*vllm.vllm("--precision", "bf16", "--workload", "perf"))
    wait_for(process, vllm, wait_until, lambda: engine_cores(vllm))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert wait_until(lambda: vllm.processes() == {}, 5), vllm.processes()
