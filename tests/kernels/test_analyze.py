"""`harness analyze`: the table, the JSON and the sentence of a trace, and one clear line where there is no answer."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
from byhand import ATTENTION, EXPERT, QUANT, decode_steps, kineto, made
from click.testing import CliRunner

from harness import cli
from harness.kernels.analysis import answer, ceiling
from harness.kernels.ledger import Ledger, Share, ledgers, one_step
from harness.kernels.tables import conclusion
from harness.kernels.validity import Given
from harness.traces.trace import HOST

SHARED = Path(__file__).parents[2] / "../shared/traces"
STEP = [(EXPERT, 10, 60), (ATTENTION, 0, 20), (QUANT, 5, 5)]


@pytest.fixture
def analyze(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "analyze", ("harness.commands.analyze:analyze", "x"))
    return lambda *arguments: CliRunner().invoke(cli.cli, ["analyze", *map(str, arguments)])


@pytest.fixture
def trace(tmp_path) -> Path:
    prefill = ("prefill", [(EXPERT, 0, 500), (ATTENTION, 0, 100)])
    return kineto(tmp_path / "trace.json", prefill, *[("decode", STEP)] * 3)


def answered(analyze, *arguments) -> dict:
    found = analyze(*arguments, "--format", "json")
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return json.loads(found.stdout)


def test_a_table_per_phase_then_a_sentence_per_phase(analyze, trace):
    found = analyze(trace)
    assert found.exit_code == 0, found.output
    assert "device 0, prefill: 1 step" in found.stdout and "device 0, decode: 3 steps" in found.stdout
    assert "Expert GEMMs have 70.6 % of the summed time of a decode step" in found.stdout


def test_the_json_has_categories_ceiling_and_denominators_that_fit_each_other(analyze, trace):
    data = answered(analyze, trace, "--phase", "decode")
    assert (data["valid"], data["problems"], data["device"], data["phase"]) == (True, [], 0, "decode")
    expert, denominators = data["categories"]["expert_gemm"], data["denominators"]
    assert expert["time_ms"] == pytest.approx(0.18) and expert["kernel_count"] == 3 and expert["samples"] == [EXPERT]
    assert sum(one["percent"] for one in data["categories"].values()) == pytest.approx(100)
    assert sum(one["percent"] for one in data["coarse"].values()) == pytest.approx(100)
    assert sum(one["time_ms"] for one in data["categories"].values()) == pytest.approx(denominators["sum_ms"])
    wall = sum(one["charged_ms"] for one in data["categories"].values()) + denominators["idle_ms"]
    assert wall == pytest.approx(denominators["window_ms"])
    assert data["max_speedup"] == pytest.approx(1 / (1 - 60 / 85))
    window = denominators["window_ms"]
    assert data["amdahl"]["lower"] == data["amdahl"]["upper"] == pytest.approx(1 / (1 - 0.18 / window))
    assert data["precision_cost"]["ms_per_step"] == pytest.approx(0.005)
    assert data["precision_cost"]["with_expert_gemm"]["upper"] > data["amdahl"]["upper"]
    assert {(one["device"], one["phase"]) for one in data["ledgers"]} >= {(0, "whole"), (0, "prefill"), (0, "decode")}
    assert set(denominators["words"]) >= {"sum_ms", "window_ms", "percent", "amdahl"}


def test_the_output_file_is_json_and_the_table_still_goes_to_stdout(analyze, trace, tmp_path):
    found = analyze(trace, "--output", tmp_path / "new" / "answer.json")
    assert "device 0, decode" in found.stdout
    assert json.loads((tmp_path / "new" / "answer.json").read_text())["valid"] is True
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["answer.json"]


def test_csv_and_markdown_say_the_same_as_the_json(analyze, trace, tmp_path):
    data = answered(analyze, trace)
    assert analyze(trace, "--output", tmp_path / "a.csv").exit_code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    for row in rows:
        ledger = next(one for one in data["ledgers"] if one["phase"] == row["phase"])
        if row["category"] != "idle":
            assert float(row["time_ms"]) == ledger["categories"][row["category"]]["time_ms"]
    page = analyze(trace, "--format", "md").stdout
    assert "| expert\\_gemm |" in page and "\x1b" not in page


def test_eight_categories_on_request(analyze, trace):
    rows = list(csv.DictReader(io.StringIO(analyze(trace, "--coarse", "--format", "csv").stdout)))
    names = {row["category"] for row in rows}
    assert names <= {
        "expert_gemm",
        "gate_gemm",
        "attention",
        "routing",
        "quant_dequant",
        "norm",
        "comm",
        "other",
        "idle",
    }


def test_one_step_kernel_by_kernel(analyze, trace):
    rows = list(csv.DictReader(io.StringIO(analyze(trace, "--kernels", "--format", "csv").stdout)))
    assert [(row["name"], float(row["offset_us"]), float(row["gap_us"])) for row in rows] == [
        (EXPERT, 0, 0),
        (ATTENTION, 60, 0),
        (QUANT, 85, 5),
    ]
    assert {"expert_gemm", "attention", "quant_dequant"} == {row["category"] for row in rows}


def test_what_fails_the_gate_is_shown_as_not_valid_with_exit_code_1(analyze, trace):
    found = analyze(trace, "--itl-ms", "0.01", "--layers", "7", "--precision", "bf16")
    assert found.exit_code == 1
    assert "not valid: profiled decode step like an unprofiled one" in found.stdout
    assert "not valid: calls per layer: no multiple of 7 layers" in found.stdout
    assert "device 0, decode: 3 steps" in found.stdout  # shown, not hidden
    data = answered(analyze, trace, "--layers", "7")
    assert data["valid"] is False and data["categories"]["expert_gemm"]["kernel_count"] == 4


def test_the_wall_time_of_a_step_without_profiler_takes_the_place_of_the_profiled_one(analyze, trace):
    def decode(*options):
        return next(one for one in answered(analyze, trace, *options)["ledgers"] if one["phase"] == "decode")

    found, profiled = decode("--itl-ms", "0.09"), decode()
    assert (found["wall"], profiled["wall"]) == ("unprofiled", "profiled")
    assert found["amdahl"]["lower"] == found["amdahl"]["upper"] == pytest.approx(1 / (1 - 60 / 90))
    assert (
        found["window_ns"]
        == 3 * 90_000
        == found["idle_ns"] + sum(c["charged_ns"] for c in found["categories"].values())
    )
    assert found["launch_bound"]["idle_ms"] is None and found["launch_bound"]["reason"]
    too_short = decode("--itl-ms", "0.01")
    assert too_short["wall"] == "profiled" and too_short["window_ns"] == profiled["window_ns"]


def test_a_phase_the_trace_lacks_is_no_answer(analyze, tmp_path):
    path = kineto(tmp_path / "t.json", ("decode", STEP))
    found = analyze(path, "--phase", "prefill", "--output", tmp_path / "out.json")
    assert found.exit_code == 1 and "has no prefill step" in found.stdout and "it marks decode" in found.stdout
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["valid"] is False and data["categories"] is None and "prefill" in data["problems"][0]


def test_a_trace_without_kernels_is_said_and_written_and_has_no_table(analyze, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": [], "schemaVersion": 1}))
    found = analyze(tmp_path / "t.json", "--output", tmp_path / "out.json")
    assert found.exit_code == 1 and "no answer" in found.stdout and "0.000" not in found.stdout
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["valid"] is False and data["problems"]
    for name in ("categories", "max_speedup", "amdahl", "denominators", "format"):
        assert data[name] is None


@pytest.mark.parametrize("content", [b"", bytes(5000), b"{", b'{"a": 1}', b"[1, 2", b"\x1f\x8b\x08\x00torn"])
def test_what_is_no_trace_is_one_line_and_exit_code_2(analyze, tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    found = analyze(tmp_path / "t.json")
    assert found.exit_code == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_a_sqlite_file_of_something_else_is_refused(analyze, tmp_path):
    with sqlite3.connect(tmp_path / "x.sqlite") as other:
        other.execute("create table people (name text)")
    assert analyze(tmp_path / "x.sqlite").exit_code == 2


def test_a_device_that_is_not_there_and_a_file_that_cannot_be_written_are_one_line(analyze, trace):
    found = analyze(trace, "--device", "5")
    assert found.exit_code == 2 and "has no device 5; it has 0" in found.stderr
    found = analyze(trace, "--output", trace / "below" / "a.json")
    assert found.exit_code == 2 and "cannot be written" in found.stderr and found.stderr.count("\n") == 1


def test_hostile_names_stay_names(analyze, tmp_path):
    names = ["<script>alert(1)</script>|x", "[red]bold[/red]\x1b[31m", "=cmd()", "k" * 100_000]
    path = kineto(tmp_path / "t.json", ("decode", [(EXPERT, 0, 500), *((name, 0, 50) for name in names)]))
    for form in ("table", "md", "csv", "json"):
        text = analyze(path, "--format", form).stdout
        assert "\x1b" not in text and len(text) < 50_000
        assert ("<script>" in text) == (form != "md") and "script" in text
    rows = analyze(path, "--kernels", "--format", "csv").stdout.splitlines()
    assert any(row.endswith(",'=cmd()") for row in rows)


def test_a_share_of_everything_has_no_bound_and_no_infinity():
    share = Share(10, 1, ("a",), 10, 10, 10)
    ledger = Ledger(0, "whole", {"expert_gemm": share}, {}, (), 10, 1, (), 10, 10)
    found = ceiling(ledger)
    assert (found.max_speedup, found.lower, found.upper) == (None, None, None) and "no bound" in found.reason
    assert ceiling(ledger, ("comm",)).reason == "no comm was found"


def test_overlap_opens_the_bracket_on_both_sides_of_nothing():
    shares = {"expert_gemm": Share(40, 1, ("a",), 40, 10, 25), "comm": Share(60, 1, ("b",), 60, 30, 45)}
    ledger = Ledger(0, "whole", shares, {}, (), 100, 2, (), 100, 70)
    found = ceiling(ledger)
    assert found.lower == pytest.approx(1 / 0.9) and found.upper == pytest.approx(1 / 0.6)
    assert found.max_speedup == pytest.approx(1 / 0.6)


def test_operations_of_a_cpu_have_sums_per_step_and_no_wall_time():
    ops = [("gemm", 0, 30, 0, HOST), ("attn", 10, 10, 0, HOST), ("gemm", 50, 40, 1, HOST), ("attn", 60, 10, 1, HOST)]
    trace, labelled = made(*ops, steps=decode_steps(2))
    found = answer(trace, labelled, ledgers(trace, labelled), Given(phase="decode"), None)
    data = found.to_json()
    assert data["valid"] and data["categories"]["expert_gemm"]["ms_per_step"] == 35 / 1e6
    assert data["categories"]["expert_gemm"]["charged_ms"] is None is data["amdahl"]["lower"]
    assert "self times" in data["amdahl"]["reason"] and data["denominators"]["window_ms"] is None
    assert data["max_speedup"] == pytest.approx(90 / 20)
    (said,) = conclusion(found)
    assert "77.8 % of the summed time" in said and "its wall time is unknown" in said
    _, rows = one_step(trace, labelled, HOST, "decode")
    assert rows["gap_us"].null_count() == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="no recorded traces here")
@pytest.mark.parametrize(
    ("name", "phase", "share"),
    [
        ("vllm0.24_qwen3-30b-a3b_bf16_h200.kineto.json.gz", "prefill", 74.5),
        ("vllm0.24_qwen3-30b-a3b_bf16_h200.kineto.json.gz", "decode", 30.1),
        ("tracelens_b200_vllm_gptoss120b_eager.json.gz", None, 44.7),
    ],
)
def test_recorded_traces_have_the_expert_share_that_was_counted_by_other_means(analyze, name, phase, share):
    data = answered(analyze, SHARED / name, *(["--phase", phase] if phase else []))
    assert data["categories"]["expert_gemm"]["percent"] == pytest.approx(share, abs=0.1)
