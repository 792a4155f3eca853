"""Results of other tools become records: each number under the name whose definition it meets, in our unit.

The samples in data/imported:
  vllm_*.json             real: vLLM 0.32 on a CPU with a small MoE model; texts and folders taken out
  aiperf*.json            real: AIPerf 0.13.0 against that server; folders and the http_, effective_ and active_
                          metrics taken out. In aiperf_bundled.json the client read whole answers at once.
  trtllm_throughput.json  written after the source, NVIDIA/TensorRT-LLM tensorrt_llm/bench/dataclasses/reporting.py at
                          commit 02499765: four made-up requests, sent through its formulas by hand
"""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest

from harness.cells import Cell, Setup
from harness.device import Device
from harness.errors import UsageError
from harness.precision import Support
from harness.recording import importers
from harness.recording.conditions import CONDITIONS
from harness.recording.metrics import summarise
from harness.recording.records import make

SAMPLES = Path(__file__).parent / "data" / "imported"
NAMES = sorted(path.name for path in SAMPLES.glob("*.json"))


def sample(name: str) -> dict:
    return json.loads((SAMPLES / name).read_text())


@pytest.fixture
def imported(tmp_path):
    """The record of a JSON value, written to a file first."""

    def run(value) -> dict:
        path = tmp_path / "result.json"
        path.write_text(json.dumps(value))
        (record,) = importers.read(path)
        return record

    return run


def changed(name: str, place: str, value=None) -> dict:
    """A sample with another value at `a.b.c`; None takes the key away."""
    data = copy.deepcopy(sample(name))
    *above, last = place.split(".")
    inner = data
    for key in above:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_record_has_all_that_a_measured_one_has(name):
    (record,) = importers.read(SAMPLES / name)
    cell = Cell(Setup("hf", "tinymoe", "tinymoe", "bf16"), "perf", {}, Support("native"), skip="not run")
    assert make(cell, None, None, Device("cpu", "a CPU", 1, None)).keys() <= record.keys()
    assert record["conditions"].keys() == set(CONDITIONS)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert len(record["key"]) == 16 and int(record["key"], 16)
    assert record["imported_from"]["file"] == name and len(record["imported_from"]["sha256"]) == 64
    sizes = ("batch_size", "input_len", "output_len")
    assert [record[size] for size in sizes] == [record["conditions"][size] for size in sizes]


@pytest.mark.parametrize("name", NAMES)
def test_the_format_shows_in_the_keys_and_not_in_the_name_of_the_file(name, tmp_path):
    (record,) = importers.read(SAMPLES / name)
    shutil.copy(SAMPLES / name, tmp_path / "x")
    (other,) = importers.read(tmp_path / "x")
    assert other.pop("imported_from") == {**record.pop("imported_from"), "file": "x"}
    assert other == record


def test_vllm_latency_in_seconds_becomes_latency_in_milliseconds():
    (record,) = importers.read(SAMPLES / "vllm_latency.json")
    assert (record["workload"], record["engine"], record["model"]) == ("perf", "vllm", "tinymoe-wide")
    assert record["num_iterations"] == 4
    assert record["raw"]["latency_ns"] == [286955053, 167737892, 168224325, 159000892]
    assert record["mean_latency_ms"] == pytest.approx(195.47954)
    assert record["latency_ms"]["p50"] == pytest.approx(167.98111), "as in the file's own percentiles, in seconds"
    assert record["latency_ms"]["p90"] == pytest.approx(sample("vllm_latency.json")["percentiles"]["90"] * 1e3)
    assert record["latency_ms"]["p99"] is None, "the file has one of four samples"


def test_vllm_latency_says_no_batch_so_there_are_no_tokens_per_second_and_no_condition():
    (record,) = importers.read(SAMPLES / "vllm_latency.json")
    assert record["output_tokens_per_sec"] is None and record["prefill_tokens_per_sec"] is None
    assert set(record["conditions"].values()) == {None}


def test_an_older_vllm_latency_file_names_no_model(imported):
    assert imported(changed("vllm_latency.json", "model_id"))["model"] is None


