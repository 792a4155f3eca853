"""The table of `run` and the lines under it say what `harness compare` says, and rank only what deserves its label."""

from __future__ import annotations

import io

import pytest
from scripted import record, scaled, with_rungs

from harness.judging.compare import compare
from harness.judging.table import notes, print_verdict, ranking

PLAIN = {"precision": "bf16", "quantize": None, "quant_algo": None}
FAST, SLOW = scaled(1), scaled(1.5, **PLAIN)
WHERE = "batch 2, 8+4"


def printed(*records: dict) -> str:
    stream = io.StringIO()
    print_verdict(records, stream)
    return stream.getvalue()


def row(text: str, *words: str) -> str:
    """The one row of the table that begins with these words."""
    (line,) = (line for line in text.splitlines() if line.split()[: len(words)] == list(words))
    return line


@pytest.mark.parametrize("records", [(FAST, SLOW), (SLOW, FAST)], ids=["in order", "in disorder"])
def test_the_fastest_is_named_with_the_ratio_and_interval_of_compare(records):
    found = compare(FAST, SLOW).metrics["latency_ms"]
    ratio, (low, high) = f"{found.ratio:.3f}", found.interval
    expected = f"fastest at {WHERE}: swift fp8; swift bf16 takes {ratio} times as long (99 %: {low:.3f} to {high:.3f})"
    assert ratio == "1.500" and ranking(records) == [expected]
    assert expected in printed(*records)


def test_fp8_by_a_rung_of_its_own_is_ranked_with_bf16_and_its_perplexity_held_against_it():
    wide = [scaled(1, precision="bf16"), record("ppl", [1.0, 1.1], precision="bf16")]
    wide = [with_rungs(one, "cache") for one in wide]
    low = [with_rungs(one, "cache+fp8", "cache") for one in (scaled(0.5), record("ppl", [1.0, 1.2]))]
    page = io.StringIO()
    print_verdict([*wide, *low], page)
    assert ranking([*wide, *low])[0].startswith("fastest at batch 2, 8+4: swift fp8; swift bf16 takes 2.000 times")
    (row,) = [line for line in page.getvalue().splitlines() if "cache+fp8" in line]
    assert "2.00 x" in row and "+5.13 %" in row


def test_times_are_said_to_be_means():
    other = scaled(1, batch_size=4)
    assert notes([FAST])[0] == "speed at batch 2, 8 tokens in, 4 out; times are means over the iterations"
    assert notes([FAST, other])[0] == "times are means over the iterations"
    assert notes([record("ppl", [3.0, 3.1])]) == []


@pytest.mark.parametrize("factor", [1.005, 0.995, 1])
def test_a_difference_below_the_noise_has_no_fastest(factor):
    near = scaled(factor, **PLAIN)
    assert compare(FAST, near).metrics["latency_ms"].verdict == "no difference"
    (line,) = ranking([FAST, near])
    assert line.startswith(f"no difference at {WHERE} between ") and "swift fp8" in line and "swift bf16" in line
    assert line in printed(FAST, near) and "fastest" not in printed(FAST, near)


@pytest.mark.parametrize(("value", "shown"), [("fp8", "kv_dtype (bf16 / fp8)"), (None, "kv_dtype (bf16 / None)")])
def test_what_is_not_comparable_is_not_ranked_and_the_condition_is_named(value, shown):
    odd = scaled(1.5, **PLAIN, kv_dtype=value)
    assert list(compare(FAST, odd).differing) == ["kv_dtype"]
    expected = f"no ranking at {WHERE}: swift fp8 and swift bf16 are not comparable: {shown}"
    assert ranking([odd, FAST]) == [expected]
    assert expected in printed(FAST, odd) and "fastest" not in printed(FAST, odd)


def test_a_single_iteration_is_ranked_with_its_noise_said_to_be_unknown():
    (line,) = ranking([FAST, record("perf", [150.0], **PLAIN)])
    assert "1.500 times" in line and line.endswith("(noise unknown)")


