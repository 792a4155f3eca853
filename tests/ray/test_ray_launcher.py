"""Loads on the nodes of a Ray cluster of real processes: what they say comes home, whatever becomes of a node."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

CELLS = {"precisions": ["fp8", "bf16"], "workloads": ["perf", "ppl", "count"], "workers": 2}
ONE = {"precisions": ["bf16"], "workloads": ["ppl"]}


def found(harness) -> dict[tuple[str, str], str]:
    """`ok`, or what the failure says, by precision and workload."""
    return {
        (record["precision"], record["workload"]): record["failure"]["message"] if record["failure"] else "ok"
        for record in harness.records()
    }


def running(harness, module: str) -> list[int]:
    return [process for process, command in harness.processes().items() if f"-m {module}" in command]


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_two_loads_are_measured_on_two_nodes_and_their_records_and_logs_come_home(harness, on_ray, wait_until):
    status, stdout = on_ray(sin="chatty:score", **CELLS)
    assert status == 0, harness.stderr()
    assert [record["status"] for record in json.loads(stdout)] == ["ok"] * 6
    assert {record["conditions"]["device_count"] for record in harness.records()} == {1}
    logs = list((harness.folder / "out/logs").iterdir())
    assert len(logs) == 2 and all("out of memory" in log.read_text(errors="replace") for log in logs)
    assert wait_until(lambda: harness.processes() == {}, 10), harness.processes()


def test_a_trace_made_on_a_node_is_analysed_at_home(harness, on_ray):
    sizes = {"num_iterations": [1], "warmup_iterations": [1], "input_len": [16], "output_len": [10]}
    status, _ = on_ray(engine="hf", precisions=["bf16"], workloads=["perf"], profiler="torch", parameters=sizes)
    assert status == 0, harness.stderr()
    (record,) = harness.records()
    profile = record["profile"]
    assert (record["status"], profile["valid"], profile["problems"]) == ("ok", True, [])
    assert all((harness.folder / "out" / file).stat().st_size for file in (*profile["files"], profile["analysis"]))
    assert profile["phases"]["decode"]["steps"] > 0


def test_ctrl_c_leaves_no_process_on_any_node_and_keeps_what_was_measured(harness, on_ray, wait_until):
    process = on_ray.start(sin="leave_orphan:load,hang:score", **CELLS)
    assert wait_until(lambda: harness.stderr().count("ppl: started") == 2, 60), harness.stderr()
    assert len(running(harness, "harness_ray.host")) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not running(harness, "harness_ray.host") + running(harness, "harness.working.worker")
    assert wait_until(lambda: harness.processes() == {}, 10), harness.processes()  # Ray's own end a little later
    stopped = "stopped by the user before it was measured"
    assert found(harness) == {
        (precision, workload): "ok" if workload == "perf" else stopped
        for precision in ("fp8", "bf16")
        for workload in ("perf", "ppl", "count")
    }


def test_a_driver_that_is_killed_leaves_no_process_on_any_node(harness, on_ray, wait_until):
    process = on_ray.start(sin="leave_session:load,hang:score", **ONE)
    assert wait_until(lambda: "ppl: started" in harness.stderr(), 60), harness.stderr()
    assert running(harness, "harness.working.worker")
    process.kill()
    assert wait_until(lambda: harness.processes() == {}, 30), harness.processes()


def test_a_node_killed_in_the_middle_costs_the_cell_under_way_and_nothing_is_measured_twice(
    harness, on_ray, nodes, wait_until
):
    process = on_ray.start(sin="leave_orphan:load,hang:fp8:score", **CELLS)
    assert wait_until(
        lambda: "fp8 ppl: started" in harness.stderr() and len(running(harness, "harness_ray.host")) == 1, 60
    ), harness.stderr()
    (host,) = running(harness, "harness_ray.host")
    nodes.kill(parent(parent(host)))  # host < Ray's process < raylet
    assert process.wait(60) == 1, harness.stderr()
    whole = {(precision, workload): "ok" for precision in ("fp8", "bf16") for workload in ("perf", "ppl", "count")}
    assert found(harness) == {**whole, ("fp8", "ppl"): f"the node was lost: {os.uname().nodename}"}
    (lost,) = [record["failure"] for record in harness.records() if record["failure"]]
    assert lost["class"] == "crashed"
    for precision, workload in whole:
        assert harness.stderr().count(f"{precision} {workload}: started") == 1
    assert wait_until(lambda: harness.processes() == {}, 30), harness.processes()
    nodes.add()
