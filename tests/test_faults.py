"""Bad luck, with real processes: whatever an engine, a user or a disk does costs what it must and no more."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

CELLS = ["--precision", "fp8,bf16", "--workload", "ppl,perf,count"]
LOST_ONE = [  # a sin committed by fp8 only, the workloads it costs, and what the records say
    ("sigkill:fp8:generate", ["perf", "count"], "crashed", "killed by SIGKILL"),
    ("segfault:fp8:generate", ["perf", "count"], "crashed", "killed by SIGSEGV"),
    ("hang:fp8:score", ["ppl"], "timeout", "nothing heard for 3 s while measuring"),
    ("raise:fp8:score", ["ppl"], "crashed", "RuntimeError: the parrot is no more"),
    ("memory_limit:fp8:score", ["ppl"], "out_of_memory", "MemoryError"),
    ("nan:fp8:score", ["ppl"], "bad_output", "not finite"),
    ("short:fp8:generate", ["perf"], "bad_output", "asked for 4 tokens, got 3"),
    ("exit:fp8:score", ["ppl"], "crashed", "exit status 0 before it was done"),
    ("sys_exit:fp8:score", ["ppl"], "crashed", "SystemExit"),
    ("segfault:fp8:load", ["ppl", "perf", "count"], "crashed", "killed by SIGSEGV"),
    ("hang:fp8:load", ["ppl", "perf", "count"], "timeout", "nothing heard for 3 s while loading"),
    ("raise:fp8:load", ["ppl", "perf", "count"], "load_failed", "RuntimeError: the parrot is no more"),
    ("memory_limit:fp8:load", ["ppl", "perf", "count"], "out_of_memory", "MemoryError"),
    ("no_facts:fp8:facts", ["ppl", "perf", "count"], "load_failed", "facts"),
    ("bare_facts:fp8:facts", ["ppl", "perf", "count"], "load_failed", "facts"),
    ("leave_session:load,leave_orphan:score,raise:fp8:score", ["ppl"], "crashed", "the parrot is no more"),
    ("leave_session:load,leave_orphan:score,segfault:fp8:score", ["ppl"], "crashed", "killed by SIGSEGV"),
    ("leave_session:load,leave_orphan:score,stuck:fp8:score", ["ppl"], "timeout", "nothing heard for 3 s"),
    ("leave_session:load,leave_orphan:load,raise:fp8:load", ["ppl", "perf", "count"], "load_failed", "the parrot"),
]
LEFT = ["leave_child:load", "leave_session:load", "leave_orphan:load", "leave_session:load,leave_orphan:generate"]


def statuses(harness) -> dict[tuple[str, str], str]:
    """`ok`, or the class of the failure, by precision and workload."""
    found = {}
    for record in harness.records():
        found[record["precision"], record["workload"]] = (
            record["failure"]["class"] if record["failure"] else record["status"]
        )
    return found


def expected(failure_class: str, *workloads: str) -> dict[tuple[str, str], str]:
    """`failure_class` for these workloads of fp8, and `ok` for all other cells."""
    everything = [(precision, workload) for precision in ("fp8", "bf16") for workload in ("ppl", "perf", "count")]
    return {cell: failure_class if cell[0] == "fp8" and cell[1] in workloads else "ok" for cell in everything}


@pytest.mark.parametrize(("sin", "lost", "failure_class", "words"), LOST_ONE, ids=[row[0] for row in LOST_ONE])
def test_a_failing_engine_costs_only_the_cells_it_failed_in(harness, sin, lost, failure_class, words):
    started = time.monotonic()
    done = harness.measure(*CELLS, "--timeout", 3 if failure_class == "timeout" else 30, sin=sin)
    assert time.monotonic() - started < 20
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert statuses(harness) == expected(failure_class, *lost)
    failures = [record for record in harness.records() if record["failure"]]
    assert all(
        words in record["failure"]["message"] and "\n" not in record["failure"]["message"] for record in failures
    )
    assert failure_class in done.stdout and words in done.stdout

    (listed,) = json.loads((harness.folder / "out/failure_results.json").read_text()).values()
    assert {(entry["key"], entry["failure"]["class"]) for entry in listed} == {
        (record["key"], failure_class) for record in failures
    }
    (kept,) = json.loads((harness.folder / "out/success_results.json").read_text()).values()
    assert len(kept) == 6 - len(lost)
    assert harness.processes() == {}
    assert list(harness.temporary.iterdir()) == []


@pytest.mark.parametrize(
    "sin",
    [
        "chatty",
        "leave_child",
        "leave_session",
        "leave_orphan",
        "leave_session:close,leave_orphan:close",
        "markup_facts",
        "raise:close",
        "segfault:close",
        "exit:close",
        "hang:close",
        "stuck:close",
    ],
)
def test_an_odd_but_right_engine_costs_nothing(harness, sin):
    done = harness.measure(*CELLS, *(["--timeout", 3] if sin in ("hang:close", "stuck:close") else []), sin=sin)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert statuses(harness) == expected("ok")
    assert harness.processes() == {}


def test_what_an_engine_prints_stays_out_of_the_output_and_is_kept_in_the_log(harness):
    done = harness.measure(*CELLS, "--json", sin="chatty")
    assert len(json.loads(done.stdout)) == 6
    assert "CUDA out of memory" not in done.stderr
    logs = list((harness.folder / "out/logs").iterdir())
    assert len(logs) == 2 and all(b"CUDA out of memory" in log.read_bytes() for log in logs)


def test_an_engine_that_used_another_precision_is_kept_as_a_mismatch_and_said(harness):
    done = harness.measure("--precision", "fp8", "--workload", "perf", sin="wrong_facts")
    assert done.returncode == 0
    assert [record["status"] for record in harness.records()] == ["mismatch"]
    assert "precision is bf16, not fp8" in done.stdout


def test_a_failure_is_not_explained_with_the_words_of_the_one_before(harness):
    """Both workers of a load write to one log."""
    harness.measure("--precision", "fp8", "--workload", "ppl,perf", sin="memory_limit:score,sigkill:generate")
    assert statuses(harness) == {("fp8", "ppl"): "out_of_memory", ("fp8", "perf"): "crashed"}


def test_a_profiler_that_fails_is_said_and_costs_no_measurement(harness):
    (harness.plugins / "jammed.py").write_text(
        "import harness\n@harness.hookimpl\ndef harness_register_profilers():\n    return [harness.ProfilerSpec('jam', '', lambda session, folder: 1 / 0)]\n"
    )
    (harness.plugins / "jammed-1.dist-info").mkdir()
    (harness.plugins / "jammed-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: jammed\nVersion: 1\n")
    (harness.plugins / "jammed-1.dist-info/entry_points.txt").write_text("[harness]\njammed = jammed\n")
    done = harness.measure(*CELLS, "--profile", "jam")
    assert statuses(harness) == expected("ok")
    assert "division by zero" in done.stderr


@pytest.fixture
def stopped(harness, wait_until):
    """Sends a signal to a run while fp8 perf hangs: bf16 and fp8 ppl are measured, fp8 count is still to come."""

    def stop(number: int, sin: str) -> int:
        process = harness.start(*harness.small(), "--precision", "bf16,fp8", "--workload", "ppl,perf,count", sin=sin)
        assert wait_until(lambda: "fp8 perf: started" in harness.stderr(), 20), harness.stderr()
        time.sleep(0.2)  # until the engine is in it
        process.send_signal(number)
        assert wait_until(lambda: harness.processes() == {}, 5), harness.processes()
        process.communicate()
        return process.returncode

    return stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("left", LEFT)
def test_a_stopped_run_keeps_what_is_finished_and_leaves_no_process(harness, stopped, number, left):
    assert stopped(number, f"{left},hang:fp8:generate") == 130
    assert "Traceback" not in harness.stderr()
    assert statuses(harness) == expected("interrupted", "perf", "count")
    (listed,) = json.loads((harness.folder / "out/failure_results.json").read_text()).values()
    assert [entry["failure"]["class"] for entry in listed] == ["interrupted"] * 2


def test_a_stopped_run_does_not_overwrite_an_older_record(harness, stopped):
    assert harness.measure(*CELLS).returncode == 0
    before = {
        record["key"]: record
        for record in harness.records()
        if record["precision"] == "fp8" and record["workload"] != "ppl"
    }
    assert stopped(signal.SIGINT, "hang:fp8:generate") == 130
    assert statuses(harness) == expected("ok")
    assert before.items() <= {record["key"]: record for record in harness.records()}.items()


@pytest.mark.parametrize("sin", ["hang:fp8:generate", "stuck:fp8:generate"])
@pytest.mark.parametrize("left", LEFT)
def test_a_killed_parent_leaves_no_process(stopped, sin, left):
    assert stopped(signal.SIGKILL, f"{left},{sin}") == -signal.SIGKILL


def test_an_engine_stuck_in_native_code_times_out(harness):
    harness.measure("--precision", "fp8", "--workload", "ppl,perf", "--timeout", 3, sin="stuck:generate")
    assert statuses(harness) == {("fp8", "ppl"): "ok", ("fp8", "perf"): "timeout"}
    assert harness.processes() == {}


def test_two_runs_may_share_a_folder(harness):
    runs = [
        harness.start(*harness.small(), "--precision", name, "--workload", "perf,ppl")
        for name in ("bf16", "fp8", "nvfp4")
    ]
    assert [run.communicate(timeout=60) and run.returncode for run in runs] == [0, 0, 0]
    (kept,) = json.loads((harness.folder / "out/success_results.json").read_text()).values()
    assert sorted(entry["precision"] for entry in kept) == ["bf16", "bf16", "fp8", "fp8", "nvfp4", "nvfp4"]


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_a_file_that_is_no_record_is_passed_over(harness, content):
    (harness.folder / "out/records").mkdir(parents=True)
    (harness.folder / "out/records/foreign.json").write_text(content)
    done = harness.measure("--precision", "bf16", "--workload", "perf")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    (kept,) = json.loads((harness.folder / "out/success_results.json").read_text()).values()
    assert len(kept) == 1


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(harness):
    """Mounts a small file system as the output folder; skips where this user may not."""
    out = harness.folder / "out"

    def mount(options: str) -> None:
        out.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", out]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            if options != "ro" or os.geteuid() == 0:  # root may write whatever the permissions say
                pytest.skip("may not mount")
            out.chmod(0o555)

    yield mount
    if os.path.ismount(out):
        subprocess.run(["umount", "--lazy", out], check=True)


def assert_no_torn_file(harness) -> None:
    for path in harness.folder.rglob("*"):
        assert not path.name.endswith(".part"), path
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_a_nearly_full_disk_is_said_before_anything_is_loaded(harness, mounted):
    mounted("size=12m")
    done = harness.measure("--precision", "bf16", sin="segfault:load")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "MiB free" in done.stderr


def test_a_disk_that_fills_up_under_way_leaves_no_torn_file(harness, mounted):
    mounted("size=20m")
    done = harness.measure("--precision", "bf16,fp8", "--workload", "ppl,perf", sin="fill_disk:fp8:generate")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "record of echo fp8 perf not written" in done.stderr and "No space left" in done.stderr
    assert statuses(harness) == {("bf16", "ppl"): "ok", ("bf16", "perf"): "ok", ("fp8", "ppl"): "ok"}
    assert_no_torn_file(harness)


def test_a_sweep_whose_disk_was_full_goes_on_where_it_was(harness, mounted):
    mounted("size=20m")
    (harness.folder / "sweep.yaml").write_text(
        "matrix: {engine: echo, precision: [bf16, fp8], workload: [perf, count], input_len: 8, output_len: 4}\n"
    )
    words = ("sweep", "sweep.yaml", "--output-dir", "out")
    full = harness(*words, sin="fill_disk:fp8:generate")
    assert (full.returncode, "Traceback" in full.stderr) == (1, False), full.stderr
    before = {record["key"]: record["written_at"] for record in harness.records()}
    assert set(statuses(harness).values()) == {"ok"} and len(before) < 4
    for log in (harness.folder / "out/logs").iterdir():  # room again
        log.unlink()
    assert harness(*words).returncode == 0
    after = {record["key"]: record["written_at"] for record in harness.records()}
    assert len(after) == 4 and before.items() <= after.items()
    assert_no_torn_file(harness)


@pytest.mark.parametrize(("input_len", "batch_size"), [(8, 1), (1500, 16)], ids=["record", "token ids"])
def test_a_file_that_does_not_fit_costs_its_cell_and_leaves_no_torn_file(harness, input_len, batch_size):
    """A quota of 32 KiB a file: the record of one cell is too long, or its token ids are."""
    limit = (32 << 10,) * 2
    sizes = ["--input-len", input_len, "--batch-size", batch_size, "--output-len", 512, "--num-iterations", 20]
    done = harness.measure(
        "--precision",
        "bf16",
        "--workload",
        "count,perf",
        *sizes,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "File too large" in done.stderr
    assert_no_torn_file(harness)


def test_a_read_only_output_folder_is_refused_in_one_line(harness, mounted):
    mounted("ro")
    done = harness.measure("--precision", "bf16")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_one_is_refused_in_one_line(harness, name):
    (harness.folder / "file").touch()
    done = harness.measure("--precision", "bf16", "--output-dir", name)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "cannot be written" in done.stderr


# --- names -----------------------------------------------------------------------------------------------------------


def test_no_model_name_leads_out_of_the_output_folder_and_no_two_clash(harness):
    inner = harness.folder / "inner"
    folders = ["-x", "a", "ünï-模型", "[bold]", "x" * 255, "x" * 254, "$(touch escaped)", os.fsdecode(b"\xff")]
    for folder in (harness.folder, inner, *(inner / name for name in folders)):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"vocab_size": 100}')
    models = ["..", "a/..", ".", "-x", "a", *(f"./{name}" for name in folders[2:])]
    harness.folder = inner
    options = harness.small()
    before = set(harness.root.rglob("*"))
    done = harness(*options, "--precision", "bf16", "--workload", "perf", "--model", ",".join(models))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    new = set(harness.root.rglob("*")) - before - {harness.root / "stderr"}
    assert all(path.is_relative_to(inner / "out") for path in new)
    records = harness.records()
    assert {record["status"] for record in records} == {"ok"}
    assert len(records) == len(folders) + 2  # `a/..` and `.` are one folder
    assert len(list((inner / "out/echo").rglob("perf_*.json"))) == len(records)


@pytest.mark.parametrize(("encoding", "name"), [("ascii:strict", "模型"), ("utf-8:strict", os.fsdecode(b"\xff"))])
def test_a_name_that_the_terminal_cannot_show_costs_no_measurement(harness, encoding, name):
    (harness.folder / name).mkdir()
    (harness.folder / name / "config.json").write_text('{"vocab_size": 100}')
    harness.env["PYTHONIOENCODING"] = encoding
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--model", f"./{name}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "native" in done.stdout
    assert [(record["status"], record["model"]) for record in harness.records()] == [("ok", name)]


@pytest.mark.parametrize("model", ["owner/" + "x" * 300, "x" * 300 + "/name", "../" + "x" * 300])
def test_an_endless_model_name_fails_as_a_model_that_is_not_there(harness, model):
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--model", model)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert [record["failure"]["class"] for record in harness.records()] == ["load_failed"]


@pytest.mark.parametrize("link", ["echo", "echo/tinymoe", "echo/tinymoe/TP1_EP1_auto"])
def test_a_planted_link_leads_nothing_out_of_the_output_folder(harness, link):
    elsewhere = harness.folder / "elsewhere"
    elsewhere.mkdir()
    path = harness.folder / "out" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    done = harness.measure("--precision", "bf16", "--workload", "perf")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "leads out of the output folder" in done.stderr
    assert list(elsewhere.iterdir()) == []
    assert [record["status"] for record in harness.records()] == ["ok"]
