"""`harness ladder`, `harness analyze-all` and the axis `rungs`, as a person runs them, on an engine of made-up rungs."""

import json
import time

import pytest

SMALL = ("--input-len", 8, "--output-len", 4, "--num-iterations", 3, "--warmup-iterations", 1, "--num-chunks", 2)


@pytest.fixture
def ladder(harness):
    text = harness.root / "text"
    text.write_text("Every token is as likely as the next. " * 20)

    def run(*arguments, **options):
        return harness(
            "ladder",
            "--engine",
            "echo",
            *SMALL,
            "--dataset",
            f"file:{text}",
            "--output-dir",
            "out",
            *arguments,
            **options,
        )

    return run


def test_a_ladder_measures_every_step_in_turn_and_says_what_each_is_worth(ladder, harness):
    done = ladder("--repeats", 3, "--json", sin="punctual")  # real times are as noisy as the machine
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    told = [(row["kind"], row["added"], row["rungs"]) for row in rows]
    assert told == [
        ("baseline", "none", "none"),
        ("cumulative", "brisk", "brisk"),
        ("cumulative", "swift", "brisk+swift"),
        ("default", "default", "default"),
        ("off", "grace", "grace"),
    ]
    brisk, swift, off = rows[1], rows[2], rows[-1]
    assert brisk["step_speedup"]["itl_ms"]["verdict"] == swift["step_speedup"]["itl_ms"]["verdict"] == "better"
    assert brisk["speedup"]["itl_ms"]["times"] == pytest.approx(2.5 / 1.5)
    assert swift["speedup"]["itl_ms"]["times"] == pytest.approx(2.5 / 0.5)
    assert brisk["speedup"]["itl_ms"] == brisk["step_speedup"]["itl_ms"]  # the step before it is plain eager
    assert "3 rounds" in brisk["noise"] and "pair by pair" in brisk["noise"]
    assert (brisk["changes_output"], swift["changes_output"]) == (False, True)
    assert brisk["perplexity"] == pytest.approx(2.71828, rel=1e-4)
    assert off["reason"] == "rung grace: no parrot sings in bf16"
    measured = [record for record in harness.records() if record["status"] != "skipped"]
    assert {record["config"] for record in measured} >= {"TP1_EP1_auto_none", "TP1_EP1_auto_brisk+swift"}
    assert all(record["effective"]["rungs_in_force"].keys() <= {"brisk", "swift"} for record in measured)


def test_a_ladder_that_was_stopped_goes_on_and_measures_nothing_twice(ladder, harness):
    def written() -> dict[str, str]:
        return {record["key"]: record["written_at"] for record in harness.records() if record["status"] == "ok"}

    assert ladder("--quick").returncode == 0
    before = written()
    (gone, *_) = (record["key"] for record in harness.records() if record["requested"]["rungs"] == "brisk+swift")
    (harness.folder / "out/records" / f"{gone}.json").unlink()
    time.sleep(1.1)  # times are whole seconds
    done = ladder("--quick", "--resume")
    assert done.returncode == 0, done.stderr
    after = written()
    assert {key for key in after if after[key] != before[key]} == {gone}
    assert "+ swift" in done.stdout


def test_a_rung_that_is_not_in_force_is_left_out_with_all_that_need_it(ladder):
    done = ladder("--quick", "--output", "page.md", sin="lame")
    assert done.returncode == 0, done.stderr
    assert "off: brisk: not in force here: its wings are clipped" in done.stdout
    assert "off: swift: needs brisk, left out" in done.stdout
    assert "+ brisk" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "sglang"], "has no rungs"),
        (["--rungs", "none"], "--without leaves some out"),
        (["--without", "brsk"], "did you mean brisk"),
        (["--steps", "sideways"], "unknown kind of step"),
        (["--workers", "2"], "one after another"),
        (["--output", "nowhere/page.html"], "there is no folder"),
    ],
)
def test_what_a_ladder_cannot_do_is_said_before_anything_runs(ladder, harness, arguments, words):
    done = ladder(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in done.stderr or "sglang" in done.stderr
    assert harness.records() == []


def test_run_and_sweep_take_rungs_as_an_axis(harness):
    done = harness.measure("--precision", "bf16", "--workload", "perf", "--rungs", "none,swift,grace,default", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [r["requested"]["rungs"] for r in records] == ["none", "brisk+swift", "grace", "default"]
    assert [r["status"] for r in records] == ["ok", "ok", "skipped", "ok"]
    file = harness.folder / "sweep.yaml"
    file.write_text("matrix: {engine: echo, rungs: [none, brisk], input_len: 8, output_len: 4, num_iterations: 2}")
    done = harness("sweep", file, "--output-dir", "swept", "--json")
    assert [r["requested"]["rungs"] for r in json.loads(done.stdout)] == ["none", "brisk"], done.stderr


def test_all_is_analysed_in_one_go_and_what_is_not_possible_is_passed_over(harness):
    text = harness.root / "text"
    text.write_text("Every token is as likely as the next. " * 20)
    done = harness(
        *("analyze-all", "--engine", "echo", "--precision", "bf16", "--quick", *SMALL),
        *("--max-batch-size", 4, "--dataset", f"file:{text}", "--output-dir", "out", "--output", "page.md"),
    )
    assert done.returncode == 0, done.stderr
    assert "best throughput: batch " in done.stdout and "+ swift" in done.stdout
    assert "passed over: one GPU or none here" in done.stdout
    assert "echo" in (harness.folder / "page.md").read_text()
