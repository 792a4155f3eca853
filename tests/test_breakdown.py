"""The tables under a profiled run, and the page that shows them: they say what the records say."""

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.judging.breakdown import print_breakdown

PAGE = Path(__file__).parents[1] / "docs/h200/profiles"


def records(profiler: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((PAGE / profiler / "records").glob("*.json"))]


def printed(found: list[dict]) -> list[str]:
    stream = io.StringIO()
    print_breakdown(found, stream)
    return [line.strip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("profiler", ["torch", "nsys"])
def test_the_page_shows_what_its_records_say(profiler):
    rows = [line for line in printed(records(profiler)) if line.startswith(("hf", "vllm"))]
    page = [line.strip() for line in (PAGE / "README.md").read_text().splitlines()]
    assert len(rows) == {"torch": 7 + 11, "nsys": 4 + 8}[profiler]
    assert not [row for row in rows if row not in page]


@pytest.mark.parametrize("profiler", ["torch", "nsys"])
def test_shares_of_a_step_and_its_idle_time_add_up(profiler):
    for record in records(profiler):
        for phase in record["profile"]["phases"].values():
            charged = sum(share["percent_of_window"] for share in phase["categories"].values())
            if phase["idle_ms"] is not None and phase["steps"]:
                assert charged + 100 * phase["idle_ms"] / phase["ms_per_step"] == pytest.approx(100)


def test_torch_and_nsys_agree_on_the_experts_share_within_two_points():
    torch = {(record["engine"], record["key"]): record for record in records("torch")}
    for record in records("nsys"):
        other = torch[record["engine"], record["key"]]
        for phase in ("prefill", "decode"):
            shares = [
                one["profile"]["phases"][phase]["categories"]["expert_gemm"]["percent"] for one in (record, other)
            ]
            assert abs(shares[0] - shares[1]) < 2


def test_a_prefill_that_shared_steps_with_decode_has_no_row():
    (record,) = [one for one in records("torch") if (one["precision"], one["batch_size"]) == ("fp8", 16)]
    lines = printed([record])
    assert [line.split()[3] for line in lines if line.startswith("vllm") and "decode" in line] == ["decode"]
    assert not [line for line in lines if line.startswith("vllm") and " prefill " in line]
    assert [line for line in lines if "prefill shared 1 steps with decode, so it has no row" in line]


def test_nothing_is_printed_of_what_was_not_profiled():
    (record, *_) = records("torch")
    assert printed([{**record, "profile": None, "roofline": None}]) == []


def test_what_is_not_to_be_believed_is_said():
    (record, *_) = records("torch")
    doubted = {**record, "profile": {**record["profile"], "problems": ["it is other work"]}}
    assert [line for line in printed([doubted]) if "is not to be believed: it is other work" in line]


def test_the_page_s_explanation_is_that_of_its_records_and_adds_up():
    """Batch 1: both phases. Batch 16: prefill shared steps with decode, and only decode is explained."""
    paths = {}
    for path in (PAGE / "torch/records").glob("*.json"):
        record = json.loads(path.read_text())
        paths[record["engine"], record["precision"], record["batch_size"]] = str(path)
    for batch, phases in ((1, {"prefill", "decode"}), (16, {"decode"})):
        names = [paths["vllm", precision, batch] for precision in ("bf16", "fp8")]
        found = json.loads(CliRunner().invoke(cli, ["explain", *names, "--format", "json"]).stdout)
        assert found["phases"].keys() == phases
        for phase in found["phases"].values():
            assert sum(bar["difference_ns"] for bar in phase["bars"]) == phase["difference_ns"]
        said = next(line for line in found["conclusion"] if "a decode step" in line)
        assert said in " ".join((PAGE / "README.md").read_text().split())
