"""`harness results`: filters and exports of what lies in output folders."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import record, scaled

from harness.cli import cli
from harness.judging.results import Filter, read
from harness.recording.records import BESIDE, OutputFolder

PERF = scaled(1)
BIG = scaled(2, batch_size=16, precision="bf16", quantize=None, quant_algo=None)
PPL = record("ppl", (1.0, 1.2), engine="rival", precision="nvfp4", mode="emulated")
FAILED = {**scaled(1, precision="mxfp4"), "status": "failed", "latency_ms": None, "output_tokens_per_sec": None}
FAILED["failure"] = {"class": "crashed", "message": "signal 11", "log_tail": "one\ntwo"}
SKIPPED = {**scaled(1, precision="nvfp4"), "status": "skipped", "reason": "needs SM 100", "latency_ms": None}
ALL = (PERF, BIG, PPL, FAILED, SKIPPED)


@pytest.fixture
def folder(tmp_path) -> Path:
    return fill(tmp_path / "out", *ALL)


def fill(root: Path, *found: dict) -> Path:
    kept = OutputFolder(root)
    for each in found:
        kept.write(each)
    return root


@pytest.fixture
def said(capsys):
    """Exit code, stdout and stderr of `harness results`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli(["results", *map(str, arguments)])
        return caught.value.code or 0, *capsys.readouterr()

    return run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


FILTERS = {
    ("--engine", "rival"): [PPL],
    ("--engine", "rival,swift", "--workload", "perf", "--status", "ok"): [PERF, BIG],
    ("--precision", "bf16,mxfp4"): [BIG, FAILED],
    ("--status", "failed,skipped"): [FAILED, SKIPPED],
    ("--model", "tinymoe", "--where", "batch_size=16"): [BIG],
    ("--where", "batch_size=16.0"): [BIG],
    ("--where", "conditions.cuda_graphs=false", "--where", "status=ok", "--where", "workload=ppl"): [PPL],
    ("--where", "reason=needs SM 100"): [SKIPPED],
    ("--where", "failure.class=crashed"): [FAILED],
    ("--where", "perplexity=null", "--status", "ok"): [PERF, BIG],
    ("--model", "another"): [],
}


@pytest.mark.parametrize("options", FILTERS, ids=" ".join)
def test_a_filter_leaves_what_it_names(folder, said, options):
    code, text, errors = said(folder, "--format", "json", *options)
    assert code == 0 and {row["key"] for row in json.loads(text)} == {one["key"] for one in FILTERS[options]}
    assert errors == ("" if FILTERS[options] else "warning: no record matches\n")


def test_a_csv_has_a_line_per_record_and_nothing_where_nothing_was_measured(folder, said):
    _, text, _ = said(folder, "--format", "csv")
    rows = {row["key"]: row for row in rows_of(text)}
    assert len(rows) == len(ALL) and not {"raw", "requested", "effective", "profile", "latency_ms"} & set(
        rows[PERF["key"]]
    )
    row = rows[PERF["key"]]
    assert [float(row[f"latency_ms.{name}"]) for name in ("mean", "p50", "n")] == [100.0, 100.0, 5.0]
    assert float(row["output_tokens_per_sec"]) == PERF["output_tokens_per_sec"]
    assert row["latency_ms.p99"] == row["perplexity"] == row["reason"] == ""
    assert float(rows[PPL["key"]]["perplexity"]) == PPL["perplexity"] and rows[PPL["key"]]["latency_ms.mean"] == ""
    assert rows[FAILED["key"]]["latency_ms.mean"] == rows[FAILED["key"]]["output_tokens_per_sec"] == ""
    assert (rows[FAILED["key"]]["failure.class"], rows[FAILED["key"]]["failure.message"]) == ("crashed", "signal 11")
    assert not any(value == "0" for name, value in rows[FAILED["key"]].items() if "_ms." in name)


def test_times_of_emulated_arithmetic_are_in_no_export(tmp_path, said):
    wrong = {**PERF, "status": "mismatch", "reason": "compute_mode is emulated, not native", "compute_mode": "emulated"}
    fill(tmp_path / "out", wrong)
    (row,) = json.loads(said(tmp_path / "out", "--format", "json")[1])
    assert not [name for name in row if name.partition(".")[0] in ("latency_ms", "itl_ms", "output_tokens_per_sec")]
    assert "100.0" not in said(tmp_path / "out")[1]


def test_what_a_spreadsheet_would_run_is_text(tmp_path, said):
    formulas = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1"]
    for index, formula in enumerate(formulas):
        fill(tmp_path / "out", {**PERF, "key": f"{index:016x}", "moe_backend": formula, formula: 1.5})
    _, text, _ = said(tmp_path / "out", "--format", "csv")
    header, *lines = csv.reader(io.StringIO(text))
    assert all(not cell.startswith(("=", "+", "-", "@", "\t")) for line in [header, *lines] for cell in line)
    assert {line[header.index("moe_backend")].strip("'") for line in lines} >= set(formulas[:4])


