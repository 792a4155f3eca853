"""Records from the result files of other tools: vLLM's latency and serving benchmarks, trtllm-bench, AIPerf.

A number comes under our name only where the tool measured what our name says (`harness.recording.metrics.DEFINITIONS`); the
comments cite where in the tool's source that was read. What a file does not say is None; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.jsonfile import Node, load
from harness.recording.conditions import CONDITIONS
from harness.recording.metrics import SAMPLES_FOR_P99, summarise
from harness.recording.records import SCHEMA_VERSION, Record

# A record's top level (harness.recording.records.make and metrics.speed), before a file has said anything.
_UNKNOWN = dict.fromkeys(
    "reason failure engine_version model weights precision quant_algo compute_mode sm_version gpu_name moe_backend "
    "fusion_disabled load_seconds written_at batch_size input_len output_len num_iterations mean_latency_ms "
    "std_latency_ms output_tokens_per_sec prefill_tokens_per_sec latency_ms ttft_ms itl_ms tpot_ms energy_joules "
    "joules_per_output_token energy_problem".split()
)
# TensorRT-LLM's names (tensorrt_llm/quantization/mode.py, QuantAlgo) for formats that harness.precision defines.
_PRECISION_OF = {"FP8": "fp8", "FP8_BLOCK_SCALES": "fp8_block", "NVFP4": "nvfp4"}


def read(path: Path) -> list[Record]:
    """The records of a tool's result file: one, or several where `vllm bench serve --append-result` wrote them.
    Raises UsageError, one line that names file and place, for any other file."""
    content, roots = load(path)
    records = []
    for index, root in enumerate(roots):
        tool = _detect(root)
        source = {"tool": tool, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        key = hashlib.sha256(content + str(index).encode()).hexdigest()[:16]
        records.append(_record(key, source, **FORMATS[tool][1](root)))
    return records


def _detect(root: Node) -> str:
    for tool, (keys, _) in FORMATS.items():
        if isinstance(root.value, dict) and all(key in root.value for key in keys):
            return tool
    known = "; ".join(f"{tool} (has {', '.join(keys)})" for tool, (keys, _) in FORMATS.items())
    raise UsageError(f"{root.place}: no result that can be imported; expected the JSON of {known}")


def _record(key: str, source: dict[str, str], device=None, conditions: Any = None, **found: Any) -> Record:
    head = {"schema_version": SCHEMA_VERSION, "key": key, "status": "ok", "engine": "unknown", "config": "unknown"}
    rest = {"requested": {}, "effective": {}, "environment": {"device": device}, "imported_from": source}
    record = {**head, **_UNKNOWN, **rest, **found}
    sizes = {name: record[name] for name in ("batch_size", "input_len", "output_len")}
    return {**record, "conditions": {**dict.fromkeys(CONDITIONS), **sizes, **(conditions or {})}}


def _summary(mean: float | None, n: int | None, std: float | None = None, **others: Any) -> dict[str, Any] | None:
    """From a tool's own statistics. `std` is a population's, as vLLM and AIPerf have it; ours has n - 1. A time of 0
    was not taken: vLLM writes it without samples, trtllm-bench for a TPOT of one token, AIPerf for tokens together."""
    if not mean or others.get("min") == 0:
        return None
    found = {"mean": mean, "std": None, "min": None, "max": None, "p50": None, "p90": None, "p99": None, **others}
    if std is not None and n is not None and n > 1:
        found["std"] = std * math.sqrt(n / (n - 1))
    if n is None or n < SAMPLES_FOR_P99:
        found["p99"] = None
    return {**found, "n": n}


def _served(completed: int | None, failed: int | None, num_prompts: int | None) -> dict[str, Any]:
    """What a load generator says of its requests; not ok when some were not answered."""
    reason = None
    if failed:
        reason = f"{failed} of {(completed or 0) + failed} requests failed"
    elif completed is not None and num_prompts is not None and completed < num_prompts:
        reason = f"{completed} of {num_prompts} requests completed"
    counts = {"num_prompts": num_prompts, "completed": completed, "failed": failed}
    traffic = {**dict.fromkeys(("request_rate", "max_concurrency", "burstiness")), **counts}
    return {"workload": "serve", "status": "mismatch" if reason else "ok", "reason": reason, **traffic}


def _only(values: Iterable[float | None]) -> int | None:
    """The one value that all have; None when they differ."""
    different = set(values)
    return int(different.pop()) if len(different) == 1 and None not in different else None


def _vllm_latency(root: Node) -> dict[str, Any]:
    """vllm/benchmarks/latency.py (0.32): each latency is the wall time of one llm.generate() of a whole batch, in
    seconds: our latency. The file names neither the batch's size nor its lengths, so there are no tokens per second."""
    seconds = root.at("latencies").numbers()
    if not seconds or min(seconds) == 0:
        root.at("latencies").refuse("expected times above 0")
    latency = summarise([value * 1e3 for value in seconds])
    if not math.isclose(root.at("avg_latency").need().number() * 1e3, latency["mean"], rel_tol=1e-6):
        root.at("avg_latency").refuse("is not the mean of latencies")
    return {
        "workload": "perf",
        "engine": "vllm",
        "model": root.at("model_id").text(),
        "num_iterations": len(seconds),
        "mean_latency_ms": latency["mean"],
        "std_latency_ms": latency["std"],
        "latency_ms": latency,
        "raw": {"latency_ns": [round(value * 1e9) for value in seconds]},
    }


