"""Wrong usage costs one line and no time; right usage answers at once and imports nothing heavy."""

from __future__ import annotations

import json
import sys

import pytest

from harness.precision import PRECISIONS

HEAVY = {"torch", "transformers", "numpy", "rich", "tokenizers", "safetensors", "datasets", "huggingface_hub", "jinja2"}


@pytest.fixture
def refused(harness):
    """Runs what must be refused: exit 2, one line that says so, nothing on stdout, and nothing written."""

    def check(*arguments: object) -> str:
        done = harness(*arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert list(harness.folder.iterdir()) == []
        assert harness.processes() == {}
        return done.stderr

    return check


@pytest.mark.parametrize(
    ("option", "typed", "kind", "meant"),
    [
        ("--engine", "ecko", "engine", "echo"),
        ("--precision", "bff16", "precision", "bf16"),
        ("--workload", "prf", "workload", "perf"),
        ("--model", "tinymo", "model", "tinymoe"),
        ("--dataset", "stdlb", "dataset", "stdlib"),
        ("--profile", "taly", "profiler", "tally"),
        ("--checkpoint", "fp9=some/where", "precision", "fp8"),
        ("--python", "ecko=python", "engine", "echo"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(refused, option, typed, kind, meant):
    stderr = refused("run", "--engine", "echo", option, typed)
    line, *more = stderr.splitlines()
    assert more == []
    assert line.startswith(f"error: unknown {kind} '{typed.split('=')[0]}'") and meant in line


def test_a_name_like_no_other_is_refused_with_all_that_are_known(refused):
    assert "known: " in (line := refused("run", "--engine", "zzzzzz")) and "echo" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "fp8"], "--checkpoint fp8: expected NAME=VALUE"),
        (["--checkpoint", "fp8="], "--checkpoint fp8="),
        (["--fp8-model-path", ""], "fp8"),
        (["--checkpoint", "fp8=a/b", "--fp8-model-path", "c/d"], "two checkpoints for fp8"),
        (["--python", "echo"], "--python echo: expected NAME=VALUE"),
        (["--python", "echo=no/such/python"], "no/such/python: no such program"),
        (["--python", "echo="], "--python echo="),
        (["--python", "echo=true"], "is no working Python"),
        (["--python", "echo=false"], "is no working Python"),
        (["--dataset", "file:no/such/text"], "no such file"),
        (["--dataset", "file:"], "no such file"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(refused, arguments, words):
    stderr = refused("run", "--engine", "echo", *arguments)
    assert len(stderr.splitlines()) == 1 and stderr.startswith("error: ") and words in stderr


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--batch-size", "0", "'0' is not a whole number of at least 1"),
        ("--batch-size", "x", "'x' is not a whole number of at least 1"),
        ("--batch-size", "1,,-2", "'-2' is not a whole number of at least 1"),
        ("--batch-size", "1.5", "'1.5' is not a whole number of at least 1"),
        ("--batch-size", ",", "is empty"),
        ("--model", "", "is empty"),
        ("--timeout", "0", "0"),
        ("--weights", "borrowed", "'borrowed' is not one of"),
        ("--no-such-option", "1", "No such option"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_option(refused, option, value, words):
    last = refused("run", "--engine", "echo", option, value).splitlines()[-1]
    assert option in last and words in last


def test_a_program_that_cannot_be_executed_is_no_python(harness):
    broken = harness.folder / "broken"
    broken.write_bytes(b"\0\0\0\0")
    broken.chmod(0o755)
    done = harness("run", "--engine", "echo", "--python", f"echo={broken}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "broken" in done.stderr


def test_an_interpreter_without_the_harness_is_said_in_the_record(harness):
    bare = harness.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--python", f"echo={bare}")
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "No module named" in done.stderr + json.dumps(harness.records())


def test_a_model_folder_that_is_not_there_is_said_in_the_record(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--model", "./nowhere")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert harness.records()[0]["failure"]["class"] == "load_failed"
    assert "nowhere" in harness.records()[0]["failure"]["message"]


@pytest.mark.parametrize(("text", "words"), [(b"", "fewer than one window"), (b"\xff\xfe", "cannot be read")])
def test_a_dataset_that_holds_no_text_is_refused_in_one_line(harness, text, words):
    (harness.folder / "dataset").write_bytes(text)
    done = harness.measure("--workload", "ppl", "--dataset", "file:dataset")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def test_the_seeds_spellings_work(harness):
    (harness.folder / "quantised").mkdir()
    spellings = ["--model-path", "tinymoe", "--precisions", "bf16,fp8,nvfp4"]
    checkpoints = ["--fp8-model-path", "quantised", "--nvfp4-model-path", "someone/quantised"]
    done = harness.measure(*spellings, *checkpoints, "--workload", "perf")
    assert done.returncode == 0, done.stderr
    found = {record["precision"]: record["requested"]["checkpoint"] for record in harness.records()}
    assert found == {"bf16": None, "fp8": str(harness.folder / "quantised"), "nvfp4": "someone/quantised"}


def test_json_prints_the_records_and_nothing_else_on_stdout(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf,ppl", "--json")
    assert done.returncode == 0, done.stderr
    printed = sorted(json.loads(done.stdout), key=lambda record: record["key"])
    assert printed == harness.records()
    assert {record["workload"] for record in printed} == {"perf", "ppl"}


def test_a_comma_list_of_batch_sizes_makes_that_many_cells_of_the_workloads_that_read_it(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf,ppl", "--batch-size", "1,2,4", "--json")
    cells = [(record["workload"], record.get("batch_size")) for record in json.loads(done.stdout)]
    assert cells == [("perf", 1), ("perf", 2), ("perf", 4), ("ppl", None)]


def test_two_spellings_of_one_number_are_one_cell(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--batch-size", "2,02", "--json")
    assert [record["batch_size"] for record in json.loads(done.stdout)] == [2]


@pytest.mark.parametrize("what", ["engines", "workloads", "profilers", "precisions", "models", "metrics", "plugins"])
def test_list_shows_what_there_is_as_text_and_as_json(harness, what):
    text, data = harness("list", what), harness("list", what, "--json")
    assert (text.returncode, data.returncode, text.stderr, data.stderr) == (0, 0, "", "")
    rows = json.loads(data.stdout)
    assert rows
    for row in rows:
        assert next(iter(row.values())) in text.stdout


def test_list_precisions_answers_for_a_gpu_that_is_not_here(harness):
    rows = json.loads(harness("list", "precisions", "--engine", "hf", "--sm", 90, "--json").stdout)
    assert [list(row) for row in rows] == [["engine", "precision", "sm", "compute_mode", "reason"]] * len(PRECISIONS)
    assert {(row["engine"], row["sm"]) for row in rows} == {("hf", 90)}
    assert {row["precision"]: row["compute_mode"] for row in rows}["bf16"] == "native"


def test_list_precisions_of_an_unknown_engine_is_refused(refused):
    assert refused("list", "precisions", "--engine", "ecko") == "error: unknown engine 'ecko': did you mean echo?\n"


def test_doctor_names_device_engines_and_compute_modes(harness):
    text, data = harness("doctor"), harness("doctor", "--json")
    assert (text.returncode, data.returncode, text.stderr, data.stderr) == (0, 0, "", "")
    report = json.loads(data.stdout)
    assert report["device"]["name"] in text.stdout
    engines = {engine["engine"]: engine for engine in report["engines"]}
    assert {"echo", "hf"} <= engines.keys()
    assert engines["echo"]["precisions"]["nvfp4"]["compute_mode"] == "native"
    for name in engines:
        assert f"\n{name}: " in text.stdout


@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        (["--help"], {"harness.workloads", "harness.plugins", "pluggy"}),
        (["list", "precisions"], {"harness.working.corpus", "harness.working.run"}),
    ],
)
def test_help_and_lists_import_nothing_heavy(harness, arguments, also):
    done = harness(*arguments, python=("-X", "importtime"))
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "harness.cli" in imported
    assert imported.isdisjoint(HEAVY | also)
