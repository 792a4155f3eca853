"""The benchmark report, the score and its records: by hand where a hand can follow, with real processes where they meet."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from harness import Generation, Response
from harness.errors import UsageError
from harness.evaluation.prompts import BaseData, read_base_data, read_prompts
from harness.evaluation.report import DEFINITIONS, benchmark_report
from harness.evaluation.score import COLUMNS, append_csv, csv_path, csv_row, score
from harness.workloads import perf

MS = 1_000_000
CONTEST = ["latency_ms_p50", "latency_ms_p90", "latency_ms_p95", "latency_ms_p99", "latency_ms_p100", "latency_ms_avg"]
BLOCKS = ("e2e_model", "context_encoding_model", "token_generation_model")


class Scripted:
    """A session that answers with the times it was given, in ms; a request of a batch is a tuple of token times."""

    def __init__(self, *batches: tuple[float, list[tuple[float | None, ...]]]) -> None:
        self.batches = iter(batches)

    def generate(self, prompts, output_len) -> Generation:
        wall, requests = next(self.batches)
        started = 5_000 * MS
        times = [tuple(None if t is None else started + int(t * MS) for t in request) for request in requests]
        return Generation(started, started + int(wall * MS), tuple(Response((1,) * output_len, t) for t in times))


class Prompts:
    def __init__(self, batch_size: int) -> None:
        self.ids = ((1, 2, 3),) * batch_size


def record(*batches: tuple[float, list[tuple[float | None, ...]]], input_len: int = 8) -> dict:
    """A perf record, made by the perf workload from those times."""
    requests = batches[0][1]
    sizes = {"batch_size": len(requests), "input_len": input_len, "output_len": len(requests[0])}
    parameters = {**sizes, "num_iterations": len(batches), "warmup_iterations": 0}
    measured = perf.measure(Scripted(*batches), Prompts(len(requests)), parameters, lambda *_: None)
    return json.loads(json.dumps({"key": "k", "status": "ok", **parameters, **measured.results}))


def test_each_block_has_the_contests_keys_and_counts_the_tokens_its_definition_says():
    # Two requests; the batch's last first token after 20 and 30 ms, its steps 10 and 10, then 5 and 15 ms.
    report = benchmark_report(
        record(
            (45, [(10, 15, 20), (20, 30, 40)]),
            (55, [(30, 31, 50), (30, 35, 49)]),
        )
    )
    assert [list(report[name]) for name in BLOCKS] == [[*CONTEST, "throughput"]] * 3
    e2e, context, generation = (report[name] for name in BLOCKS)
    assert (e2e["latency_ms_p50"], e2e["latency_ms_avg"], e2e["latency_ms_p100"]) == (50, 50, 55)
    assert e2e["latency_ms_p99"] == pytest.approx(45 + 0.99 * 10)
    assert e2e["throughput"] == pytest.approx(2 * (8 + 3) * 2 / 0.100)
    assert (context["latency_ms_avg"], context["latency_ms_p100"]) == (25, 30)
    assert context["throughput"] == pytest.approx(2 * 8 * 2 / 0.050)
    assert (generation["latency_ms_avg"], generation["latency_ms_p50"], generation["latency_ms_p100"]) == (10, 10, 15)
    assert generation["throughput"] == pytest.approx(4 * 2 / 0.040)
    assert report["n"] == {"e2e_model": 2, "context_encoding_model": 2, "token_generation_model": 4}
    assert report["unmeasured"] == {}
    assert "prompt and output tokens" in report["definitions"]["e2e_model.throughput"]
    assert {name.partition(".")[0] for name in DEFINITIONS} == {*BLOCKS, "percentiles"}
    json.dumps(report, allow_nan=False)


def test_p99_of_twenty_samples_is_what_the_contest_takes_and_is_said_to_be_close_to_the_maximum():
    report = benchmark_report(record(*((float(wall), [(1, 2)]) for wall in range(101, 121))))
    assert report["e2e_model"]["latency_ms_p99"] == pytest.approx(0.19 * 119 + 0.81 * 120)
    assert report["n"]["e2e_model"] == 20
    assert "e2e_model: p99 of 20 samples is close to their maximum" in report["notes"][0]
    report = benchmark_report(record(*((float(wall), [(1, 2)]) for wall in range(101, 201))))
    assert report["notes"] == []


def test_the_steps_and_the_context_encoding_add_up_to_the_last_token():
    timelines = [(11.0, 17.5, 20.25, 31.0), (12.0, 13.0, 29.0, 30.0), (9.0, 16.0, 21.0, 22.0)]
    report = benchmark_report(record((31.5, timelines)))
    steps = report["token_generation_model"]
    assert report["context_encoding_model"]["latency_ms_avg"] + 3 * steps["latency_ms_avg"] == pytest.approx(31.0)
    assert steps["latency_ms_p100"] == pytest.approx(29.0 - 17.5)


@pytest.mark.parametrize(
    ("requests", "nulls"),
    [
        ([(None, None, None), (None, None, None)], {"context_encoding_model", "token_generation_model"}),
        ([(1, None, 3), (1, 2, 3)], {"token_generation_model"}),
        ([(1, 2, None), (1, 2, None)], {"token_generation_model"}),
        ([(None, 2, 3), (1, 2, 3)], {"context_encoding_model", "token_generation_model"}),
    ],
)
def test_a_block_whose_times_one_iteration_lacks_is_null_and_says_why(requests, nulls):
    report = benchmark_report(record((9, [(1, 2, 3), (1, 2, 3)]), (9, requests)))
    assert {name for name in BLOCKS if report[name] is None} == nulls == set(report["unmeasured"])
    assert set(report["unmeasured"].values()) == {"the engine did not say when each token came out"}
    assert report["e2e_model"]["latency_ms_avg"] == 9 and all(report["n"][name] == 0 for name in nulls)


def test_a_single_request_without_a_first_token_time_has_no_context_encoding():
    report = benchmark_report(record((9, [(None, 2)])))
    assert report["context_encoding_model"] is None and report["token_generation_model"] is None


def test_one_output_token_has_no_token_generation():
    report = benchmark_report(record((9, [(4,)])))
    assert report["token_generation_model"] is None
    assert report["unmeasured"] == {"token_generation_model": "one output token has no step to a next one"}
    assert report["context_encoding_model"]["latency_ms_avg"] == 4


def test_tokens_handed_over_together_have_latencies_of_zero_and_no_throughput():
    report = benchmark_report(record((9, [(4, 4, 4)])))
    assert report["token_generation_model"]["latency_ms_p100"] == 0
    assert report["token_generation_model"]["throughput"] is None
    assert "handed over together" in report["unmeasured"]["token_generation_model.throughput"]


GOOD = record((45, [(10, 15, 20), (20, 30, 40)]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"raw": None, "status": "failed"}, "no timed iterations under raw (status failed)"),
        ({"raw": {"latency_ns": [], "token_ns": []}}, "no timed iterations"),
        ({"raw": {"latency_ns": [1, 2], "token_ns": GOOD["raw"]["token_ns"]}}, "2 latencies but 1 iterations"),
        ({"raw": {"latency_ns": [0], "token_ns": GOOD["raw"]["token_ns"]}}, "whole nanoseconds above 0"),
        ({"raw": {"latency_ns": [1.5], "token_ns": GOOD["raw"]["token_ns"]}}, "whole nanoseconds above 0"),
        ({"raw": {"latency_ns": [9], "token_ns": [5]}}, "list of timelines"),
        ({"raw": {"latency_ns": [9], "token_ns": [[{"requests": [0, 1], "ns": 5}]]}}, "list of timelines"),
        (
            {"raw": {"latency_ns": [9], "token_ns": [[{"requests": [0, 1], "ns": ["x"] * 3}]]}},
            "whole nanoseconds since",
        ),
        ({"raw": {"latency_ns": [9], "token_ns": [[]]}}, "each of the 2 requests once"),
        ({"batch_size": 3}, "each of the 3 requests once"),
        ({"output_len": 4}, "4 times per request"),
        ({"output_len": True}, "output_len must be a whole number above 0, got True"),
        ({"input_len": None}, "input_len must be a whole number above 0, got None"),
    ],
)
def test_a_record_without_usable_times_costs_one_line(changes, words):
    with pytest.raises(UsageError) as error:
        benchmark_report({**GOOD, **changes})
    assert words in str(error.value) and str(error.value).startswith("record k: ") and "\n" not in str(error.value)


# The score.


def test_the_score_of_the_contests_own_example_is_thirty_seven():
    result = score(True, None, 100.0, 20.0, base_latency_ms=1000.0, base_throughput=10.0, kernel_flop_ratio=0.85)
    assert (result.reduced_latency, result.increased_throughput) == (10, 2)
    assert result.score == pytest.approx(37) and result.reason is None
    assert result.score_without_kernel_ratio == pytest.approx(20)


def test_the_baseline_itself_scores_one_with_the_contests_figures():
    assert score(True, None, 526.15, 134.61, kernel_flop_ratio=0.0).score == pytest.approx(1)


def test_a_failed_accuracy_check_scores_0_and_says_why():
    for ratio in (0.5, None):
        result = score(False, "token 3: top-5 error 0.08 > 0.03", 1.0, 1e6, kernel_flop_ratio=ratio)
        assert (result.score, result.accuracy, result.score_without_kernel_ratio) == (0, 0, 0)
        assert result.reason == "the accuracy check failed: token 3: top-5 error 0.08 > 0.03"


def test_an_unknown_kernel_ratio_is_not_taken_for_0():
    result = score(True, None, 263.075, 134.61, why_no_ratio="the hf engine has no provider")
    assert (result.score, result.kernel_flop_ratio) == (None, None)
    assert result.score_without_kernel_ratio == pytest.approx(2)
    assert "kernel_flop_ratio is not known (the hf engine has no provider)" in result.reason
    low, high = (score(True, None, 263.075, 134.61, kernel_flop_ratio=ratio).score for ratio in (0.0, 1.0))
    assert (low, high) == (result.score_without_kernel_ratio, 2 * result.score_without_kernel_ratio)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["p99_ms", "throughput", "base_latency_ms", "base_throughput"])
def test_a_number_that_cannot_be_is_refused_by_name(name, value):
    numbers = {"p99_ms": 1.0, "throughput": 1.0, name: value}
    with pytest.raises(UsageError, match="must be a number above 0, got") as error:
        score(True, None, **numbers)
    assert name.removesuffix("_ms").replace("_", " ").split()[0] in str(error.value)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(UsageError, match="between 0 and 1"):
        score(True, None, 1.0, 1.0, kernel_flop_ratio=ratio)


def test_a_score_too_large_for_a_number_is_refused():
    with pytest.raises(UsageError, match="no finite score"):
        score(True, None, 1e-300, 1.0, base_latency_ms=1e300, kernel_flop_ratio=0.0)


# Its records.

RESULT = score(True, None, 100.0, 200.0, kernel_flop_ratio=0.25)


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_file_has_the_contests_name_header_and_row(tmp_path):
    path = append_csv(tmp_path / "new", "team7", csv_row(RESULT, "team7", "ada"))
    assert path == tmp_path / "new/team7_qwen3-30b-a3b_score_records.csv"
    header, row, rest = path.read_bytes().decode().split("\r\n")
    assert header == (
        "team_id,member_id,base_latency,base_throughput,accuracy,latency,throughput,nki_flop_ratio,"
        "increased_throughput,reduced_latency,final_score,timestamp"
    )
    assert rest == "" and row.startswith("team7,ada,526.15,134.61,1,100.0,200.0,0.25,")
    (found,) = rows(path)
    assert float(found["final_score"]) == RESULT.score
    assert len(found["timestamp"]) == 19 and found["timestamp"][10] == " "
    append_csv(tmp_path / "new", "team7", csv_row(RESULT, "team7", None))
    assert [row["member_id"] for row in rows(path)] == ["ada", ""]


def test_without_a_team_the_name_has_no_front_and_an_unknown_ratio_is_an_empty_cell(tmp_path):
    unknown = score(True, None, 100.0, 200.0)
    path = append_csv(tmp_path, None, csv_row(unknown, None, None))
    assert path.name == "qwen3-30b-a3b_score_records.csv"
    assert [(row["team_id"], row["nki_flop_ratio"], row["final_score"]) for row in rows(path)] == [("", "", "")]


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_of_the_contests_own_script_goes_on(tmp_path, end, mark):
    path = csv_path(tmp_path, "old")
    old = mark + ",".join(COLUMNS) + end + ",".join("0123456789ab") + end
    path.write_bytes(old.encode())
    append_csv(tmp_path, "old", csv_row(RESULT, "old", None))
    assert path.read_bytes().startswith(old.encode()) and len(rows(path)) == 2


def test_a_last_line_that_was_left_open_is_ended_first(tmp_path):
    path = csv_path(tmp_path, "t")
    path.write_text(",".join(COLUMNS) + "\n" + ",".join("0123456789ab"))
    append_csv(tmp_path, "t", csv_row(RESULT, "t", None))
    assert [row["timestamp"] for row in rows(path)][0] == "b" and len(rows(path)) == 2


@pytest.mark.parametrize(
    "content",
    ["name,score\n1,2\n", ",".join(COLUMNS) + ",more\n", ",".join(COLUMNS)[:-1], "\n", "\0" * 500, ",".join(COLUMNS[1:]) + "\n"],
)  # fmt: skip
def test_a_file_with_another_header_is_not_touched(tmp_path, content):
    path = csv_path(tmp_path, "t")
    path.write_text(content)
    with pytest.raises(UsageError, match="its header is not team_id") as error:
        append_csv(tmp_path, "t", csv_row(RESULT, "t", None))
    assert path.read_text() == content and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "team", ["", "a/b", "../a", "=1+1", "+1", "-1", "@a", ".a", "a b", "a\nb", "a\0", "ü", "x" * 81]
)
def test_a_team_id_that_is_no_part_of_a_file_name_is_refused(tmp_path, team):
    with pytest.raises(UsageError, match="team id .* cannot be part of a file name"):
        append_csv(tmp_path, team, csv_row(RESULT, team, None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "member", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "a\nb", "x;=1+1", 'x",=1', "\uff1d1"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_refused(tmp_path, member):
    with pytest.raises(UsageError, match="member id .* formula"):
        append_csv(tmp_path, "t", csv_row(RESULT, "t", member))
    assert list(tmp_path.iterdir()) == []


def test_a_member_may_have_any_other_name(tmp_path):
    names = ["Jörg-Peter O'Neil, 2nd", 'said "hi"', "a@b.org"]
    for name in names:
        path = append_csv(tmp_path, "t", csv_row(RESULT, "t", name))
    assert [row["member_id"] for row in rows(path)] == names


def test_a_row_with_other_columns_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match="a row of the score records has"):
        append_csv(tmp_path, "t", {"team_id": "t"})


def test_a_place_that_cannot_be_written_costs_one_line(tmp_path):
    csv_path(tmp_path, "t").mkdir()
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        append_csv(tmp_path, "t", csv_row(RESULT, "t", None))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        append_csv(tmp_path / "file", "t", csv_row(RESULT, "t", None))
    with pytest.raises(UsageError, match="not a regular file"):
        csv_path(tmp_path, "null").symlink_to("/dev/null")
        append_csv(tmp_path, "null", csv_row(RESULT, "null", None))


def test_a_row_for_which_there_is_no_room_leaves_the_file_as_it_was(tmp_path):
    path = append_csv(tmp_path, "t", csv_row(RESULT, "t", None))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))  # room for a part of a row
        with pytest.raises(UsageError, match="cannot be written: no room for a whole row"):
            append_csv(tmp_path, "t", csv_row(RESULT, "t", None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


WRITER = """
import sys, time
from pathlib import Path
from harness.evaluation.score import append_csv, csv_row, score
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(50):
    row = csv_row(score(True, None, 100.0, 200.0), "t", f"{sys.argv[2]}.{number}." + "x" * 500)
    time.sleep(max(0, start + number / 50 - time.time()))
    append_csv(Path(sys.argv[1]), f"new{number}", row)  # all meet at a file that is not there yet
    append_csv(Path(sys.argv[1]), "t", row)