def test_vllm_serve_samples_are_summarised_as_ours_are():
    (record,) = importers.read(SAMPLES / "vllm_serve_detailed.json")
    data = sample("vllm_serve_detailed.json")
    assert (record["workload"], record["engine"], record["status"]) == ("serve", "unknown", "ok")
    assert (record["input_len"], record["output_len"]) == (16, 6)
    assert record["ttft_ms"] == summarise([value * 1e3 for value in data["ttfts"]])
    assert record["itl_ms"] == summarise([gap * 1e3 for gaps in data["itls"] for gap in gaps])
    assert record["tpot_ms"]["n"] == 4 and record["tpot_ms"]["mean"] == pytest.approx(data["mean_tpot_ms"])
    assert record["itl_ms"]["mean"] == pytest.approx(data["mean_itl_ms"])
    assert record["written_at"] == "2026-11-21T05:44:55"
    traffic = {"request_rate": 20.0, "max_concurrency": 2, "burstiness": 1.0, "num_prompts": 4, "completed": 4}
    assert {name: record[name] for name in traffic} == traffic and record["failed"] == 0


def test_vllm_serve_statistics_agree_with_its_samples_where_it_gives_them(imported):
    """The std of the file is that of a population; ours divides by n - 1, and both ways must give the same."""
    data = sample("vllm_serve_detailed.json")
    from_samples = imported(data)
    from_statistics = imported({key: value for key, value in data.items() if key not in ("ttfts", "itls", "errors")})
    for name in ("ttft_ms", "itl_ms"):
        given = {key: value for key, value in from_statistics[name].items() if value is not None}
        assert given.keys() == {"mean", "std", "p50", "n"}
        assert given == pytest.approx({key: from_samples[name][key] for key in given})
    assert from_statistics["tpot_ms"]["mean"] == pytest.approx(from_samples["tpot_ms"]["mean"])
    assert from_statistics["tpot_ms"]["n"] is None, "how many requests had two tokens is not said"


def test_vllm_serve_latency_of_a_request_and_throughput_of_a_run_are_not_ours():
    (record,) = importers.read(SAMPLES / "vllm_serve.json")
    assert "mean_e2el_ms" in sample("vllm_serve.json") and "output_throughput" in sample("vllm_serve.json")
    assert [record[name] for name in ("latency_ms", "mean_latency_ms", "output_tokens_per_sec")] == [None] * 3
    assert record["request_rate"] == "inf"
    assert record["ttft_ms"]["p90"] == pytest.approx(123.74630590038578) and record["ttft_ms"]["p99"] is None


def test_a_gap_between_chunks_is_itl_only_where_each_chunk_is_a_token(imported):
    bundled = sample("vllm_serve_detailed.json")
    first, second, *rest = bundled["itls"][0]
    bundled["itls"][0] = [first + second, *rest]
    record = imported(bundled)
    assert record["itl_ms"] is None and record["tpot_ms"]["n"] == 4 and record["ttft_ms"]["n"] == 4
    assert importers.read(SAMPLES / "vllm_serve.json")[0]["itl_ms"]["n"] == 20
    fewer_gaps = imported(changed("vllm_serve.json", "mean_itl_ms", 2 * 18.711895150045166))
    assert fewer_gaps["itl_ms"] is None and fewer_gaps["tpot_ms"]
    without = {k: v for k, v in sample("vllm_serve.json").items() if k != "latencies" and "e2el" not in k}
    assert imported(without)["itl_ms"] is None, "an older file does not show how many gaps there were"


