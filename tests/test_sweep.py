"""A sweep: a file becomes cells, what was measured stays, and bad luck costs what it must and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from harness.errors import UsageError
from harness.sweep import document
from harness.sweep.matrix import count, rows

SMALL = """
name: small
matrix:
  engine: echo
  precision: [bf16, fp8]
  workload: [perf, count]
  input_len: 8
  output_len: 4
  num_iterations: 2
  warmup_iterations: 0
"""


@pytest.fixture
def read(tmp_path):
    def read(text: str) -> document.Document:
        (tmp_path / "sweep.yaml").write_text(text)
        return document.read(tmp_path / "sweep.yaml")

    return read


@pytest.fixture
def sweep(harness):
    """`harness sweep` of a text, in an empty folder."""

    def sweep(text: str, *arguments: object, **options) -> subprocess.CompletedProcess:
        (harness.folder / "sweep.yaml").write_text(text)
        return harness("sweep", "sweep.yaml", "--output-dir", "out", *arguments, **options)

    return sweep


def statuses(harness) -> dict[tuple[str, str], str]:
    return {(record["precision"], record["workload"]): record["status"] for record in harness.records()}


# --- the file --------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_row_and_what_an_exclude_matches_is_none(read):
    found = read(
        "matrix: {engine: [hf, vllm], tp: [1, 2], batch_size: [1, 16]}\n"
        "include: [{engine: vllm, tp: 8}]\n"
        "exclude: [{engine: hf, tp: 2}, {batch_size: 16, tp: [2, 8]}]\n"
    )
    made = [(row.setup["engine"], row.setup["tp"], row.parameters["batch_size"]) for row in rows(found)]
    assert made == [("hf", 1, 1), ("hf", 1, 16), ("vllm", 1, 1), ("vllm", 1, 16), ("vllm", 2, 1), ("vllm", 8, 1)]
    assert count(found) == 10  # before the excludes


def test_an_engine_may_have_axes_of_its_own_and_an_include_goes_before_them(read):
    found = read(
        "matrix: {engine: [hf, vllm], moe_backend: auto}\n"
        "engines: {vllm: {moe_backend: [triton, marlin]}}\n"
        "include: [{engine: vllm, moe_backend: cutlass}]\n"
    )
    made = [(row.setup["engine"], row.setup["moe_backend"]) for row in rows(found)]
    assert made == [("hf", "auto"), ("vllm", "triton"), ("vllm", "marlin"), ("vllm", "cutlass")]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("matrix: {tp: [1, 2]\n", 2, "no YAML"),
        ("matrix:\n  engin: hf\n", 2, "unknown key 'engin': did you mean engine"),
        ("matrix:\n  tp: two\n", 2, 'matrix.tp: expected integer, got "two"'),
        ("matrix:\n  tp:\n  - 1\n  - 0\n", 4, "matrix.tp.1: expected at least 1"),
        ("matrix:\n  tp: []\n", 2, "an empty list makes no cells"),
        ("matrix:\n  tp: [1, 1]\n", 2, "a value is there twice"),
        ("matrix:\n  weights: none\n", 2, "expected one of real, dummy"),
        ("include: []\n", 1, "'matrix' is missing"),
        ("- a list\n", 1, "expected object"),
        ("", 1, "expected object"),
        ("matrix: {tp: 1}\nmatrix: {tp: 2}\n", 2, "the key 'matrix' is there twice"),
        ("matrix: &a {tp: 1}\ninclude: [*a]\n", 2, "aliases (*a) are not read"),
        ("matrix: {tp: !!python/object/apply:os.system [id]}\n", 1, "expected integer"),
        ("matrix: {model: !!python/name:os.system ''}\n", 1, "is no value"),
        ("matrix: {model: 2024-01-01}\n", 1, "is read as a date; put it in quotes"),
        ("matrix:\n  tp: 1\nsettings:\n  ci_width: 0\n", 4, "settings.ci_width: expected more than 0"),
    ],
)
def test_what_the_file_gets_wrong_is_told_by_line(read, text, line, words):
    with pytest.raises(UsageError) as error:
        read(text)
    assert f"sweep.yaml:{line}: " in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused_before_it_goes_off(read):
    bomb = "a: &a [1, 1]\n" + "".join(
        f"{name}: &{name} [*{last}, *{last}]\n" for last, name in zip("abcdefgh", "bcdefghi")
    )
    for text, words in ((bomb, "aliases"), ("[" * 3000 + "]" * 3000, "nested too deeply"), (" " * (2 << 20), "MiB")):
        with pytest.raises(UsageError, match=words):
            read(text)


def test_the_published_schema_is_one_and_holds_for_the_files_that_ship():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(document.SCHEMA.read_text()))


# --- the command -----------------------------------------------------------------------------------------------------


def test_names_nobody_knows_are_told_by_line_and_nothing_is_written(harness, sweep):
    for text, words in (
        (SMALL.replace("bf16, fp8", "bf16,\n    fp9"), "sweep.yaml:6: unknown precision 'fp9': did you mean fp8"),
        (SMALL.replace("count", "cuont"), "unknown workload 'cuont': did you mean count"),
        (SMALL + "settings: {retry: [crash]}\n", "unknown failure class 'crash': did you mean crashed"),
        (SMALL + "exclude: [{engine: echo}]\n", "no cell is left by exclude"),
    ):
        done = sweep(text)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr and not (harness.folder / "out").exists()


def test_a_million_cells_are_made_only_when_they_are_meant(sweep):
    many = SMALL.replace("input_len: 8", f"input_len: {list(range(1, 1001))}\n  batch_size: {list(range(1, 1001))}")
    done = sweep(many, "--dry-run")
    assert done.returncode == 2 and "4,000,000 cells; add --yes if that is meant" in done.stderr


def test_a_dry_run_says_what_would_run_and_runs_nothing(harness, sweep):
    done = sweep(SMALL.replace("input_len: 8", "input_len: [8, 4096]"), "--dry-run")
    assert done.returncode == 0 and not (harness.folder / "out").exists()
    assert "8 cells in 2 loads: 4 to run, 0 done, 4 skipped" in done.stdout
    assert "more than the model's 2048 positions" in done.stdout


def test_what_was_measured_is_left_as_it_is(harness, sweep):
    assert sweep(SMALL).returncode == 0
    before = {record["key"]: record["written_at"] for record in harness.records()}
    files = {path.name: path.stat().st_mtime_ns for path in (harness.folder / "out/records").iterdir()}
    assert len(before) == 4
    again = sweep(SMALL.replace("fp8", "fp8, nvfp4"))
    assert again.returncode == 0, again.stderr
    now = {path.name: path.stat().st_mtime_ns for path in (harness.folder / "out/records").iterdir()}
    assert {name: now[name] for name in files} == files and len(now) == 6
    assert sweep(SMALL, "--rerun").returncode == 0
    last = {path.name: path.stat().st_mtime_ns for path in (harness.folder / "out/records").iterdir()}
    assert all(last[name] > files[name] for name in files)


def test_rounds_are_measured_in_turns_and_make_one_record(harness, sweep):
    done = sweep(SMALL + "settings: {repeats: 3}\n")
    assert done.returncode == 0, done.stderr
    for record in harness.records():
        if record["workload"] == "perf":
            assert [one["round"] for one in record["rounds"]] == [0, 1, 2]
            assert record["latency_ms"]["n"] == len(record["raw"]["latency_ns"]) == 6
            assert "3 rounds" in record["statistics"]["latency_ms"]["method"]
        else:
            assert record["workload"] == "count" and "rounds" not in record
    loads = [line.split("] ")[1] for line in done.stderr.splitlines() if line.endswith("loading")]
    assert [load.split()[2].strip(":") for load in loads] == ["bf16", "fp8", "fp8", "bf16", "bf16", "fp8"]


def test_a_failure_costs_its_cell_and_a_class_that_may_pass_is_tried_again(harness, sweep):
    done = sweep(SMALL, sin="segfault:fp8:generate")
    assert done.returncode == 1
    assert statuses(harness)["bf16", "perf"] == "ok" and statuses(harness)["fp8", "perf"] == "failed"
    assert "failed echo tinymoe fp8 TP1_EP1_auto perf: crashed: the worker was killed by SIGSEGV" in done.stdout
    retried = sweep(SMALL, "--retry", "crashed", "--retries", 2, sin="segfault:fp8:generate")
    assert retried.stderr.count("echo tinymoe fp8: loading") == 2 * 3  # cells, tries
    mended = sweep(SMALL)
    assert mended.returncode == 0 and set(statuses(harness).values()) == {"ok"}


def test_the_first_failure_ends_the_sweep_where_that_is_wanted(harness, sweep):
    done = sweep(SMALL.replace("bf16, fp8", "fp8, bf16, nvfp4"), "--fail-fast", sin="raise:fp8:load")
    assert done.returncode == 1 and "2 loads were not started" in done.stderr
    assert {precision for precision, _ in statuses(harness)} == {"fp8"}


def test_an_engine_that_is_not_there_costs_its_cells_only(harness, sweep):
    done = sweep(SMALL.replace("engine: echo", "engine: [trtllm, echo]"))
    found = {record["engine"]: record for record in harness.records()}
    assert done.returncode == 0 and found["echo"]["status"] == "ok"
    assert found["trtllm"]["status"] == "skipped" and "needs tensorrt-llm" in found["trtllm"]["reason"]


def test_two_workers_measure_every_cell_once_on_cores_of_their_own(harness, sweep):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    done = sweep(SMALL.replace("bf16, fp8", "bf16, fp8, nvfp4, fp32"), "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert len(harness.records()) == 8
    for record in harness.records():
        assert record["conditions"]["device_count"] == len(os.sched_getaffinity(0)) // 2
    assert "workers that share cores" in sweep(SMALL, "--workers", 1000).stderr


def test_killed_and_started_again_it_goes_on_where_it_was_and_no_orphan_is_left(harness):
    (harness.folder / "sweep.yaml").write_text(SMALL)
    first = harness.start("sweep", "sweep.yaml", "--output-dir", "out", sin="hang:fp8:generate")
    while not list((harness.folder / "out" / "records").glob("*.json")) or "fp8 perf: started" not in harness.stderr():
        assert first.poll() is None, harness.stderr()
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = {record["key"]: record["written_at"] for record in harness.records()}
    deadline = time.monotonic() + 20
    while harness.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert harness.processes() == {}
    assert set(statuses(harness).values()) == {"ok"} and len(before) < 4
    done = harness("sweep", "sweep.yaml", "--output-dir", "out")
    assert done.returncode == 0 and len(harness.records()) == 4
    assert before.items() <= {record["key"]: record["written_at"] for record in harness.records()}.items()


def test_two_coordinators_on_one_folder_share_the_work(harness, site, tmp_path):
    (harness.folder / "sweep.yaml").write_text(SMALL.replace("bf16, fp8", "bf16, fp8, nvfp4, fp32, mxfp4, fp8_block"))
    words = ("sweep", "sweep.yaml", "--output-dir", "out", "--json")
    both = [harness.start(*words) for _ in range(2)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(harness.records()) == 12
    assert [len(records) for records in told] == [12, 12]  # each tells of all, whoever measured it
    measured = harness.stderr().count(": done in")
    assert measured <= 12


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(harness):
    (harness.folder / "sweep.yaml").write_text(SMALL)
    process = harness.start("sweep", "sweep.yaml", "--output-dir", "out", sin="hang:fp8:generate")
    while "fp8 perf: started" not in harness.stderr():
        assert process.poll() is None, harness.stderr()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert statuses(harness)["fp8", "perf"] == "failed" and statuses(harness)["bf16", "perf"] == "ok"
    assert harness.processes() == {}


def test_a_clock_that_goes_backwards_changes_nothing(harness, sweep, install):
    install(
        "backwards",
        """
        import time
        now, gmtime = [2e9], time.gmtime

        def backwards():
            now[0] -= 3600
            return now[0]

        time.time = backwards
        time.gmtime = lambda seconds=None: gmtime(backwards() if seconds is None else seconds)
        """,
    )
    assert sweep(SMALL + "settings: {repeats: 2}\n").returncode == 0
    assert set(statuses(harness).values()) == {"ok"}
    for record in harness.records():
        if record["workload"] == "perf":
            assert [one["round"] for one in record["rounds"]] == [0, 1] and record["latency_ms"]["min"] > 0
    again = sweep(SMALL + "settings: {repeats: 2}\n")
    assert again.returncode == 0 and "loading" not in again.stderr