"""


def test_processes_that_append_at_once_lose_and_tear_nothing(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(id)], **pipes) for id in range(4)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    start = f"{time.time() + 0.2}\n"
    for writer in writers:
        writer.stdin.write(start)
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0] * 4
    for number in range(50):
        path = csv_path(tmp_path, f"new{number}")
        assert path.read_text().count("team_id") == 1, "one header"
        assert sorted(row["member_id"].split(".")[0] for row in rows(path)) == ["0", "1", "2", "3"]
    found = rows(csv_path(tmp_path, "t"))
    assert all(row.keys() == set(COLUMNS) and None not in row.values() for row in found), "no row is torn"
    assert {row["member_id"].split(".")[2] for row in found} == {"x" * 500}
    for id in "0123":  # none is lost, and each process's rows lie in its own order
        names = [row["member_id"].split(".")[:2] for row in found]
        assert [number for name, number in names if name == id] == [str(number) for number in range(50)]


def test_a_process_waits_for_another_that_is_writing_and_looks_at_the_file_afterwards(tmp_path):
    path = csv_path(tmp_path, "t")
    code = "import sys; from pathlib import Path; from harness.evaluation.score import *\n"
    code += "append_csv(Path(sys.argv[1]), 't', csv_row(score(True, None, 100.0, 200.0), 't', 'second'))"
    with path.open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        writer = subprocess.Popen([sys.executable, "-c", code, tmp_path])
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=2)
        assert path.read_bytes() == b"", "the file is empty, but not the second's to begin"
        first.write(f"{','.join(COLUMNS)}\r\n{','.join('0123456789ab')}\r\n".encode())
    assert writer.wait(timeout=30) == 0  # the file is closed, so the lock is free
    assert [row["member_id"] for row in rows(path)] == ["1", "second"]


def test_a_score_is_json_and_frozen():
    assert json.loads(json.dumps(asdict(RESULT)))["score"] == RESULT.score
    assert replace(RESULT, accuracy=0) != RESULT


# What an evaluation of many prompts reads.

BASE = "Prompt ID, Context Length, Sequence Length, Base latency, Base throughput\n"  # spaces as the contest has them


def test_base_data_is_read_as_the_contest_writes_it(tmp_path):
    path = tmp_path / "base.csv"
    path.write_text(BASE + "0,18,64,12498,51.86\n1,126,256,9432.19,70.24")
    assert read_base_data(path) == (BaseData(0, 18, 64, 12498.0, 51.86), BaseData(1, 126, 256, 9432.19, 70.24))
    path.write_bytes(("\ufeff" + BASE + "\n0,18,64,12498,51.86\n\n").replace("\n", "\r\n").encode())
    assert read_base_data(path) == (BaseData(0, 18, 64, 12498.0, 51.86),)


def test_columns_are_found_by_name(tmp_path):
    path = tmp_path / "base.csv"
    path.write_text("Base throughput,note,Prompt ID,Sequence Length,Context Length,Base latency\n5.5,x,3,64,18,7\n")
    assert read_base_data(path) == (BaseData(3, 18, 64, 7.0, 5.5),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty; expected the columns Prompt ID, Context Length"),
        (BASE, "a header and no row"),
        ("a,b\n1,2\n", "line 1: column 'Prompt ID' is missing"),
        (BASE.replace("Sequence", "Context"), "line 1: column 'Context Length' is there twice"),
        (BASE + "0,18,64,12498\n", "line 2: 4 cells, but the header has 5"),
        (BASE + "0,18,64,12498,1,2\n", "line 2: 6 cells"),
        (BASE + "0,18,64,1,1\n\nx,18,64,1,1\n", "line 4, column 'Prompt ID': expected a whole number from 0, got 'x'"),
        (BASE + "-1,18,64,1,1\n", "line 2, column 'Prompt ID'"),
        (BASE + "0,0,64,1,1\n", "line 2, column 'Context Length': expected a whole number above 0, got '0'"),
        (BASE + "0,1,6.5,1,1\n", "line 2, column 'Sequence Length'"),
        (BASE + "0,1,1,nan,1\n", "line 2, column 'Base latency': expected a number above 0, got 'nan'"),
        (BASE + "0,1,1,1e999,1\n", "line 2, column 'Base latency'"),
        (BASE + "0,1,1,1,0\n", "line 2, column 'Base throughput': expected a number above 0, got '0'"),
        (BASE + "0,1,1,1,\n", "line 2, column 'Base throughput'"),
        (BASE + "0,1,1,1,1\n0,1,1,1,1\n", "line 3, column 'Prompt ID': 0 was there before"),
        (BASE + '0,1,1,1,"' + "x" * 200_000, "field larger than field limit"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)  # fmt: skip
def test_bad_base_data_is_refused_with_line_and_column(tmp_path, content, words):
    path = tmp_path / "base.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        read_base_data(path)
    assert words in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_prompts_are_separated_by_blank_lines_whatever_the_line_ends(tmp_path):
    path = tmp_path / "prompts.txt"
    text = "\n\nWhat is 2 + 2?\n\nTwo lines\nof one prompt  \n  \n\n\n=1+1\n\n\n"
    for end in ("\n", "\r\n"):
        path.write_bytes(text.replace("\n", end).encode())
        assert read_prompts(path) == ("What is 2 + 2?", "Two lines\nof one prompt", "=1+1")


@pytest.mark.parametrize("content", [b"", b"\n\n \n\t\n", b"\xff\xff"])
def test_a_file_without_prompts_is_refused(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        read_prompts(path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere")
