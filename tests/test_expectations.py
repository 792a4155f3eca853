"""`harness expect` and `harness compare --fail-on`: what passes a gate, what fails it, and what it cannot judge."""

from __future__ import annotations

import json
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from scripted import GPU, record

from harness.cli import COMMANDS, cli
from harness.device import Device
from harness.judging.expectations import DEFAULT_METRICS, check, expected_of
from harness.recording.conditions import ACCURACY, CONDITIONS, SAME_ENGINE, SPEED
from harness.recording.records import BESIDE, OutputFolder

ROOT = Path(__file__).parents[1]
QUIET = [100.0, 100.2, 99.9, 100.1, 99.8]
PERF = record("perf", QUIET)
PPL = record("ppl", (1.0, 1.2, 0.9, 1.1))
FAILED = {**PERF, "status": "failed", "failure": {"class": "crashed", "message": "signal 11", "log_tail": ""}}
CPU = Device("cpu", "AMD EPYC 7763", 4, None)


def quick(factor: float, **options) -> dict:
    return record("perf", [value * factor for value in QUIET], **options)


def conditioned(base: dict, **changed: object) -> dict:
    return {**base, "conditions": {**base["conditions"], **changed}}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Exit code, stdout and stderr of `harness ...`, run in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli(list(map(str, arguments)))
        return caught.value.code or 0, *capsys.readouterr()

    return run


def fill(name: str, *found: dict) -> str:
    folder = OutputFolder(Path(name))
    for index, each in enumerate(found):
        folder.write({**each, "key": f"{index:016x}"})
    return name


@pytest.fixture
def checked(said):
    """Exit code and findings of a check of records against what is expected of others; each metric's status."""

    def run(expected: list[dict], found: list[dict], *options: object, record=()) -> tuple[int, dict]:
        assert said("expect", "record", fill("before", *expected), "--output", "e.json", *record)[0] == 0
        code, text, errors = said(
            "expect", "check", fill("after", *found), "--expectations", "e.json", "--json", *options
        )
        data = json.loads(text)
        assert errors == "" and data["passed"] == (code == 0)
        assert sum(data["summary"].values()) == len(data["findings"])
        return code, data

    return run


def statuses(data: dict) -> dict[str, str]:
    return {one["metric"]: one["status"] for one in data["findings"]}


def reasons(data: dict) -> set[str]:
    return {one["reason"] for one in data["findings"]}


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "status", "code"),
    [(1, "unchanged", 0), (1.04, "unchanged", 0), (1.06, "regressed", 1), (0.94, "improved", 0), (3, "regressed", 1)],
)
def test_a_change_beyond_tolerance_and_noise_is_told_by_the_exit_code(checked, factor, status, code):
    found, data = checked([PERF], [quick(factor)])
    assert found == code and statuses(data) == dict.fromkeys(("latency_ms", "ttft_ms", "itl_ms"), status)
    for one in data["findings"]:
        assert one["ratio"] == pytest.approx(factor) and one["noise"] < 0.01 and one["reason"] is None


def test_a_metric_that_should_be_high_regresses_downwards(checked):
    for factor, status in ((1.2, "regressed"), (0.8, "improved")):
        _, data = checked([PERF], [quick(factor)], record=("--metric", "output_tokens_per_sec", "--update"))
        assert statuses(data) == {"output_tokens_per_sec": status}


def test_perplexity_is_judged_chunk_by_chunk(checked):
    """Chunks differ by far more than the tolerance; pair by pair they do not."""
    for shift, status in ((0, "unchanged"), (0.002, "unchanged"), (0.02, "regressed"), (-0.02, "improved")):
        moved = record("ppl", [value + shift for value in (1.0, 1.2, 0.9, 1.1)])
        assert statuses(checked([PPL], [moved], record=("--update",))[1]) == {"perplexity": status}


def test_noise_larger_than_the_tolerance_is_no_verdict_but_hides_no_disaster(checked):
    noisy = [80.0, 120.0, 95.0, 105.0, 100.0]
    code, data = checked([PERF], [record("perf", noisy)])
    assert code == 0 and set(statuses(data).values()) == {"unknown"}
    assert all("is larger than the tolerance of 5.0%" in reason for reason in reasons(data))
    code, data = checked([PERF], [record("perf", [5 * value for value in noisy])], record=("--update",))
    assert code == 1 and set(statuses(data).values()) == {"regressed"}