def _vllm_serve(root: Node) -> dict[str, Any]:
    """vllm/benchmarks/serve.py (0.32). Its latencies are of single requests, its throughput is all tokens over the
    whole run: neither is what our latency and tokens per second mean, and both are left out."""
    names = ("completed", "num_prompts", "total_output_tokens")
    completed, num_prompts, tokens = (root.at(name).need().count() for name in names)
    rate = root.at("request_rate") if root.at("ramp_up_strategy").value is None else Node(None, root.place)
    # `backend` names a protocol, not the server; but these keys are read from metrics called vllm:spec_decode_*
    speculative = root.at("spec_decode_num_drafts").value is not None
    return {
        **_served(completed, root.at("failed").count(), num_prompts),
        "engine": "vllm" if speculative else "unknown",
        "model": root.at("model_id").need().text(),
        "written_at": root.at("date").time("%Y%m%d-%H%M%S"),  # datetime.now() of the client, its zone not named
        "request_rate": "inf" if rate.value == "inf" else rate.number(),
        "max_concurrency": root.at("max_concurrency").count(),
        "burstiness": root.at("burstiness").number(),
        "conditions": {"speculative_decoding": "on" if speculative else None},
        **(_vllm_samples(root, completed) or _vllm_statistics(root, completed, tokens)),
    }


def _vllm_samples(root: Node, completed: int) -> dict[str, Any] | None:
    """From the samples of --save-detailed, in seconds; None where the file has none that agree with `completed`."""
    lists = [root.at(name) for name in ("input_lens", "output_lens", "ttfts", "itls", "errors")]
    if any(node.value is None for node in lists):
        return None
    columns = [node.numbers() for node in lists[:3]]
    columns += [[gaps.numbers() for gaps in lists[3].items()], [bool(error.value) for error in lists[4].items()]]
    if len({len(column) for column in columns}) > 1:
        root.refuse("input_lens, output_lens, ttfts, itls and errors differ in length")
    rows = [(length, n, ttft, gaps) for length, n, ttft, gaps, error in zip(*columns) if n and ttft and not error]
    if len(rows) != completed:
        return None
    several = [(n, gaps) for _, n, _, gaps in rows if n > 1]
    whole = any(sum(gaps) == 0 for _, gaps in several)  # an answer came in one piece: no time of its first token
    # A gap lies between two chunks of the stream (lib/endpoint_request_func.py); ours, between two tokens.
    by_token = not whole and all(len(gaps) == n - 1 for _, n, _, gaps in rows)
    return {
        "input_len": _only(row[0] for row in rows),
        "output_len": _only(row[1] for row in rows),
        "ttft_ms": None if whole else summarise([ttft * 1e3 for _, _, ttft, _ in rows]),
        # calculate_metrics: (latency - ttft) / (output_len - 1); latency - ttft is the sum of the gaps
        "tpot_ms": None if whole else summarise([sum(gaps) * 1e3 / (n - 1) for n, gaps in several]),
        "itl_ms": summarise([gap * 1e3 for row in rows for gap in row[3]]) if by_token else None,
    }


