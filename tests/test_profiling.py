"""`harness run --profile`: an extra pass, its trace, and what the record then says; in processes that go wrong, too."""

from __future__ import annotations

import json
import shlex
import signal
import time

import pytest

from harness.device import Device
from harness.profilers import nsys

WRAPPED = """
    import harness
    from contextlib import contextmanager
    from pathlib import Path

    def command(path):
        return ["/bin/sh", "-c", {shell!r}, str(path)]

    @contextmanager
    def session(engine, folder):
        yield
        Path(folder, "inside").write_text("seen")

    @harness.hookimpl
    def harness_register_profilers():
        return [harness.ProfilerSpec("wrap", "", session, command=command)]
"""


@pytest.fixture
def wrap(install):
    """A profiler that starts its worker itself, through a line of shell; $0 is the path of the profile."""

    def wrap(shell: str) -> None:
        install("wrapper", WRAPPED.format(shell=shell))

    return wrap


def test_the_default_model_on_a_cpu_is_broken_down_by_module_and_two_records_are_explained(harness):
    sizes = ["--num-iterations", 2, "--warmup-iterations", 1, "--input-len", 32, "--output-len", 12]
    done = harness(
        "run", "--precision", "bf16,fp32", "--workload", "perf", "--profile", "torch", "--output-dir", "out", *sizes
    )
    assert done.returncode == 0, done.stderr
    record, other = sorted(harness.records(), key=lambda record: record["precision"])
    profile = record["profile"]
    assert (record["status"], profile["valid"], profile["problems"]) == ("ok", True, [])
    assert {phase: found["steps"] for phase, found in profile["phases"].items()} == {"prefill": 1, "decode": 8}
    for phase in profile["phases"].values():
        shares = {name: share["percent"] for name, share in phase["categories"].items()}
        assert sum(shares.values()) == pytest.approx(100)
        assert {"expert_gemm", "dense_gemm", "gate_gemm", "attention", "routing_permute", "norm"} <= shares.keys()
        counts = {name: share["kernel_count"] for name, share in phase["categories"].items()}
        assert counts.get("unclassified", 0) < 0.05 * sum(counts.values())
        assert counts["expert_gemm"] >= 2 * 4 * phase["steps"]  # gate/up and down of four layers
    assert record["conditions"]["profiler"] == "off"  # the timed passes were not
    for name in (*profile["files"], profile["analysis"]):
        assert (harness.folder / "out" / name).is_file()
    assert "where the time goes" in done.stdout and "expert" in done.stdout

    again = harness("analyze", harness.folder / "out" / profile["files"][0], "--format", "json")
    assert (
        json.loads(again.stdout)["ledgers"]
        == json.loads((harness.folder / "out" / profile["analysis"]).read_text())["ledgers"]
    )

    records = [harness.folder / f"out/records/{one['key']}.json" for one in (record, other)]
    found = json.loads(harness("explain", *records, "--format", "json").stdout)
    assert found["a"] == "hf bf16 batch 1" and found["b"] == "hf fp32 batch 1"
    assert found["phases"].keys() == {"prefill", "decode"}
    for phase in found["phases"].values():
        assert (
            sum(bar["difference_ns"] for bar in phase["bars"])
            == phase["difference_ns"]
            == phase["b_ns"] - phase["a_ns"]
        )


