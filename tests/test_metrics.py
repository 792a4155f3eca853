"""Each metric is what its definition says, on numbers one can check by hand."""

import math

import pytest

from harness import Generation, Response
from harness.recording.metrics import (
    DEFINITIONS,
    iteration_samples,
    percentile,
    perplexities,
    raw_times,
    speed,
    summarise,
)
from harness.workloads import perf, ppl

MS = 1_000_000


def batch(started: int, *requests: tuple, finished: int) -> Generation:
    return Generation(started, finished, tuple(Response((1,) * len(times), times) for times in requests))


# Two requests: first tokens after 10 and 20 ms, then gaps of 5 ms and of 10 ms; the batch takes 45 ms.
TWO = batch(100 * MS, (110 * MS, 115 * MS, 120 * MS), (120 * MS, 130 * MS, 140 * MS), finished=145 * MS)


def test_speed_of_one_batch_by_hand():
    result = speed(raw_times([TWO]), batch_size=2, input_len=8, output_len=3)
    assert result["mean_latency_ms"] == 45 and result["std_latency_ms"] is None
    assert (result["ttft_ms"]["mean"], result["ttft_ms"]["n"]) == (15, 2)
    assert (result["itl_ms"]["mean"], result["itl_ms"]["n"]) == (7.5, 4)
    assert (result["tpot_ms"]["min"], result["tpot_ms"]["max"]) == (5, 10)
    assert result["output_tokens_per_sec"] == pytest.approx(2 * 3 / 0.045)
    assert result["prefill_tokens_per_sec"] == pytest.approx(2 * 8 / 0.020), "the batch's last first token ends prefill"


def test_a_time_that_was_not_measured_is_null_and_never_guessed():
    only_ends = batch(0, (10 * MS, None, 30 * MS), finished=30 * MS)
    result = speed(raw_times([only_ends]), batch_size=1, input_len=8, output_len=3)
    assert result["ttft_ms"]["mean"] == 10 and result["tpot_ms"]["mean"] == 10
    assert result["itl_ms"] is None
    nothing = batch(0, (None, None, None), finished=30 * MS)
    result = speed(raw_times([nothing]), batch_size=1, input_len=8, output_len=3)
    assert result["mean_latency_ms"] == 30
    assert [result[name] for name in ("ttft_ms", "itl_ms", "tpot_ms", "prefill_tokens_per_sec")] == [None] * 4


def test_a_pair_of_tokens_handed_over_at_once_costs_its_own_gaps_and_many_cost_the_metric():
    """Of two tokens in one chunk only the last has a time; SGLang does so now and then."""
    times = [tens * 10 * 10**6 for tens in range(1, 302)]
    once, often = list(times), list(times)
    once[100] = None
    often[50::50] = [None] * len(often[50::50])
    for given, n in ((times, 300), (once, 298), (often, None)):
        raw = {"latency_ns": [4 * 10**9], "token_ns": [[{"requests": [0], "ns": given}]]}
        found = speed(raw, 1, 8, 301)["itl_ms"]
        assert (found and (found["n"], found["min"], found["max"])) == (n and (n, 10, 10))


def test_one_token_has_no_time_per_further_token():
    result = speed(raw_times([batch(0, (10 * MS,), finished=10 * MS)]), batch_size=1, input_len=8, output_len=1)
    assert result["tpot_ms"] is None and result["itl_ms"] is None and result["ttft_ms"]["mean"] == 10


def test_p99_needs_a_hundred_samples():
    assert summarise([1.0] * 99)["p99"] is None
    assert summarise(list(map(float, range(101))))["p99"] == 99
    assert summarise([]) is None


def test_percentiles_interpolate_between_order_statistics():
    assert percentile([1.0, 2.0, 4.0], 50) == 2
    assert percentile([1.0, 2.0, 4.0], 75) == 3
    assert percentile([5.0], 90) == 5


def test_every_perplexity_comes_from_one_nll_sum():
    result = perplexities([[1.0, 3.0], [2.0, 4.0, 6.0]], words=4, byte_count=20)
    assert result["perplexity"] == pytest.approx(math.sqrt(math.exp(2) * math.exp(4))), "geometric mean over chunks"
    assert result["token_perplexity"] == pytest.approx(math.exp(16 / 5))
    assert result["word_perplexity"] == pytest.approx(math.exp(16 / 4))
    assert result["byte_perplexity"] == pytest.approx(math.exp(16 / 20))
    assert result["per_chunk_ppls"] == pytest.approx([math.exp(2), math.exp(4)])
    assert (result["nll_sum"], result["scored_tokens"]) == (16, 5)