def test_each_work_has_its_own_ranking_and_a_lone_row_has_none():
    records = [scaled(factor, batch_size=size, **more) for size in (1, 4) for factor, more in ((1, {}), (2, PLAIN))]
    assert [line.partition(": ")[0] for line in ranking(records)] == [
        "fastest at batch 1, 8+4",
        "fastest at batch 4, 8+4",
    ]
    assert ranking([FAST]) == ranking([FAST, scaled(2, batch_size=4)]) == []


def test_perplexity_is_not_ranked():
    assert ranking([record("ppl", (1.0, 1.1)), record("ppl", (1.3, 1.4), **PLAIN)]) == []


def test_weight_only_is_marked_in_the_table_named_below_it_and_never_ranked():
    weak = scaled(0.5, precision="nvfp4", mode="weight_only")
    text = printed(weak, FAST, SLOW)
    assert row(text, "swift", "nvfp4", "(!)").split()[3] == "weight_only"
    assert row(text, "swift", "fp8").split()[2] == row(text, "swift", "bf16").split()[2] == "native"
    assert sum("(!)" in line for line in text.splitlines()) == 2
    (note,) = (line for line in notes([weak, FAST, SLOW]) if line.startswith("(!) "))
    assert "swift nvfp4: weight-only" in note and "not ranked" in note and note in text
    assert ranking([weak, FAST, SLOW]) == ranking([FAST, SLOW])
    assert ranking([weak, FAST]) == []


def test_a_mismatch_is_marked_in_the_table_named_below_it_and_never_ranked():
    wrong = {**scaled(0.5, precision="nvfp4"), "status": "mismatch", "reason": "precision is bf16, not nvfp4"}
    text = printed(wrong, FAST, SLOW)
    assert row(text, "swift", "nvfp4", "(!)") and sum("(!)" in line for line in text.splitlines()) == 1
    expected = "mismatch swift tinymoe nvfp4 perf: precision is bf16, not nvfp4; kept, not compared"
    assert expected in notes([wrong, FAST, SLOW]) and expected in text
    assert ranking([wrong, FAST, SLOW]) == ranking([FAST, SLOW])


@pytest.mark.parametrize(
    "change",
    [
        {"compute_mode": "emulated"},
        {"status": "failed", "failure": {"class": "crashed", "message": "killed", "log_tail": ""}},
        {"status": "skipped", "reason": "no kernel"},
    ],
    ids=["emulated", "failed", "skipped"],
)
def test_what_has_no_speed_of_its_own_is_never_ranked_and_shows_none(change):
    other = {**scaled(0.5, precision="nvfp4"), **change}
    assert ranking([other, FAST, SLOW]) == ranking([FAST, SLOW])
    text = printed(other, FAST, SLOW)
    assert "50.0" not in row(text, "swift", "nvfp4") and "100.0" in row(text, "swift", "fp8")


@pytest.mark.parametrize(("more", "shown"), [({}, "+10.52"), ({"kv_dtype": "fp8"}, None), ({"engine": "rival"}, None)])
def test_the_change_of_perplexity_is_shown_only_where_it_may_be_compared(more, shown):
    base, low = record("ppl", (1.0, 1.2), **PLAIN), record("ppl", (1.1, 1.3), **more)
    found = compare(base, low).metrics.get("perplexity")
    line = row(printed(base, low), low["engine"], "fp8")
    if shown:
        assert f"{shown} %" in line and found.ratio == pytest.approx(1.1052, abs=1e-4)
    else:
        assert "%" not in line


def test_a_run_says_why_it_ranks_nothing(harness):
    """The echo engine tells neither its cache's type nor whether it uses graphs."""
    done = harness.measure("--precision", "fp8,bf16", "--workload", "perf")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("no ranking at batch 1, 8+4: "))
    first, second = sorted(harness.records(), key=lambda found: found["mean_latency_ms"])
    for name, (ours, theirs) in compare(first, second).differing.items():
        assert f"{name} ({ours} / {theirs})" in line
    assert "fastest" not in done.stdout


def test_a_run_marks_the_row_that_is_not_what_it_says(harness):
    done = harness.measure("--precision", "fp8,bf16", "--workload", "perf", sin="wrong_facts:fp8")
    assert row(done.stdout, "echo", "fp8", "(!)") and row(done.stdout, "echo", "bf16", "native")
    assert "ranking" not in done.stdout and "fastest" not in done.stdout