def test_parquet_holds_the_same_columns_with_their_types(folder, said, tmp_path):
    import polars

    assert said(folder, "--format", "parquet", "--output", tmp_path / "out.parquet") == (0, "", "")
    table = polars.read_parquet(tmp_path / "out.parquet")
    assert table.columns == list(rows_of(said(folder, "--format", "csv")[1])[0])
    (row,) = table.filter(polars.col("key") == PERF["key"]).to_dicts()
    assert (row["latency_ms.p50"], row["latency_ms.p99"], row["perplexity"]) == (100.0, None, None)
    assert (row["batch_size"], row["conditions.cuda_graphs"]) == (2, False)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_without_polars_parquet_is_refused_in_one_line(folder, tmp_path):
    code = "import sys; sys.modules['polars'] = None; from harness.cli import main; main()"
    command = [sys.executable, "-c", code, "results", folder, "--format", "parquet", "--output", tmp_path / "x"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Parquet needs polars: pip install 'moe-harness[profile]'\n"
    for form in ("table", "csv", "md", "json"):
        again = [*command[:3], "results", folder, "--format", form]
        assert subprocess.run(list(map(str, again)), capture_output=True).returncode == 0


def test_a_table_for_people_has_a_part_per_model_and_says_why_numbers_lack(tmp_path, said):
    fill(tmp_path / "out", PERF, {**SKIPPED, "key": "a" * 16}, FAILED, {**PERF, "key": "b" * 16, "model": "other"})
    _, text, _ = said(tmp_path / "out")
    assert text.count("tinymoe, real weights, a GPU") == text.count("other, real weights, a GPU") == 1
    assert "failed swift tinymoe mxfp4 perf: crashed: signal 11" in text
    assert "skipped swift tinymoe nvfp4 perf: needs SM 100" in text
    assert re.search(r"swift +fp8 .* 100\.0 ", text)


def test_markdown_links_to_the_traces_of_prefill_and_decode_beside_the_page(tmp_path, said):
    names = ["one run/profile_fp8_sm90.json.gz", "sgl/x-TP-0-EXTEND.trace.json.gz", "sgl/x-TP-0-DECODE.trace.json.gz"]
    profile = {
        "profiler": "torch",
        "files": [f"traces/{name}" for name in names],
        "phases": {"prefill": {}, "decode": {}},
    }
    profile["files"] += ["traces/gone.sqlite", "../../outside.json", "/etc/hosts.json", "a\0.json", 3]
    fill(tmp_path / "out", {**PERF, "profile": profile})
    for name in names:
        path = tmp_path / "out" / "traces" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "outside.json").touch()
    page = tmp_path / "pages" / "results.md"
    assert said(tmp_path / "out", "--format", "md", "--output", page) == (0, "", "")
    links = re.findall(r"\[([^\]]*)\]\(([^)]*)\)", page.read_text())
    assert links == [
        ("prefill (extend), decode", "../out/traces/one%20run/profile_fp8_sm90.json.gz"),
        ("prefill (extend)", "../out/traces/sgl/x-TP-0-EXTEND.trace.json.gz"),
        ("decode", "../out/traces/sgl/x-TP-0-DECODE.trace.json.gz"),
    ]
    assert all((page.parent / target.replace("%20", " ")).is_file() for _, target in links)
    assert "no longer there" in page.read_text() and "outside" not in page.read_text()


def test_a_name_cannot_write_markdown_or_html(tmp_path, said):
    evil = "<script>alert(1)</script> | [x](javascript:y) `z` **b**\n# h"
    fill(
        tmp_path / "out",
        {**PERF, "model": evil},
        {**FAILED, "model": evil, "failure": {**FAILED["failure"], "message": evil}},
    )
    _, text, _ = said(tmp_path / "out", "--format", "md")
    assert "<script>" not in text and "[x](" not in text and "\n# h" not in text and html.escape("<script>") in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_failed_try_beside_a_success_is_a_row_of_its_own(folder, said):
    (folder / "records" / f"{PERF['key']}{BESIDE}").write_text(json.dumps({**FAILED, "key": PERF["key"]}))
    rows = json.loads(said(folder, "--format", "json", "--where", f"key={PERF['key']}")[1])
    assert sorted(row["status"] for row in rows) == ["failed", "ok"]


def test_several_folders_are_told_apart(folder, tmp_path, said):
    other = fill(tmp_path / "more", PERF)
    rows = json.loads(said(folder, other, "--format", "json", "--where", f"key={PERF['key']}")[1])
    assert {row["folder"] for row in rows} == {str(folder), str(other)}


def test_records_of_a_newer_schema_are_said_in_one_line(folder, said):
    (folder / "records" / "future.json").write_text('{"schema_version": 99}')
    code, text, errors = said(folder, "--format", "json")
    assert (code, len(json.loads(text)), len(errors.splitlines())) == (0, len(ALL), 1) and "future.json" in errors


BAD = {
    "a folder without records": (["nowhere"], "no records"),
    "a status nobody knows": (["out", "--status", "faild"], "did you mean failed?"),
    "a column nobody has": (["out", "--where", "batchsize=1"], "did you mean batch_size"),
    "no equals sign": (["out", "--where", "batch_size"], "NAME=VALUE"),
    "parquet for a terminal": (["out", "--format", "parquet"], "--output"),
    "an output that is a file's child": (["out", "--output", "out/.records.lock/x"], "cannot be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_usage_is_one_line(folder, said, monkeypatch, name):
    monkeypatch.chdir(folder.parent)
    arguments, words = BAD[name]
    code, text, errors = said(*arguments)
    assert (code, text, len(errors.splitlines())) == (2, "", 1) and words in errors


def test_each_file_of_a_large_folder_is_read_once(tmp_path):
    (tmp_path / "out" / "records").mkdir(parents=True)
    for index in range(300):
        path = tmp_path / "out" / "records" / f"{index:016x}.json"
        path.write_text(json.dumps({**PERF, "key": path.stem}))
    opened = []
    under_watch = [str(tmp_path)]
    sys.addaudithook(  # there is no taking it away: it goes blind instead
        lambda event, given: opened.append(given[0]) if under_watch and event == "open" else None
    )
    rows, _ = read([tmp_path / "out"], Filter())
    paths = [path for path in map(str, opened) if path.startswith(under_watch[0])]
    under_watch.clear()
    assert len(rows) == len(paths) == len(set(paths)) == 300
