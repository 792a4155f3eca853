"""`harness explain A B`: traces or saved answers in, bars that add up out."""

from __future__ import annotations

import csv
import io
import json

import pytest
from byhand import ATTENTION, EXPERT, QUANT, kineto
from click.testing import CliRunner

from harness import cli


@pytest.fixture
def harness(monkeypatch):
    for name in ("analyze", "explain"):
        monkeypatch.setitem(cli.COMMANDS, name, (f"harness.commands.{name}:{name}", "x"))
    return lambda *arguments: CliRunner().invoke(cli.cli, list(map(str, arguments)))


@pytest.fixture
def bf16(tmp_path):
    return kineto(tmp_path / "bf16.json", *[("decode", [(EXPERT, 0, 3000), (ATTENTION, 0, 1000)])] * 3)


@pytest.fixture
def fp8(tmp_path):
    rows = [(QUANT, 0, 100), (EXPERT, 0, 1800), (ATTENTION, 100, 1000)]
    return kineto(tmp_path / "fp8.json", *[("decode", rows)] * 2)


def test_traces_are_explained_per_step_in_one_sentence(harness, bf16, fp8):
    found = harness("explain", bf16, fp8)
    assert found.exit_code == 0, found.output
    assert "A: bf16.json" in found.stdout and "decode: wall time per step, 3 and 2 steps" in found.stdout
    assert "From bf16.json to fp8.json a decode step is 1.00 ms shorter (4.00 -> 3.00 ms of wall time)" in found.stdout
    assert "expert_gemm -1.20, idle +0.10, quant_dequant +0.10" in found.stdout


def test_a_saved_answer_explains_as_its_trace_does(harness, bf16, fp8, tmp_path):
    assert harness("analyze", fp8, "--output", tmp_path / "saved.json").exit_code == 0
    first = json.loads(harness("explain", bf16, fp8, "--format", "json").stdout)
    second = json.loads(harness("explain", bf16, tmp_path / "saved.json", "--format", "json").stdout)
    assert first["phases"] == second["phases"]


def test_json_and_csv_bars_add_up_in_whole_nanoseconds(harness, bf16, fp8, tmp_path):
    found = harness("explain", bf16, fp8, "--output", tmp_path / "out.json", "--format", "csv")
    data = json.loads((tmp_path / "out.json").read_text())["phases"]["decode"]
    assert data["difference_ns"] == -1_000_000 == sum(bar["difference_ns"] for bar in data["bars"])
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert sum(int(row["difference_ns"]) for row in rows) == -1_000_000


def test_markdown_has_the_bars_and_the_sentence(harness, bf16, fp8):
    page = harness("explain", bf16, fp8, "--format", "md").stdout
    assert "| expert\\_gemm | 3.000 | 1.800 | -1.200 |" in page and "1.00 ms shorter" in page


def test_two_files_of_one_name_are_told_apart(harness, bf16, fp8, tmp_path):
    (tmp_path / "other").mkdir()
    same = fp8.rename(tmp_path / "other" / "bf16.json")
    assert f"From {bf16} to {same} a decode step" in harness("explain", bf16, same).stdout


def test_an_invalid_side_is_shown_and_said(harness, bf16, tmp_path):
    bare = kineto(tmp_path / "bare.json", ("decode", [(ATTENTION, 0, 1000)]))
    found = harness("explain", bf16, bare)
    assert found.exit_code == 1 and "not valid: bare.json: expert GEMM present" in found.stdout
    assert "decode: wall time per step" in found.stdout


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"valid": true, "categories": {}, "ledgers": 3, "source": "x", "device": 0}']
)
def test_what_is_no_answer_and_no_trace_is_one_line_and_exit_code_2(harness, bf16, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    found = harness("explain", bf16, tmp_path / "x.json")
    assert found.exit_code == 2 and found.stdout == "" and found.stderr.count("\n") == 1


def test_a_trace_without_an_answer_is_one_line_and_exit_code_1(harness, bf16, tmp_path):
    (tmp_path / "empty.json").write_text(json.dumps({"traceEvents": [], "schemaVersion": 1}))
    found = harness("explain", bf16, tmp_path / "empty.json")
    assert found.exit_code == 1 and found.stderr.startswith("error: empty.json: has no answer to explain")