def _vllm_statistics(root: Node, completed: int, tokens: int) -> dict[str, Any]:
    """From its statistics, in ms: calculate_metrics takes numpy's percentiles, which are ours, and population std."""

    def statistics(name: str, n: int | None) -> dict[str, Any] | None:
        mean, std, *order = (root.at(f"{key}_{name}_ms").number() for key in ("mean", "std", "median", "p90", "p99"))
        return _summary(mean, n, std, p50=order[0], p90=order[1], p99=order[2])

    whole = tokens > completed and root.at("mean_tpot_ms").number() == 0  # as above, for every answer
    ttft = None if whole else statistics("ttft", completed)
    # That each chunk was one token shows in the number of gaps: all time from first token to last / mean gap.
    mean_gap, request = root.at("mean_itl_ms").number(), root.at("mean_e2el_ms").number()
    if request is None and root.at("latencies").value is not None and completed:
        request = sum(root.at("latencies").numbers()) * 1e3 / completed
    gaps = round((request - ttft["mean"]) * completed / mean_gap) if ttft and request and mean_gap else None
    return {
        "ttft_ms": ttft,
        "tpot_ms": statistics("tpot", None),  # of the requests with two tokens or more: how many is not said
        "itl_ms": statistics("itl", gaps) if gaps == tokens - completed else None,
    }


def _trtllm_bench(root: Node) -> dict[str, Any]:
    """tensorrt_llm/bench/dataclasses/reporting.py, get_statistics_dict, and statistics.py (commits 2787769c and
    02499765, which adds `machine`). Latency and throughput are left out as with `vllm bench serve`."""
    engine, world, requests = (root.at(name).need() for name in ("engine", "world_info", "request_info"))
    count = requests.at("num_requests").need().count()
    gpu, memory = root.at("machine", "name").text(), root.at("machine", "memory.total").number()  # in GiB
    device = {"kind": "cuda", "name": gpu, "memory_bytes": memory and round(memory * 2**30)}
    tp, pp, devices = (world.at(name).count() for name in ("tp_size", "pp_size", "world_size"))
    ep = None if world.at("ep_size").value == -1 else world.at("ep_size").count()  # -1: left to the engine
    algorithm = engine.at("quantization").text()
    plain = "quantization" in engine.value and algorithm is None and engine.at("dtype").text() == "bfloat16"
    mode = root.at("decoding_stats", "mode").text() if "decoding_stats" in root.value else "off"  # there only if on
    names = {"max_num_seqs": "max_batch_size", "max_num_batched_tokens": "max_num_tokens"}
    limits = {ours: world.at(theirs).count() for ours, theirs in names.items()}
    switches = {"kv_dtype": engine.at("kv_cache_dtype").text(), "speculative_decoding": mode or "on"}

    def times(name: str) -> dict[str, Any] | None:
        """TPOT is RequestRecord.intertoken_latency, (end - first token) / (tokens - 1): ours. Percentiles are
        sorted[int(n * p)] (PercentileStats), ours interpolate: left out."""
        if (node := root.at("streaming_metrics", name)).value is None:
            return None
        least, most = node.at("minimum").need().number(), node.at("maximum").need().number()
        return _summary(node.at("average").need().number(), count, min=least, max=most)

    def length(asked: str, measured: str) -> int | None:
        """Of every request: where the data set has one length only, and the requests had it on average."""
        ends = [root.at("dataset", asked, end).number() for end in ("minimum", "maximum")]
        return _only([*ends, requests.at(measured).number()])

    return {
        **_served(None, None, count),
        "engine": "trtllm",
        "engine_version": engine.at("version").text(),
        "model": engine.at("model").need().text(),
        "precision": "bf16" if plain else _PRECISION_OF.get(algorithm),
        "quant_algo": algorithm,
        "config": f"TP{tp}_EP{ep}_unknown" if tp and ep and pp in (None, 1) else "unknown",
        "gpu_name": gpu,
        "device": {**device, "count": devices} if gpu and devices else None,
        "input_len": length("isl_stats", "avg_input_length"),
        "output_len": length("osl_stats", "avg_output_length"),
        "ttft_ms": times("ttft_percentiles"),
        "tpot_ms": times("tpot_percentiles"),
        "conditions": {"tp": tp, "ep": ep, "device": gpu, "device_count": devices, **limits, **switches},
    }