def test_equal_cells_regress_hardly_ever_and_slow_ones_always():
    """100 draws of one noisy cell, and of one that is 10 % slower."""
    generator = random.Random(5)

    def draw(factor: float) -> dict:
        times = [round(generator.gauss(100, 1) * factor * 1e6) for _ in range(10)]
        summary = {**PERF["latency_ms"], "mean": sum(times) / len(times) / 1e6}
        return {**PERF, "latency_ms": summary, "raw": {**PERF["raw"], "latency_ns": times}}

    (expected,), _ = expected_of([draw(1)], ["latency_ms"], {}, None)
    verdicts = {factor: [check([expected], [draw(factor)])[0][0].status for _ in range(100)] for factor in (1, 1.1)}
    assert set(verdicts[1]) == {"unchanged"} and verdicts[1.1].count("regressed") >= 95


def test_rounds_are_the_samples_where_there_are_enough():
    """Within a round all is quiet; between rounds it is not, and that is the noise that counts."""
    times = [level for level in (90, 110, 100) for _ in range(4)]
    one = record("perf", times)
    (alone,), _ = expected_of([one], ["latency_ms"], {}, None)
    (kept,), _ = expected_of([{**one, "rounds": [{"iterations": 4}] * 3}], ["latency_ms"], {}, None)
    assert (len(alone.samples), len(kept.samples)) == (12, 3) and kept.noise > 2 * alone.noise


# --- what cannot be judged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONS)
def test_another_condition_makes_it_unknown_by_name_never_regressed(name):
    worse = [quick(9), record("ppl", (2.0, 2.2, 1.9, 2.1))]
    expected, left_out = expected_of([PERF, PPL], DEFAULT_METRICS, {}, None)
    assert (len(expected), left_out) == (4, []) and name in SPEED + SAME_ENGINE
    for value, words in (("another", f"not comparable: {name} "), (None, f"conditions not known: {name}")):
        for found in check(expected, [conditioned(one, **{name: value}) for one in worse])[0]:
            if name == "device_count" and value:
                assert (found.status, found.reason) == ("unknown", "no such record"), "that is other hardware"
            elif found.expectation.metric != "perplexity" or name in ACCURACY:
                assert found.status == "unknown" and found.reason.startswith(words)
            else:
                assert found.status == "regressed"