def test_perplexities_without_words_are_null():
    assert perplexities([[1.0]], words=None, byte_count=None)["word_perplexity"] is None


def test_every_metric_a_record_prints_is_defined():
    printed = {*speed(raw_times([TWO]), 2, 8, 3), *perplexities([[1.0]], 1, 1)}
    not_metrics = {"mean_latency_ms", "std_latency_ms", "per_chunk_ppls", "nll_sum", "scored_tokens", "energy_problem"}
    assert printed - not_metrics <= set(DEFINITIONS)


def test_the_built_in_defaults_are_the_documented_ones():
    (speed_spec,), (accuracy_spec,) = perf.harness_register_workloads(), ppl.harness_register_workloads()
    assert speed_spec.parameters == {
        "batch_size": 1, "input_len": 512, "output_len": 256, "num_iterations": 20, "warmup_iterations": 5
    }  # fmt: skip
    assert accuracy_spec.parameters == {"dataset": "stdlib", "input_len": 512, "num_chunks": 100}


def test_raw_times_hold_each_timeline_once_with_its_requests():
    twins = batch(100 * MS, *[(110 * MS, 115 * MS)] * 2, (120 * MS, 130 * MS), finished=145 * MS)
    assert raw_times([twins, twins]) == {
        "latency_ns": [45 * MS] * 2,
        "token_ns": [
            [{"requests": [0, 1], "ns": [10 * MS, 15 * MS]}, {"requests": [2], "ns": [20 * MS, 30 * MS]}],
        ]
        * 2,
    }


def test_requests_that_share_a_timeline_count_one_by_one():
    twins = batch(0, *[(10 * MS, 15 * MS)] * 2, (40 * MS, 50 * MS), finished=50 * MS)
    result = speed(raw_times([twins]), batch_size=3, input_len=8, output_len=2)
    assert (result["ttft_ms"]["mean"], result["ttft_ms"]["n"]) == (20, 3)
    assert result["itl_ms"]["mean"] == pytest.approx(20 / 3) and result["itl_ms"]["n"] == 3


def test_an_iteration_is_one_sample_of_each_metric():
    raw = raw_times([TWO, TWO])
    found = {name: iteration_samples(raw, name) for name in ("latency_ms", "ttft_ms", "itl_ms", "tpot_ms")}
    assert found == {"latency_ms": [45, 45], "ttft_ms": [15, 15], "itl_ms": [7.5, 7.5], "tpot_ms": [7.5, 7.5]}
    lone = raw_times([batch(0, (10 * MS,), finished=10 * MS)])
    assert iteration_samples(lone, "itl_ms") is None and iteration_samples(lone, "ttft_ms") == [10]
    assert iteration_samples({"latency_ns": [10 * MS]}, "ttft_ms") is None, "of a tool that keeps no token times"


def test_tokens_that_come_together_have_no_itl_and_no_estimate_of_it():
    pairs = raw_times([batch(0, (10 * MS, None, 20 * MS, None, 30 * MS), finished=30 * MS)] * 3)
    assert speed(pairs, 1, 8, 5)["itl_ms"] is None and iteration_samples(pairs, "itl_ms") is None
    assert iteration_samples(pairs, "tpot_ms") == [5, 5, 5]


@pytest.mark.parametrize(
    ("raw", "joules", "problem"),
    [
        ({"latency_ns": [2000 * MS], "energy_mj": 600_000}, 600, None),
        ({"latency_ns": [200 * MS], "energy_mj": 60_000}, None, "too short"),
        ({"latency_ns": [2000 * MS], "energy_mj": None}, None, "NVML"),
        ({"latency_ns": [2000 * MS]}, None, "NVML"),
    ],
)
def test_energy_is_in_joules_or_null_with_a_reason(raw, joules, problem):
    result = speed(raw, batch_size=2, input_len=8, output_len=3)
    assert (result["energy_joules"], result["joules_per_output_token"]) == (joules, joules and 100)
    assert (result["energy_problem"] is None) == (problem is None)
