"""`harness compare` on what a person has at hand: output folders, single records, other tools' results, and rubbish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import STEADY, record, scaled, with_rungs

from harness.judging.pairs import pair_up
from harness.recording.conditions import CONDITIONS

SAMPLES = Path(__file__).parent / "data" / "imported"
RECORD = scaled(1)
QUIET = ["--assume", "all", "--tolerance", 1000]  # the times of the echo engine are all noise
TWO = {  # two cells of one run, which differ in one thing only
    "batch size": [scaled(1, batch_size=1), scaled(1, batch_size=4)],
    "precision": [scaled(1), scaled(1, precision="bf16", quantize=None, quant_algo=None)],
    "engine": [scaled(1), scaled(1, engine="rival")],
    "workload": [scaled(1), record("ppl", (1.0, 1.1))],
    "ranks": [scaled(1), scaled(1, tp=2)],
    "weights": [scaled(1), scaled(1, weights="dummy")],
    "iterations": [scaled(1), record("perf", STEADY[:3])],
    "window length": [record("ppl", (1.0, 1.1)), record("ppl", (1.2, 1.1), input_len=6)],
    "dataset": [record("ppl", (1.0, 1.1)), record("ppl", (1.2, 1.1), dataset="wikitext")],
}


@pytest.fixture
def compared(harness):
    """Exit code and parsed output of `harness compare ... --json`, and the text of the same without it."""

    def run(*arguments: object) -> tuple[int, dict, str]:
        data, text = harness("compare", *arguments, "--json"), harness("compare", *arguments)
        assert (data.stderr, text.stderr, text.returncode) == ("", "", data.returncode)
        return data.returncode, json.loads(data.stdout), text.stdout

    return run


def keep(folder: Path, *found: dict) -> Path:
    """An output folder that holds these records."""
    (folder / "records").mkdir(parents=True)
    for each in found:
        (folder / "records" / f"{each['key']}.json").write_text(json.dumps(each))
    return folder


def test_two_runs_of_equal_cells_are_compared_cell_by_cell(harness, compared):
    cells = ["--precision", "bf16,fp8", "--workload", "perf,ppl"]
    for folder in ("out", "again"):
        assert harness.measure(*cells, "--output-dir", folder).returncode == 0
    labels = [
        f"echo 1.0 tinymoe {precision} {work}" for precision in ("bf16", "fp8") for work in ("ppl", "perf batch 1, 8+4")
    ]
    code, data, text = compared("out", "again")
    assert (code, data["comparable"], data["metrics"]) == (3, False, {})
    for label in labels:
        assert label in text and data["differing"][f"{label}: kv_dtype"] == {"a": None, "b": None}
    code, data, text = compared("out", "again", *QUIET)
    assert (code, data["comparable"], data["differing"], len(data["metrics"])) == (0, True, {}, 2 + 2 * 5)
    for label in labels[::2]:
        assert label in text and data["metrics"][f"{label}: perplexity"]["verdict"] == "no difference"


def test_a_cell_that_only_one_folder_has_is_named_and_makes_them_not_comparable(harness, compared):
    harness.measure("--precision", "bf16", "--workload", "ppl")
    harness.measure("--precision", "bf16,fp8", "--workload", "ppl", "--output-dir", "more")
    for pair, side, values in (
        (("out", "more"), "B", {"a": "no such record", "b": "ok"}),
        (("more", "out"), "A", {"a": "ok", "b": "no such record"}),
    ):
        code, data, text = compared(*pair, *QUIET)
        assert (code, data["comparable"], data["differing"]) == (3, False, {"echo 1.0 tinymoe fp8 ppl": values})
        assert f"only in {side}: echo 1.0 tinymoe fp8 ppl (ok)" in text
        assert [metric["verdict"] for metric in data["metrics"].values()] == ["no difference"]


def test_two_precisions_in_two_folders_are_a_pair(harness, compared):
    for precision in ("bf16", "fp8"):
        harness.measure("--precision", precision, "--workload", "ppl", "--output-dir", precision)
    code, data, text = compared("bf16", "fp8", *QUIET)
    assert (code, list(data["metrics"])) == (0, ["perplexity"])
    assert "precision bf16 -> fp8" in text


def test_a_record_may_stand_for_its_folder(harness, compared):
    harness.measure("--precision", "bf16", "--workload", "ppl")
    (path,) = (harness.folder / "out" / "records").iterdir()
    (view,) = (harness.folder / "out" / "echo").rglob("ppl_*.json")
    for one in (path, view):
        assert compared("out", one, *QUIET)[:2] == compared(one, "out", *QUIET)[:2] == compared(one, one, *QUIET)[:2]


@pytest.mark.parametrize("what", TWO)
def test_a_folder_agrees_with_itself_and_each_cell_keeps_its_metrics(tmp_path, what):
    found = TWO[what]
    assert len({each["key"] for each in found}) == 2
    pairs = pair_up(found, found)
    assert [(pair.a is pair.b) for pair in pairs.pairs] == [True, True] and pairs.alone == []
    data = pairs.to_json()
    assert data["comparable"] and data["differing"] == {}
    assert len(data["metrics"]) == sum({"perf": 5, "ppl": 1}[each["workload"]] for each in found)


def test_a_rung_that_is_a_precisions_own_arithmetic_parts_no_precisions_and_keeps_cells_of_one_precision_apart():
    native, emulated = with_rungs(scaled(0.5), "cache+fp8", "cache"), with_rungs(scaled(3), "cache")
    ((pair,), alone) = vars(pair_up([with_rungs(scaled(1, precision="bf16"), "cache")], [native])).values()
    assert pair.comparison.comparable and not alone
    later = [{**one, "key": name} for one, name in ((emulated, "b"), (native, "a"))]
    found = pair_up([native, emulated], later)
    assert [(pair.a["config"] == pair.b["config"]) for pair in found.pairs] == [True, True]


def test_engines_are_compared_precision_by_precision():
    ours, theirs = (
        [scaled(1, engine=engine, precision=precision) for precision in ("bf16", "fp8", "nvfp4")]
        for engine in ("swift", "rival")
    )
    pairs = pair_up(ours, theirs[::-1])
    assert [(p.a["precision"], p.b["precision"]) for p in pairs.pairs] == [(n, n) for n in ("bf16", "fp8", "nvfp4")]
    assert pairs.comparable


def test_a_cell_skipped_on_both_sides_is_no_difference_and_on_one_side_is_one():
    skipped = {**scaled(1, precision="nvfp4"), "status": "skipped"}
    assert pair_up([RECORD, skipped], [RECORD, skipped]).comparable
    pairs = pair_up([RECORD, skipped], [RECORD, {**skipped, "status": "ok"}])
    assert not pairs.comparable and "status: skipped -> ok" in pairs.text(0)
    assert not pair_up([skipped, skipped], [skipped, skipped]).comparable, "nothing was compared"


def test_one_regression_among_several_cells_is_told_by_the_exit_code(harness, compared):
    slow = scaled(1.5, precision="bf16", quantize=None, quant_algo=None)
    keep(harness.folder / "before", RECORD, scaled(1, precision="bf16", quantize=None, quant_algo=None))
    keep(harness.folder / "after", RECORD, slow)
    code, data, text = compared("before", "after")
    assert (code, data["comparable"], text.count("(regression)")) == (1, True, 5)
    assert compared("after", "before")[0] == 0
    assert compared("before", "after", "--tolerance", 0.6)[0] == 0


# --- results of other tools ------------------------------------------------------------------------------------------


def test_an_imported_result_knows_too_little_until_it_is_assumed(compared):
    path = SAMPLES / "vllm_latency.json"
    code, data, text = compared(path, path)
    assert (code, set(data["differing"])) == (3, set(CONDITIONS))
    (hint,) = (line for line in text.splitlines() if "--assume" in line)
    assert hint.endswith("--assume all")
    for assumed in ("all", ",".join(CONDITIONS)):
        code, data, _ = compared(path, path, "--assume", assumed)
        assert (code, list(data["metrics"])) == (0, ["latency_ms"])
        assert data["metrics"]["latency_ms"]["verdict"] == "no difference"


def test_an_imported_result_is_compared_with_a_record_where_both_measured_the_same(harness, compared):
    (harness.folder / "record").write_text(json.dumps(scaled(0.1)))
    path = SAMPLES / "vllm_latency.json"
    assert compared("record", path)[0] == 3
    code, data, text = compared("record", path, "--assume", "all")
    assert (code, list(data["metrics"])) == (1, ["latency_ms"]) and "engine swift -> vllm" in text


def test_an_imported_result_with_failed_requests_is_not_compared(compared):
    code, data, _ = compared(SAMPLES / "vllm_serve.json", SAMPLES / "vllm_serve_failed.json", "--assume", "all")
    assert (code, data["differing"]) == (3, {"status": {"a": "ok", "b": "mismatch"}})


# --- rubbish ---------------------------------------------------------------------------------------------------------

RUBBISH = {
    "empty file": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "too deep": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"3",
    "another tool's": b'{"tokens_per_second": 5}',
    "an older schema": json.dumps({**RECORD, "schema_version": 1}).encode(),
    "a newer schema": json.dumps({**RECORD, "schema_version": 99}).encode(),
    "half a record": json.dumps({key: RECORD[key] for key in list(RECORD) if key != "compute_mode"}).encode(),
    "odd conditions": json.dumps({**RECORD, "conditions": []}).encode(),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_a_file_that_is_no_record_is_refused_in_one_line(harness, name):
    (harness.folder / "good").write_text(json.dumps(RECORD))
    (harness.folder / "bad").write_bytes(RUBBISH[name])
    for pair in (("good", "bad"), ("bad", "good")):
        done = harness("compare", *pair)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and "bad" in done.stderr


@pytest.mark.parametrize("name", ["nowhere", "no/where", "x" * 300, "good/below", "empty", ""])
def test_a_path_without_records_is_refused_in_one_line(harness, name):
    (harness.folder / "good").write_text(json.dumps(RECORD))
    (harness.folder / "empty" / "records").mkdir(parents=True)
    for pair in (("good", name), (name, "good")):
        done = harness("compare", *pair)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and name in done.stderr


def test_an_assumption_that_is_no_condition_is_refused_with_the_nearest(harness):
    done = harness("compare", "a", "b", "--assume", "kv_dtyp")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown condition 'kv_dtyp': did you mean kv_dtype?\n"
