"""`harness generate` and `harness evaluate` as a person runs them, on tinymoe."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

PROMPT = "Return the absolute value of"
FEW = ["--seq-len", 48, "--num-iterations", 3, "--num-tokens-to-check", 6]
HLO = Path(__file__).parent / "data/hlo"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def harness(tmp_path):
    return partial(run, tmp_path)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> list[object]:
    """Options that take a baseline of PROMPT made before."""
    folder = tmp_path_factory.mktemp("baseline")
    done = run(folder, "baseline", "--output", "one", "--prompt", PROMPT, "--num-tokens", 6)
    assert done.returncode == 0, done.stderr
    return ["--baseline", folder / "one"]


@pytest.fixture
def refused(harness, tmp_path):
    def check(*arguments: object) -> str:
        done = harness(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(("[", "Usage:", "Try "))]
        assert len(lines) == 1 and "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.csv")) and not list(tmp_path.rglob("benchmark_report*"))
        return lines[0]

    return check


def rows(folder: Path, team: str) -> list[dict[str, str]]:
    with (folder / "benchmark_results" / f"{team}_qwen3-30b-a3b_score_records.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_generate_prints_each_prompt_with_its_continuation(harness, tmp_path):
    (tmp_path / "two.txt").write_text("Return the\n\nRaise ValueError")
    done = harness("generate", "--prompts", "two.txt", "--num-tokens", 12, "--greedy", "--json")
    found = json.loads(done.stdout)
    assert [text["prompt"] for text in found["generated"]] == ["Return the", "Raise ValueError"]
    assert all(1 <= len(text["token_ids"]) <= 12 and text["text"] for text in found["generated"])
    assert found["generated"][0]["text"].split()[0] not in ("", None)


def test_a_seed_draws_the_same_text_again_and_another_does_not(harness):
    asked = ["generate", *["--prompt", "Return the"] * 2, "--num-tokens", 12, "--seed"]
    printed = [harness(*asked, seed).stdout.split("[12 tokens, ended by length]") for seed in (1, 2)]
    (first, again, _), (other, *_) = ([text.strip() for text in texts] for texts in printed)
    assert first.startswith("Return the ") and first == again != other


def test_one_prompt_is_checked_timed_and_scored(harness, baseline, tmp_path):
    base = ["--base-latency", 200, "--base-throughput", 100]
    done = harness(
        "evaluate", "--prompt", PROMPT, *FEW, *baseline, *base, "--team-id", "us", "--kernel-flop-ratio", 0.5, "--json"
    )
    assert done.returncode == 0, done.stderr
    ((found,),) = [json.loads(done.stdout)]
    report = json.loads((tmp_path / "benchmark_results/benchmark_report.json").read_text())
    e2e = report["e2e_model"]
    assert found["report"] == report and report["n"]["e2e_model"] == 3
    assert found["prompt_tokens"] + found["output_tokens"] == 48
    assert e2e["throughput"] == pytest.approx(48 / e2e["latency_ms_avg"] * 1000)
    assert "prompt and output tokens" in report["definitions"]["e2e_model.throughput"]
    for block in ("context_encoding_model", "token_generation_model"):
        assert 0 < report[block]["latency_ms_p50"] <= report[block]["latency_ms_p100"] < e2e["latency_ms_p100"]
    expected = 200 / e2e["latency_ms_p99"] * e2e["throughput"] / 100 * 1.5
    assert found["score"]["score"] == pytest.approx(expected)
    (row,) = rows(tmp_path, "us")
    assert float(row["final_score"]) == pytest.approx(expected) and row["team_id"] == "us" and row["accuracy"] == "1"


def test_failed_accuracy_scores_nothing_and_says_why(harness, baseline, tmp_path):
    strict = ["--precision", "fp32", "--tol-map", "{5: (0, 0.00001)}"]
    done = harness("evaluate", "--prompt", PROMPT, *FEW, *baseline, *strict, "--kernel-flop-ratio", 0)
    assert done.returncode == 1
    assert "score 0.0000: the accuracy check failed: " in done.stdout and "at k = 5" in done.stdout
    assert [
        row["final_score"] for row in csv.DictReader((tmp_path / "benchmark_results").glob("*.csv").__next__().open())
    ] == ["0.0"]


def test_without_a_kernel_ratio_there_is_no_score_but_its_other_factors(harness, baseline):
    done = harness("evaluate", "--prompt", PROMPT, *FEW, *baseline)
    assert done.returncode == 0
    assert done.stdout.startswith("score not known; without the kernel ratio ")


def test_all_prompts_are_scored_against_their_own_bases(harness, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\nRaise ValueError if the\n")
    (tmp_path / "base.csv").write_text(
        "Prompt ID,Context Length,Sequence Length,Base latency,Base throughput\n0,8,40,100,50\n1,8,48,300,150\n"
    )
    all_of = ["evaluate", "--all", "--base-data", "base.csv", "--flop-source", HLO, "--team-id", "us", *FEW]
    done = harness(*all_of, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["prompt_tokens"] + one["output_tokens"] for one in found] == [40, 48]
    assert [(one["score"]["base_latency_ms"], one["score"]["base_throughput"]) for one in found] == [
        (100, 50),
        (300, 150),
    ]
    assert all(0 < one["score"]["kernel_flop_ratio"] < 1 and one["score"]["score"] > 0 for one in found)
    assert {path.name for path in (tmp_path / "benchmark_results").glob("benchmark_report*")} == {
        "benchmark_report_0.json",
        "benchmark_report_1.json",
    }
    (made,) = (tmp_path / "benchmark_results/baselines").iterdir()
    again = harness(*all_of, "--baseline", made)
    assert "total score of 2 prompts: " in again.stdout and len(rows(tmp_path, "us")) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --prompt TEXT, or --all"),
        (["--prompt", PROMPT, "--all"], "give --prompt TEXT, or --all"),
        (["--all"], "prompts.txt"),
        (["--prompt", PROMPT, "--tol-map", "{"], "--tol-map"),
        (["--prompt", PROMPT, "--base-latency", -1], "base latency"),
        (["--prompt", PROMPT, "--team-id", "../x"], "team"),
        (["--prompt", PROMPT, "--base-data", "b.csv"], "--base-data is of the prompts of --all"),
        (["--prompt", PROMPT, "--flop-source", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(refused, arguments, words):
    assert words in refused("evaluate", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seq-len", 4], "leaves none of --seq-len 4"),
        (["--precision", "nvfp4"], "its speed would mean nothing"),
    ],
)
def test_what_cannot_be_evaluated_beside_a_baseline_is_refused(refused, baseline, arguments, words):
    assert words in refused("evaluate", "--prompt", PROMPT, *baseline, *arguments)


@pytest.mark.parametrize("arguments", [[], ["--prompts", "nowhere.txt"], ["--prompt", "word " * 3000]])
def test_what_cannot_be_continued_is_refused(refused, arguments):
    assert refused("generate", *arguments)