UNKNOWN = {
    "no such record": ([PERF], [PPL], "no such record"),
    "failed": ([PERF], [FAILED], "status is failed: crashed: signal 11"),
    "mismatch": (
        [PERF],
        [{**PERF, "status": "mismatch", "reason": "precision is bf16"}],
        "status is mismatch: precision is bf16",
    ),
    "skipped": ([PERF], [{**PERF, "status": "skipped", "reason": "no GPU"}], "status is skipped: no GPU"),
    "emulated": ([PERF], [{**PERF, "compute_mode": "emulated"}], "no speed: emulated"),
    "one iteration": ([PERF], [record("perf", [100.0])], "latency_ms has fewer than two samples"),
    "other device": ([PERF], [quick(1, device=replace(GPU, name="another GPU"))], "other device: sm90 another GPU"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_judged_is_unknown_with_its_reason(checked, said, name):
    expected, found, reason = UNKNOWN[name]
    code, data = checked(expected, found)
    assert code == 0 and set(statuses(data).values()) == {"unknown"} and reason in reasons(data)
    assert said("expect", "check", "after", "--expectations", "e.json", "--fail-on-unknown")[0] == 1
    code, text, _ = said("expect", "check", "after", "--expectations", "e.json")
    assert code == 0 and "unknown" in text and "3 unknown, 0 unchanged" in text


def test_a_success_of_yesterday_does_not_pass_for_a_failure_of_today(checked, said):
    checked([PERF], [PERF])
    (path,) = Path("after/records").iterdir()
    later = {**FAILED, "key": path.stem, "written_at": "2099-01-01T00:00:00Z"}
    path.with_name(path.stem + BESIDE).write_text(json.dumps(later))
    code, text, _ = said("expect", "check", "after", "--expectations", "e.json", "--json")
    assert reasons(json.loads(text)) == {"status is failed: crashed: signal 11"}


def test_other_devices_do_not_fail_a_machine_that_has_its_own(checked):
    here, there = quick(1, device=CPU), PERF
    code, data = checked([here, there], [here], "--fail-on-unknown")
    assert code == 0 and data["summary"] == {"regressed": 0, "improved": 0, "unknown": 3, "unchanged": 3}


def test_another_engine_version_is_the_question_not_another_cell(checked):
    code, data = checked([PERF], [{**quick(2), "engine_version": "2.0"}])
    assert code == 1 and set(statuses(data).values()) == {"regressed"}


def test_neither_iterations_nor_a_folder_nor_an_option_left_at_its_default_makes_another_cell(checked):
    asked = PERF["requested"]
    other = {name: value for name, value in asked.items() if name != "disable_fusion"}
    for requested in (other, {**asked, "num_iterations": 99, "path": "/elsewhere", "checkpoint": "/there"}):
        assert checked([PERF], [{**PERF, "requested": requested}], record=("--update",))[1]["summary"]["unchanged"] == 3
    code, data = checked([PERF], [{**PERF, "requested": {**asked, "quantize": "linear"}}], record=("--update",))
    assert reasons(data) == {"no such record"} and data["without_expectation"] == [
        "swift tinymoe fp8 perf all linear layers batch 2, 8+4"
    ]


# --- recording -------------------------------------------------------------------------------------------------------


def test_an_expectation_says_where_it_comes_from(said, tmp_path):
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    said("expect", "record", fill("out", PERF, PPL), "--output", "e.json", "--tolerance", 3, "--tolerance", "ttft_ms=8")
    data = json.loads(Path("e.json").read_text())
    (device,) = data["devices"]
    assert device == "sm90 a GPU x1"
    found = {one["metric"]: one for one in data["devices"][device]}
    assert {name: one["tolerance"] for name, one in found.items()} == {
        "latency_ms": 0.03, "ttft_ms": 0.08, "itl_ms": 0.03, "perplexity": 0.03,
    }  # fmt: skip
    one = found["latency_ms"]
    assert (one["value"], one["direction"], one["samples"]) == (100.0, "lower is better", pytest.approx(QUIET))
    kept = {"engine_version": "1.0", "compute_mode": "native", "n": 5, "git_commit": head.strip()}
    assert kept.items() <= one["provenance"].items() and one["provenance"]["measured_at"] == PERF["written_at"]
    assert data["conditions"][one["provenance"]["conditions"]] == PERF["conditions"]
    assert one["cell"]["parameters"]["batch_size"] == 2 and "path" not in one["cell"]["parameters"]


def test_speed_comes_only_from_cells_whose_speed_means_something(said):
    dummy = {**PPL, "weights": "dummy"}
    emulated = {**quick(1, precision="nvfp4", mode="emulated")}
    weak = quick(1, precision="mxfp4", mode="weight_only")
    unread = conditioned(quick(1, precision="bf16"), cuda_graphs=None)
    code, text, _ = said("expect", "record", fill("out", emulated, dummy, FAILED, unread, weak), "--output", "e.json")
    (entries,) = json.loads(Path("e.json").read_text())["devices"].values()
    assert code == 0 and {one["cell"]["precision"] for one in entries} == {"mxfp4"}
    for words in (
        "no speed: emulated",
        "dummy weights have no accuracy",
        "crashed",
        "conditions not known: cuda_graphs",
    ):
        assert words in text
    code, text, errors = said("expect", "record", fill("none", FAILED), "--output", "no.json")
    assert (code, text, len(errors.splitlines())) == (2, "", 1) and not Path("no.json").exists()


def test_an_expectation_is_not_lowered_in_silence(said):
    said(
        "expect",
        "record",
        fill("before", PERF, quick(1, device=CPU)),
        "--output",
        "e.json",
        "--tolerance",
        "latency_ms=7",
    )
    before = Path("e.json").read_text()
    after = fill("after", quick(1.5), PPL)
    code, text, errors = said("expect", "record", after, "--output", "e.json")
    assert (code, text) == (2, "") and "--update" in errors and Path("e.json").read_text() == before
    code, text, _ = said("expect", "record", after, "--output", "e.json", "--update")
    assert code == 0 and "latency_ms 100.0000 -> 150.0000 (+50.00%, worse), tolerance 7.0%" in text
    assert text.count("changed") == 3 and text.count("new ") == 1 and "7 expectations, 3 of them as they were" in text
    devices = json.loads(Path("e.json").read_text())["devices"]
    assert devices["cpu AMD EPYC 7763 x4"] == json.loads(before)["devices"]["cpu AMD EPYC 7763 x4"]
    again = Path("e.json").read_text()
    _, text, _ = said("expect", "record", after, "--output", "e.json", "--update")
    assert "7 expectations, 7 of them as they were" in text and Path("e.json").read_text() == again


def test_a_new_value_is_one_line_in_a_diff_and_its_samples_another(said):
    for factor in (1, 1.01):
        said(
            "expect", "record", fill(f"{factor}", quick(factor)), "--output", f"{factor}.json", "--metric", "latency_ms"
        )
    pairs = zip(*(Path(f"{factor}.json").read_text().splitlines() for factor in (1, 1.01)))
    assert [a.split('"')[1] for a, b in pairs if a != b and "provenance" not in a] == ["value", "samples"]


RUBBISH = {
    "empty": "",
    "a list": "[]",
    "no schema": "{}",
    "newer": '{"schema_version": 99}',
    "devices are a list": '{"schema_version": 1, "conditions": {}, "devices": []}',
    "an odd entry": '{"schema_version": 1, "conditions": {}, "devices": {"cpu": [3]}}',
    "NaN": '{"schema_version": NaN}',
    "unknown metric": ("latency_ms", "latency"),
    "a text for a number": ('"tolerance": 0.05', '"tolerance": "5 %"'),
    "a value of 0": ('"value": 100.0', '"value": 0'),
    "no samples": ('"samples": [', '"samples": [], "x": ['),
    "no conditions": ('"conditions": {', '"conditions": {}, "x": {'),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_a_file_that_holds_no_expectations_is_refused_in_one_line(said, name):
    said("expect", "record", fill("out", PERF), "--output", "e.json", "--metric", "latency_ms")
    change = RUBBISH[name]
    text = change if isinstance(change, str) else Path("e.json").read_text().replace(*change, 1)
    Path("e.json").write_text(text)
    code, text, errors = said("expect", "check", "out", "--expectations", "e.json")
    assert (code, text, len(errors.splitlines())) == (2, "", 1) and errors.startswith("error: e.json")


WRONG = [
    (["record", "nowhere", "--output", "x"], "no output folder"),
    (["record", "out", "--output", "x", "--metric", "latency"], "did you mean latency_ms"),
    (["record", "out", "--output", "x", "--tolerance", "-1"], "percent"),
    (["record", "out", "--output", "x", "--tolerance", "latency=5"], "did you mean latency_ms"),
    (["check", "out", "--expectations", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_wrong_usage_of_the_gate_is_one_line(said, arguments, words):
    fill("out", PERF)
    code, text, errors = said("expect", *arguments)
    assert (code, text, len(errors.splitlines())) == (2, "", 1) and words in errors


# --- harness compare --fail-on ---------------------------------------------------------------------------------------

SAME = [PERF, PPL]
GATES = {  # what B has -> exit codes without --fail-on, and with each finding
    "the same": (SAME, 0, set()),
    "slower": ([quick(2), PPL], 1, {"regressed"}),
    "a failure": ([FAILED, PPL], 3, {"failed", "incomparable"}),
    "another batch": ([conditioned(PERF, tp=2), PPL], 3, {"incomparable"}),
    "a cell less": ([PERF], 3, {"missing"}),
    "a cell more": ([*SAME, quick(1, batch_size=8)], 3, set()),
    "no samples": ([{**PERF, "raw": None}, PPL], 0, {"unknown"}),
    "faster": ([quick(0.5), PPL], 0, set()),
}


@pytest.mark.parametrize("name", GATES)
def test_compare_fails_on_what_it_is_told_to(said, name):
    found, plain, fails = GATES[name]
    a, b = fill("a", *SAME), fill("b", *found)
    assert said("compare", a, b)[0] == plain
    for finding in ("regressed", "incomparable", "missing", "failed", "unknown"):
        code, text, errors = said("compare", a, b, "--fail-on", finding, "--json")
        assert (code, errors) == ((1, f"fails: {finding}\n") if finding in fails else (0, ""))
        assert json.loads(text)["metrics"] or plain == 3
    assert said("compare", a, b, "--fail-on", "regressed,missing,failed,incomparable,unknown")[0] == bool(fails)


def test_a_tolerance_holds_for_fail_on_too_and_no_finding_can_be_misspelt(said):
    a, b = fill("a", PERF), fill("b", quick(1.5))
    assert said("compare", a, b, "--fail-on", "regressed", "--tolerance", 0.6)[0] == 0
    assert (
        said("compare", a, b, "--fail-on", "regresed")[2]
        == "error: unknown finding 'regresed': did you mean regressed?\n"
    )


# --- the page and its example ----------------------------------------------------------------------------------------


def commands_of(text: str) -> list[str]:
    """Lines that call harness, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r'(?:^|[\s/])harness"? ([a-z][^\n|>&;`]*)', joined)


def test_the_example_of_a_workflow_is_valid_and_calls_only_what_there_is():
    workflow = yaml.safe_load((ROOT / "docs/examples/github-actions.yml").read_text())
    assert {"cpu", "gpu"} == set(workflow["jobs"]) and True in workflow, "YAML reads `on` as true"
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    called = [line for step in steps for line in commands_of(step.get("run", ""))]
    assert {line.split()[0] for line in called} >= {"run", "compare", "expect", "results"}
    assert_exist(called)


def test_the_page_calls_only_what_there_is():
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.DOTALL)
    called = [line for block in blocks for line in commands_of(block)]
    assert called
    assert_exist(called)


def assert_exist(called: list[str]) -> None:
    for line in called:
        command, *words = line.split()
        assert command in COMMANDS, line
        words = [command, words[0]] if command == "expect" else [command]
        shown = CliRunner().invoke(cli, [*words, "--help"])
        assert shown.exit_code == 0, line
        assert not [option for option in re.findall(r"--[a-z][a-z-]+", line) if option not in shown.output], line