def test_a_record_without_profile_is_not_explained(harness):
    harness.measure("--precision", "bf16", "--workload", "perf")
    path = next((harness.folder / "out/records").iterdir())
    done = harness("explain", path, path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_record_of_emulated_arithmetic_is_not_explained(harness):
    path = harness.folder / "record.json"
    profile = {"analysis": "traces/a.analysis.json"}
    path.write_text(json.dumps({"engine": "hf", "precision": "fp8", "compute_mode": "emulated", "profile": profile}))
    done = harness("explain", path, path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "hf fp8 is emulated" in done.stderr


def test_without_a_gpu_nsys_is_one_line_and_everything_else_runs(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf,ppl", "--profile", "nsys")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if line.startswith("warning")] == [
        "warning: nothing is profiled: nsys sees what runs on an NVIDIA GPU, and there is none here; "
        "--profile torch works on a CPU"
    ]
    assert {record["status"] for record in harness.records()} == {"ok"}


def test_an_engine_that_cannot_be_profiled_is_said_and_measured(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--profile", "torch")
    assert done.returncode == 0 and "nothing is profiled: echo lacks the capability 'torch_profiler'" in done.stderr
    assert [record["status"] for record in harness.records()] == ["ok"]


def test_the_command_to_profile_by_hand_is_printed_and_nothing_is_run(harness):
    done = harness("run", "--profile", "nsys", "--precision", "bf16", "--show-command", "--batch-size", 4)
    words = shlex.split(done.stdout)
    assert words[1] == "profile" and {"--trace=cuda,nvtx", "--cuda-graph-trace=node", "--sample=none"} <= set(words)
    assert "--capture-range=cudaProfilerApi" in words
    assert words[-8:] == ["harness", "run", "--profile", "nsys", "--precision", "bf16", "--batch-size", "4"]
    assert any(word.startswith("--output=") and word.endswith("/profile_bf16_cpu") for word in words)
    assert list(harness.folder.iterdir()) == []
    for wrong in (["--profile", "torch"], [], ["--profile", "nsys", "--precision", "bf16,fp8"]):
        refused = harness("run", "--show-command", *wrong)
        assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1


def test_a_run_that_nsys_itself_started_says_so_in_its_conditions(harness):
    harness.env["NSYS_PROFILING_SESSION_ID"] = "7"
    harness.measure("--precision", "bf16", "--workload", "perf")
    assert harness.records()[0]["conditions"]["profiler"] == "nsys"


def test_a_profiler_may_start_its_worker_itself_after_the_timed_ones(harness, wrap):
    wrap('echo "$@" > "$0.txt"; exec "$@"')
    done = harness.measure("--precision", "bf16", "--workload", "perf,ppl", "--profile", "wrap")
    assert done.returncode == 0, done.stderr
    for record in harness.records():
        files = [harness.folder / "out" / name for name in record["profile"]["files"]]
        assert [path.name for path in files] == ["inside", "profile_bf16_cpu.txt"]
        assert "harness.working.worker" in files[1].read_text()
    assert harness.processes() == {}


def test_what_an_earlier_profile_of_the_cell_left_is_not_taken_for_this_one(harness, wrap):
    wrap('touch "$0.$$"; exec "$@"')
    found = []
    for _ in range(2):
        harness.measure("--precision", "bf16", "--workload", "perf", "--profile", "wrap")
        found.append(harness.records()[0]["profile"]["files"])
    assert [len(files) for files in found] == [2, 2] and found[0] != found[1]


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("sleep 60", "nothing heard for 3 s"),
        ('"$@"; kill -9 $$', None),  # it dies after the pass, and leaves what the session wrote
    ],
)
def test_a_profiler_that_dies_costs_its_profile_and_no_measurement(harness, wrap, shell, words):
    wrap(shell)
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--profile", "wrap", "--timeout", 3)
    (record,) = harness.records()
    assert record["status"] == "ok" and record["latency_ms"]["n"] == 2
    if words:
        assert done.returncode == 1 and "no profile of echo bf16 perf" in done.stderr and words in done.stderr
    assert "Traceback" not in done.stderr and harness.processes() == {}


def test_ctrl_c_while_a_profiler_runs_keeps_the_measurement_and_leaves_nothing(harness, wrap, wait_until):
    wrap("sleep 60 & wait")
    process = harness.start(*harness.small(), "--precision", "bf16", "--workload", "perf", "--profile", "wrap")
    assert wait_until(lambda: any("sleep 60" in line for line in harness.processes().values()), 20), harness.stderr()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert [record["status"] for record in harness.records()] == ["ok"]
    assert wait_until(lambda: harness.processes() == {}, 5)


def test_on_a_gpu_without_nsys_there_is_one_line_that_says_so(monkeypatch):
    gpu = Device("cuda", "NVIDIA H200", 1, 1 << 37, sm=90)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(nsys, "PLACES", ())
    assert nsys.problem(gpu).startswith("there is no nsys on PATH") and "\n" not in nsys.problem(gpu)
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")  # then nsys is there, around us
    assert nsys.problem(gpu) is None
