"""Each metric is what its definition says, on numbers one can check by hand."""

import math

import pytest

from harness import Generation, Response
from harness.metrics import DEFINITIONS, percentile, perplexities, speed, summarise
from harness.workloads import perf, ppl

MS = 1_000_000


def batch(started: int, *requests: tuple, finished: int) -> Generation:
    return Generation(started, finished, tuple(Response((1,) * len(times), times) for times in requests))


# Two requests: first tokens after 10 and 20 ms, then gaps of 5 ms and of 10 ms; the batch takes 45 ms.
TWO = batch(100 * MS, (110 * MS, 115 * MS, 120 * MS), (120 * MS, 130 * MS, 140 * MS), finished=145 * MS)


def test_speed_of_one_batch_by_hand():
    result = speed([TWO], batch_size=2, input_len=8, output_len=3)
    assert result["mean_latency_ms"] == 45 and result["std_latency_ms"] is None
    assert (result["ttft_ms"]["mean"], result["ttft_ms"]["n"]) == (15, 2)
    assert (result["itl_ms"]["mean"], result["itl_ms"]["n"]) == (7.5, 4)
    assert (result["tpot_ms"]["min"], result["tpot_ms"]["max"]) == (5, 10)
    assert result["output_tokens_per_sec"] == pytest.approx(2 * 3 / 0.045)
    assert result["prefill_tokens_per_sec"] == pytest.approx(2 * 8 / 0.020), "the batch's last first token ends prefill"


def test_a_time_that_was_not_measured_is_null_and_never_guessed():
    only_ends = batch(0, (10 * MS, None, 30 * MS), finished=30 * MS)
    result = speed([only_ends], batch_size=1, input_len=8, output_len=3)
    assert result["ttft_ms"]["mean"] == 10 and result["tpot_ms"]["mean"] == 10
    assert result["itl_ms"] is None
    nothing = batch(0, (None, None, None), finished=30 * MS)
    result = speed([nothing], batch_size=1, input_len=8, output_len=3)
    assert result["mean_latency_ms"] == 30
    assert [result[name] for name in ("ttft_ms", "itl_ms", "tpot_ms", "prefill_tokens_per_sec")] == [None] * 4


def test_one_token_has_no_time_per_further_token():
    result = speed([batch(0, (10 * MS,), finished=10 * MS)], batch_size=1, input_len=8, output_len=1)
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
    printed = {*speed([TWO], 2, 8, 3), *perplexities([[1.0]], 1, 1)}
    not_metrics = {"mean_latency_ms", "std_latency_ms", "per_chunk_ppls", "nll_sum", "scored_tokens"}
    assert printed - not_metrics <= set(DEFINITIONS)


def test_the_built_in_defaults_are_the_documented_ones():
    (speed_spec,), (accuracy_spec,) = perf.harness_register_workloads(), ppl.harness_register_workloads()
    assert speed_spec.parameters == {
        "batch_size": 1, "input_len": 512, "output_len": 256, "num_iterations": 20, "warmup_iterations": 5
    }  # fmt: skip
    assert accuracy_spec.parameters == {"dataset": "stdlib", "input_len": 512, "num_chunks": 100}
