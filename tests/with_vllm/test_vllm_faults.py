"""vLLM's own bad luck: its errors are classified, its words are kept, and none of its processes is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path


def failures(harness) -> dict[str, dict]:
    return {record["model"]: record["failure"] for record in harness.records()}


def wait_for(process, harness, wait_until, condition) -> None:
    """Until `condition()`, while the run is alive."""
    assert wait_until(lambda: condition() or process.poll() is not None, 120), harness.stderr()
    assert process.poll() is None, harness.stderr()


def engine_cores(harness) -> list[int]:
    return [number for number, line in harness.processes().items() if "EngineCore" in line]


def test_a_model_vllm_cannot_open_fails_in_vllms_own_words(vllm, bent):
    corrupt = bent("corrupt", {"model.safetensors": b"\x00" * 64})
    done = vllm(*vllm.vllm("--precision", "bf16", "--workload", "perf", "--model", corrupt))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    (failure,) = failures(vllm).values()
    assert failure["class"] == "load_failed"
    assert vllm.processes() == {}


def test_what_a_load_lacks_is_classified_and_named(vllm, vllm_python, bent):
    """Where the engine core shares the worker's process."""
    loads = [
        "./nowhere",
        str(bent("unknown", quantization_config={"quant_method": "nonsense"})),
        str(bent("stranger", architectures=["StrangeForCausalLM"], model_type="strange")),
        None,
    ]
    command = [vllm_python, Path(__file__).with_name("failing_loads.py"), json.dumps(loads), "answers"]
    done = subprocess.run(command, cwd=vllm.folder, env=vllm.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((vllm.folder / "answers").read_text())
    classes = [failure["failure_class"] for failure in found]
    assert classes == ["load_failed", "unsupported", "load_failed", "out_of_memory"], found
    assert "nonsense" in found[1]["message"] and "strange" in found[2]["message"]
    assert "memory" in found[3]["message"].lower()
    assert vllm.processes() == {}


def test_too_little_memory_for_the_kv_cache_of_an_engine_core_of_its_own_is_out_of_memory(vllm):
    vllm.env |= {"VLLM_CPU_KVCACHE_SPACE": "100000", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
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