def test_an_answer_that_came_in_one_piece_has_no_time_of_its_first_token(imported):
    whole = sample("vllm_serve_detailed.json")
    for gaps in ([], [0.0] * 5):
        whole["itls"][2] = gaps
        record = imported(whole)
        assert [record[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")] == [None] * 3
    record = imported({**sample("vllm_serve.json"), "mean_tpot_ms": 0.0, "mean_itl_ms": 0.0})
    assert [record[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")] == [None] * 3


def test_an_answer_of_one_token_has_a_first_token_and_nothing_more(imported):
    one = {"total_output_tokens": 4, "mean_tpot_ms": 0.0, "mean_itl_ms": 0.0}
    record = imported({**sample("vllm_serve.json"), **one})
    assert record["ttft_ms"]["n"] == 4 and (record["tpot_ms"], record["itl_ms"]) == (None, None)


def test_p99_of_vllm_serve_needs_a_hundred_requests(imported):
    record = imported({**sample("vllm_serve.json"), "completed": 100, "num_prompts": 100})
    assert record["ttft_ms"]["p99"] == pytest.approx(131.30280319053782)
    assert imported({**sample("vllm_serve.json"), "completed": 99, "num_prompts": 99})["ttft_ms"]["p99"] is None


def test_failed_requests_are_a_mismatch_and_no_sample():
    (record,) = importers.read(SAMPLES / "vllm_serve_failed.json")
    assert (record["status"], record["reason"]) == ("mismatch", "1 of 4 requests failed")
    assert record["ttft_ms"]["n"] == 3 and record["ttft_ms"]["min"] == pytest.approx(59.72462)
    assert (record["input_len"], record["output_len"]) == (None, None), "they differ from request to request"


def test_a_request_that_broke_off_is_no_sample(imported):
    data = sample("vllm_serve_detailed.json")
    broken = {"errors": ["", "the server closed", "", ""], "completed": 3, "failed": 1}
    assert imported({**data, **broken})["ttft_ms"] == summarise([data["ttfts"][i] * 1e3 for i in (0, 2, 3)])
    unsure = imported({**data, **broken, "completed": 4, "failed": 0})
    assert unsure["ttft_ms"]["min"] is None, "samples that do not agree with the count are not used"


def test_requests_that_are_missing_are_a_mismatch_where_failures_are_not_counted(imported):
    record = imported(changed("vllm_serve_failed.json", "failed"))
    assert (record["failed"], record["status"]) == (None, "mismatch")
    assert record["reason"] == "3 of 4 requests completed"


def test_nothing_is_measured_where_every_request_failed(imported):
    times = {f"{kind}_{name}_ms": 0.0 for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl")}
    none = {"completed": 0, "failed": 4, "total_output_tokens": 0}
    record = imported({**sample("vllm_serve.json"), **none, **times})
    assert record["reason"] == "4 of 4 requests failed"
    assert [record[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")] == [None] * 3


def test_speculation_metrics_name_vllm_as_the_server(imported):
    record = imported({**sample("vllm_serve.json"), "spec_decode_num_drafts": 7})
    assert record["engine"] == "vllm" and record["conditions"]["speculative_decoding"] == "on"


def test_a_rate_that_was_ramped_up_is_no_rate(imported):
    assert imported({**sample("vllm_serve.json"), "ramp_up_strategy": "linear"})["request_rate"] is None
    phase = {**sample("aiperf.json")["input_config"]["phases"][0], "rate_ramp": {"duration": 5}}
    record = imported(changed("aiperf.json", "input_config.phases", [phase]))
    assert (record["request_rate"], record["max_concurrency"]) == (None, 2)


def test_results_appended_to_one_file_are_records_of_their_own(tmp_path):
    path = tmp_path / "all.json"
    names = ("vllm_serve.json", "vllm_serve_failed.json")
    path.write_text("\n".join((SAMPLES / name).read_text().strip() for name in names))
    records = importers.read(path)
    assert [record["status"] for record in records] == ["ok", "mismatch"]
    assert len({record["key"] for record in records}) == 2


def test_trtllm_bench_says_what_ran_and_on_what():
    (record,) = importers.read(SAMPLES / "trtllm_throughput.json")
    assert (record["workload"], record["engine"], record["engine_version"]) == ("serve", "trtllm", "1.3.0rc12")
    assert (record["model"], record["config"]) == ("Qwen/Qwen3-30B-A3B", "TP4_EP4_unknown")
    assert (record["precision"], record["quant_algo"], record["gpu_name"]) == ("nvfp4", "NVFP4", "NVIDIA B200")
    device = {"kind": "cuda", "name": "NVIDIA B200", "count": 4, "memory_bytes": 191503400960}
    assert record["environment"]["device"] == device
    known = {name: value for name, value in record["conditions"].items() if value is not None}
    assert known == {
        "input_len": 128, "output_len": 32, "kv_dtype": "FP8", "max_num_seqs": 256, "max_num_batched_tokens": 8192,
        "tp": 4, "ep": 4, "device": "NVIDIA B200", "device_count": 4, "speculative_decoding": "off",
    }  # fmt: skip


def test_trtllm_bench_gives_ttft_and_tpot_but_its_percentiles_are_not_ours():
    (record,) = importers.read(SAMPLES / "trtllm_throughput.json")
    unknown = {"std": None, "p50": None, "p90": None, "p99": None}
    assert record["ttft_ms"] == pytest.approx({"mean": 24.1, "min": 18.4, "max": 30.0, "n": 4, **unknown})
    assert record["tpot_ms"] == pytest.approx({"mean": 5.175, "min": 5.0, "max": 5.3, "n": 4, **unknown})
    assert [record[name] for name in ("latency_ms", "itl_ms", "output_tokens_per_sec")] == [None] * 3


def test_trtllm_bench_without_streaming_has_no_times(imported):
    record = imported(changed("trtllm_throughput.json", "streaming_metrics"))
    assert (record["ttft_ms"], record["tpot_ms"]) == (None, None)


def test_trtllm_bench_counts_a_request_of_one_token_as_a_tpot_of_0(imported):
    record = imported(changed("trtllm_throughput.json", "streaming_metrics.tpot_percentiles.minimum", 0.0))
    assert record["tpot_ms"] is None and record["ttft_ms"]["n"] == 4


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ({"quantization": "FP8"}, "fp8"),
        ({"quantization": "FP8_BLOCK_SCALES"}, "fp8_block"),
        ({"quantization": "W4A16_MXFP4"}, None),
        ({"quantization": None, "dtype": "bfloat16"}, "bf16"),
        ({"quantization": None, "dtype": "float16"}, None),
    ],
)
def test_trtllm_bench_names_a_precision_only_by_a_format_we_know(engine, precision, imported):
    data = sample("trtllm_throughput.json")
    data["engine"].update(engine)
    record = imported(data)
    assert (record["precision"], record["quant_algo"]) == (precision, engine["quantization"])


def test_trtllm_bench_names_the_parallel_configuration_only_where_it_is_whole(imported):
    pipeline = imported(changed("trtllm_throughput.json", "world_info.pp_size", 2))
    assert (pipeline["config"], pipeline["conditions"]["tp"]) == ("unknown", 4)
    left_open = imported(changed("trtllm_throughput.json", "world_info.ep_size", -1))
    assert (left_open["config"], left_open["conditions"]["ep"]) == ("unknown", None)


def test_lengths_are_given_only_where_all_requests_had_them(imported):
    record = imported(changed("trtllm_throughput.json", "dataset.isl_stats.minimum", 64.0))
    assert (record["input_len"], record["output_len"]) == (None, 32)
    assert imported(changed("trtllm_throughput.json", "request_info.avg_output_length", 31.5))["output_len"] is None


def test_trtllm_bench_of_an_older_version_names_no_gpu_and_a_later_one_its_speculation(imported):
    older = imported(changed("trtllm_throughput.json", "machine"))
    assert (older["gpu_name"], older["environment"]["device"], older["conditions"]["device_count"]) == (None, None, 4)
    eagle = imported({**sample("trtllm_throughput.json"), "decoding_stats": {"mode": "Eagle"}})
    assert eagle["conditions"]["speculative_decoding"] == "Eagle"


def test_aiperf_inter_token_latency_is_our_tpot_and_its_chunk_gaps_are_our_itl():
    (record,) = importers.read(SAMPLES / "aiperf.json")
    data = sample("aiperf.json")
    assert (record["workload"], record["engine"], record["model"]) == ("serve", "unknown", "tinymoe")
    per_request, chunks, first = (
        data[name] for name in ("inter_token_latency", "inter_chunk_latency", "time_to_first_token")
    )
    assert (record["tpot_ms"]["n"], record["itl_ms"]["n"], record["ttft_ms"]["n"]) == (6, 6 * 31, 6)
    for ours, theirs in (("tpot_ms", per_request), ("ttft_ms", first), ("itl_ms", chunks)):
        summary = record[ours]
        assert (summary["mean"], summary["min"], summary["max"]) == (theirs["avg"], theirs["min"], theirs["max"])
        assert summary["std"] == pytest.approx(theirs["std"] * math.sqrt(summary["n"] / (summary["n"] - 1)))
    assert (record["tpot_ms"]["p90"], record["ttft_ms"]["p50"]) == (per_request["p90"], first["p50"])
    assert [record["itl_ms"][name] for name in ("p50", "p90", "p99")] == [None] * 3, "the file's are a sketch's"
    assert [record[name] for name in ("latency_ms", "mean_latency_ms", "output_tokens_per_sec")] == [None] * 3


def test_aiperf_says_the_traffic_and_some_conditions():
    (record,) = importers.read(SAMPLES / "aiperf.json")
    traffic = {"request_rate": 10.0, "max_concurrency": 2, "burstiness": 1.0, "num_prompts": 6, "completed": 6}
    assert {name: record[name] for name in traffic} == traffic and record["failed"] == 0
    assert record["written_at"] == "2026-11-21T05:51:15.042319"
    known = {name: value for name, value in record["conditions"].items() if value is not None}
    assert known == {"input_len": 16, "output_len": 32, "ignore_eos": True}


def test_aiperf_that_read_whole_answers_at_once_measured_no_token_times():
    (record,) = importers.read(SAMPLES / "aiperf_bundled.json")
    assert sample("aiperf_bundled.json")["inter_token_latency"]["min"] == 0
    assert [record[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")] == [None] * 3
    assert (record["request_rate"], record["burstiness"], record["status"]) == (None, None, "ok")


def test_aiperf_with_another_token_count_than_the_server_has_no_tpot(imported):
    record = imported(changed("aiperf.json", "output_sequence_length.sum", 195.0))
    assert (record["tpot_ms"], record["itl_ms"]) == (None, None) and record["ttft_ms"]


def test_aiperf_failures_and_an_incomplete_run_are_a_mismatch(imported):
    failed = imported({**sample("aiperf.json"), "error_request_count": {"unit": "requests", "avg": 2.0}})
    assert (failed["status"], failed["reason"]) == ("mismatch", "2 of 8 requests failed")
    stalled = imported({**sample("aiperf.json"), "is_complete": False, "incomplete_reason": "the records stalled"})
    assert (stalled["status"], stalled["reason"]) == ("mismatch", "the records stalled")
    cancelled = imported({**sample("aiperf.json"), "was_cancelled": True})
    assert (cancelled["status"], cancelled["reason"]) == ("mismatch", "the run did not complete")


def test_aiperf_cache_hits_count_only_if_every_request_told_them(imported):
    hits = {"unit": "tokens", "avg": 8.0, "min": 8.0, "max": 8.0, "count": 6, "sum": 48.0}
    record = imported({**sample("aiperf.json"), "usage_prompt_cache_read_tokens": hits})
    assert record["conditions"]["prefix_cache_hits"] == 48
    record = imported({**sample("aiperf.json"), "usage_prompt_cache_read_tokens": {**hits, "count": 5}})
    assert record["conditions"]["prefix_cache_hits"] is None


def test_options_of_an_older_aiperf_are_not_read(imported):
    record = imported(changed("aiperf.json", "input_config", {"endpoint": {"model_names": ["m"]}, "loadgen": {}}))
    assert (record["model"], record["num_prompts"], record["ttft_ms"]["n"]) == (None, None, 6)


BROKEN = [
    ("vllm_latency.json", "latencies", [0.1, "0.2"], "$.latencies[1]: expected a number"),
    ("vllm_latency.json", "latencies", [0.1, None], "$.latencies[1]: missing"),
    ("vllm_latency.json", "latencies", [], "$.latencies: expected times above 0"),
    ("vllm_latency.json", "latencies", [0.1, -0.2], "$.latencies[1]: expected a number from 0"),
    ("vllm_latency.json", "latencies", [True], "$.latencies[0]: expected a number"),
    ("vllm_latency.json", "latencies", {"0": 0.1}, "$.latencies: expected a list"),
    ("vllm_latency.json", "latencies", None, "$.latencies: missing"),
    ("vllm_latency.json", "latencies", [10**400], "$.latencies[0]: expected a number"),
    ("vllm_latency.json", "avg_latency", [0.1], "$.avg_latency: expected a number"),
    ("vllm_latency.json", "avg_latency", 0.1, "$.avg_latency: is not the mean of latencies"),
    ("vllm_latency.json", "avg_latency", math.nan, "$.avg_latency: expected a finite number"),
    ("vllm_latency.json", "percentiles", {"99": math.inf}, "$.percentiles.99: expected a finite number"),
    ("vllm_latency.json", "model_id", ["m"], "$.model_id: expected one line of text"),
    ("vllm_latency.json", "model_id", "a\nb", "$.model_id: expected one line of text"),
    ("vllm_serve.json", "completed", None, "$.completed: missing"),
    ("vllm_serve.json", "completed", 3.5, "$.completed: expected a whole number"),
    ("vllm_serve.json", "mean_ttft_ms", [1.0], "$.mean_ttft_ms: expected a number"),
    ("vllm_serve.json", "request_rate", "fast", "$.request_rate: expected a number"),
    ("vllm_serve.json", "date", "yesterday", "$.date: expected a date and time"),
    ("vllm_serve.json", "total_output_tokens", None, "$.total_output_tokens: missing"),
    ("vllm_serve_detailed.json", "itls", [1.0, 2.0, 3.0, 4.0], "$.itls[0]: expected a list"),
    ("vllm_serve_detailed.json", "ttfts", [0.1], "$: input_lens, output_lens, ttfts, itls and errors differ in length"),
    ("trtllm_throughput.json", "request_info", None, "$.request_info: missing"),
    ("trtllm_throughput.json", "world_info", 4, "$.world_info: expected an object"),
    ("trtllm_throughput.json", "world_info.tp_size", "4", "$.world_info.tp_size: expected a number"),
    ("trtllm_throughput.json", "engine.model", None, "$.engine.model: missing"),
    ("trtllm_throughput.json", "streaming_metrics.ttft_percentiles.average", None, "ttft_percentiles.average: missing"),
    ("aiperf.json", "request_count", None, "$.request_count.avg: missing"),
    ("aiperf.json", "request_count", 6, "$.request_count: expected an object"),
    ("aiperf.json", "inter_token_latency.unit", "ns", "$.inter_token_latency.unit: expected ms"),
    ("aiperf.json", "time_to_first_token.avg", [25.0], "$.time_to_first_token.avg: expected a number"),
    ("aiperf.json", "end_time", 5, "$.end_time: expected one line of text"),
]


@pytest.mark.parametrize(("name", "place", "value", "complaint"), BROKEN)
def test_a_wrong_value_is_one_line_with_file_and_place(name, place, value, complaint, imported):
    with pytest.raises(UsageError) as caught:
        imported(changed(name, place, value))
    message = str(caught.value)
    assert "result.json: $" in message and complaint in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON"),
        (b'{"avg_latency": 0.1, "latencies": [0.1', "not JSON"),
        (b'{"avg_latency": 0.1}{', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "no result that can be imported"),
        (b"null", "no result that can be imported"),
        (b'"text"', "no result that can be imported"),
        (b'{"tokens_per_second": 5}', "no result that can be imported"),
        (b'{"avg_latency": 1e999}', "$.avg_latency: expected a finite number"),
    ],
)
def test_a_file_that_is_no_result_is_one_line_that_says_what_was_expected(content, complaint, tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        importers.read(path)
    message = str(caught.value)
    assert str(path) in message and complaint in message and len(message.splitlines()) == 1
    if complaint.startswith("no result"):
        assert all(tool in message for tool in importers.FORMATS)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            importers.read(path)