def _aiperf(root: Node) -> dict[str, Any]:
    """aiperf/exporters/metrics_json_exporter.py and aiperf/metrics/types (0.13.0). Latency and throughput are left
    out as with `vllm bench serve`. The GPUs of telemetry_data were watched; that they served is not said."""
    completed, failed = (root.at(name, "avg").count() for name in ("request_count", "error_request_count"))
    if completed is None and failed is None:
        root.at("request_count", "avg").need()
    failed = 0 if failed is None and root.at("request_error_rate", "avg").number() == 0 else failed
    config = root.at("input_config")
    if not isinstance(config.value, dict) or "phases" not in config.value:
        config = Node(None, config.place)  # of an older version, whose options had other names
    names = [item.at("name").text() for item in config.at("models", "items").items()]
    phases = [phase for phase in config.at("phases").items() if phase.at("kind").value == "profiling"]
    phase = phases[0] if len(phases) == 1 else Node(None, config.place)
    shape = {"poisson": 1.0, "gamma": phase.at("smoothness").number()}  # as vLLM's burstiness: 1 is Poisson
    found = _served(completed, failed, phase.at("requests").count())
    if root.at("is_complete").value is False or root.at("was_cancelled").value is True:
        found |= {"status": "mismatch", "reason": root.at("incomplete_reason").text() or "the run did not complete"}
    sent, answered = root.at("usage_prompt_tokens"), root.at("usage_completion_tokens")  # as the server counted
    cached, extra = root.at("usage_prompt_cache_read_tokens"), config.at("endpoint", "extra")
    return {
        **found,
        "model": names[0] if len(names) == 1 else None,
        "written_at": root.at("end_time").time(),
        "request_rate": None if {"rate_ramp", "rate_series"} & set(phase.value or ()) else phase.at("rate").number(),
        "max_concurrency": phase.at("concurrency").count(),
        "burstiness": shape.get(phase.at("type").text()),
        "input_len": _only(sent.at(end).number() for end in ("min", "max")),
        "output_len": _only(answered.at(end).number() for end in ("min", "max")),
        **_aiperf_times(root, answered),
        "conditions": {
            "ignore_eos": extra.at("ignore_eos").value if isinstance(extra.at("ignore_eos").value, bool) else None,
            "sampling": "greedy" if extra.at("temperature").value == 0 else None,
            "prefix_cache_hits": cached.at("sum").count() if cached.at("count").value == completed else None,
        },
    }


def _aiperf_times(root: Node, answered: Node) -> dict[str, Any]:
    """inter_token_latency is (latency - ttft) / (tokens - 1) of a request: our TPOT. inter_chunk_latency has every gap
    between chunks: our ITL where each chunk was one token; its percentiles are a sketch's, near and not exact."""

    def times(node: Node, exact: bool = True) -> dict[str, Any] | None:
        if node.value is None:
            return None
        if node.at("unit").value != "ms":
            node.at("unit").refuse("expected ms")
        names = ("std", "min", "max", *(("p50", "p90", "p99") if exact else ()))
        values = {name: node.at(name).number() for name in names}
        return _summary(node.at("avg").need().number(), node.at("count").count(), **values)

    request, chunks = root.at("inter_token_latency"), root.at("inter_chunk_latency")
    own, tokens = answered.at("sum").number(), root.at("output_sequence_length", "sum").number()
    # output_sequence_length counts tokens of the answer's text; the server's own count may prove it wrong
    wrong = own is not None and own != tokens
    counts = [tokens, root.at("output_sequence_length", "count").number(), chunks.at("count").number()]
    by_token = not wrong and None not in counts and counts[0] - counts[1] == counts[2]
    # with per_chunk_usage it divides by the tokens after the first chunk, which may have held several
    other = root.at("input_config", "endpoint", "per_chunk_usage").value and not by_token
    whole = request.at("min").number() == 0  # an answer came in one piece: no time of its first token
    return {
        "ttft_ms": None if whole else times(root.at("time_to_first_token")),
        "tpot_ms": None if wrong or other else times(request),
        "itl_ms": times(chunks, exact=False) if by_token else None,
    }


# tool -> the keys that tell its files from the others', and what reads them
FORMATS = {
    "vllm bench latency": (("avg_latency",), _vllm_latency),
    "vllm bench serve": (("num_prompts", "request_throughput"), _vllm_serve),
    "trtllm-bench": (("world_info", "performance"), _trtllm_bench),
    "aiperf": (("aiperf_version",), _aiperf),
}
