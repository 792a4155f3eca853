"""The scaling study of a report: efficiency t1 / (n tn) over tensor parallel ranks, and the ledger's communication."""

import pytest
from scripted import STEADY, record, scaled

from harness.report import scaling
from harness.report.read import Entry
from harness.report.rows import Facts

TIMES = {1: 1.0, 2: 0.625, 4: 0.4}  # times of the batch beside one rank's


def ranks(tp: int, factor: float, comm: float | None) -> dict:
    """A record; `comm`: percent of a decode step, None: not profiled."""
    shares = {"gemm": {"percent": 100.0 - (comm or 0)}, **({"comm": {"percent": comm}} if comm else {})}
    profile = {} if comm is None else {"profile": {"phases": {"decode": {"categories": shares, "idle_ms": None}}}}
    return {**scaled(factor, tp=tp), **profile}


@pytest.fixture
def values() -> list[dict]:
    comm = {1: 0.0, 2: 17.5, 4: None}
    entries = [Entry(ranks(tp, factor, comm[tp]), "out", f"{tp}.json", None) for tp, factor in TIMES.items()]
    (choice,) = scaling.chart(Facts(entries))["choices"]
    return choice["views"][0]["values"]


def test_efficiency_is_the_time_on_one_rank_over_ranks_times_theirs(values):
    assert [value["tp"] for value in values] == list(TIMES)
    for value, (tp, time) in zip(values, TIMES.items()):
        assert value["efficiency"].startswith(f"{100 / (tp * time):.0f} %")


def test_communication_is_the_ledgers_share_of_a_decode_step_or_said_to_be_unknown(values):
    assert [value["communication"] for value in values] == [
        *("0.0 % of a decode step", "17.5 % of a decode step"),
        "not profiled",
    ]


def test_a_terminal_is_told_the_same():
    found = scaling.rows([ranks(tp, factor, 17.5) for tp, factor in TIMES.items()])
    assert [(row["tp"], row["efficiency"].split()[0]) for row in found] == [("1", "100"), ("2", "80"), ("4", "62")]
    assert {row["communication"] for row in found} == {"17.5 % of a decode step"}
    assert scaling.rows([ranks(1, 1.0, None)]) == []


def test_an_iteration_that_compiled_makes_no_efficiency():
    """vLLM's on two H200s, by means: 115 %, as one of three iterations on one GPU took 3.9 times the others."""
    found = scaling.rows([record("perf", [*STEADY[:4], 400.0], tp=1), scaled(0.625, tp=2)])
    assert [row["efficiency"].split()[0] for row in found] == ["100", "80"]
