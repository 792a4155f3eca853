"""benchmark_report.json of one perf record: whole batch, context encoding and token generation, in the contest's spelling.

Names and layout follow `benchmark_report.json` of NxD Inference, which the NKI-MoE contest scores. Two things differ from
it on purpose. Its part models are timed by hooks around one forward pass; ours are read from the times at which tokens
came out, so context encoding includes what the engine does before the first pass, and every engine can be compared.
And it divides a fixed number of tokens by the summed time whatever was timed; ours counts the tokens that this time made:
output_len - 1 for token generation, because the first token comes out of context encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from harness.errors import UsageError
from harness.recording.metrics import NS_PER_MS, SAMPLES_FOR_P99, mean, percentile

PERCENTS = (50, 90, 95, 99, 100)
DEFINITIONS = {
    "e2e_model": "wall time of a whole batch; one value per iteration",
    "context_encoding_model": "time from start to the batch's last first token; one value per iteration",
    "token_generation_model": "time from when every request had k tokens until every request has k + 1; one value per step",
    "e2e_model.throughput": "prompt and output tokens per second: n x (input_len + output_len) x batch_size / summed seconds; "
    "output_tokens_per_sec of the record counts output tokens alone",
    "context_encoding_model.throughput": "prompt tokens per second: n x input_len x batch_size / summed seconds",
    "token_generation_model.throughput": "output tokens per second after the first: n x batch_size / summed seconds",
    "percentiles": "linear interpolation between order statistics; p100 is the maximum",
}

_Batch = Sequence[Mapping[str, Any]]  # timelines of an iteration: {"requests": indices, "ns": since the start, or None}


def benchmark_report(record: Mapping[str, Any]) -> dict[str, Any]:
    """The three blocks, `n` samples of each, why a block is null (`unmeasured`), `notes` and `definitions`.

    A block needs every time it reads: one that any iteration lacks makes the block null. Raises UsageError for a record
    without timed iterations.
    """
    batch_size, input_len, output_len = (_count(record, name) for name in ("batch_size", "input_len", "output_len"))
    latency, batches = _times(record)
    samples = {
        "e2e_model": latency,
        "context_encoding_model": _of_all(batches, lambda batch: [_last(batch, 0)]),
        "token_generation_model": _of_all(batches, lambda batch: _steps(batch, output_len)),
    }
    tokens = {
        "e2e_model": batch_size * (input_len + output_len),
        "context_encoding_model": batch_size * input_len,
        "token_generation_model": batch_size,
    }
    blocks = {name: _block(times, tokens[name]) if times else None for name, times in samples.items()}
    return {
        **blocks,
        "n": {name: len(times or ()) for name, times in samples.items()},
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "unmeasured": dict(_unmeasured(blocks, output_len)),
        "notes": [
            f"{name}: p99 of {len(times)} samples is close to their maximum; a 99th percentile needs {SAMPLES_FOR_P99}"
            for name, times in samples.items()
            if times and len(times) < SAMPLES_FOR_P99
        ],
        "definitions": DEFINITIONS,
    }


def _unmeasured(blocks: Mapping[str, Mapping[str, float | None] | None], output_len: int) -> Iterator[tuple[str, str]]:
    """What is null in the report, and why."""
    for name, block in blocks.items():
        if block is None and name == "token_generation_model" and output_len == 1:
            yield name, "one output token has no step to a next one"
        elif block is None:
            yield name, "the engine did not say when each token came out"
        elif block["throughput"] is None:
            yield f"{name}.throughput", "no time passed between tokens: they were handed over together"


def _block(times_ns: Sequence[int], tokens: int) -> dict[str, float | None]:
    """`tokens`: how many one sample of `times_ns` made or read."""
    ordered = sorted(time / NS_PER_MS for time in times_ns)
    seconds = sum(times_ns) / 1e9
    return {
        **{f"latency_ms_p{percent}": percentile(ordered, percent) for percent in PERCENTS},
        "latency_ms_avg": mean(ordered),
        "throughput": len(times_ns) * tokens / seconds if seconds else None,
    }


def _of_all(batches: Sequence[_Batch], of: Callable[[_Batch], list[int]]) -> list[int] | None:
    """The samples of every iteration; None when a time that `of` reads was not measured in one of them."""
    try:
        return [time for batch in batches for time in of(batch)]
    except TypeError:  # max or minus with None
        return None


def _last(batch: _Batch, index: int) -> int:
    """When the last of the batch's requests got its token `index`."""
    return max(timeline["ns"][index] + 0 for timeline in batch)  # + 0: max of one None would not raise


def _steps(batch: _Batch, output_len: int) -> list[int]:
    ends = [_last(batch, index) for index in range(output_len)]
    return [end - start for start, end in zip(ends, ends[1:])]


def _times(record: Mapping[str, Any]) -> tuple[list[int], list[_Batch]]:
    """latency_ns and token_ns of the timed iterations, of the shape that harness.workloads.perf writes."""
    raw = record.get("raw")
    latency = raw.get("latency_ns") if isinstance(raw, Mapping) else None
    batches = raw.get("token_ns") if isinstance(raw, Mapping) else None
    if not latency or not isinstance(latency, list) or not isinstance(batches, list):
        _refuse(record, f"no timed iterations under raw (status {record.get('status', 'unknown')})")
    if len(latency) != len(batches):
        _refuse(record, f"{len(latency)} latencies but {len(batches)} iterations of token times")
    if not all(type(time) is int and time > 0 for time in latency):
        _refuse(record, "raw.latency_ns must be whole nanoseconds above 0")
    for batch in batches:
        try:
            timelines = [tuple(timeline["ns"]) for timeline in batch]
            requests = sorted(index for timeline in batch for index in timeline["requests"])
        except (TypeError, KeyError):
            _refuse(record, "raw.token_ns must be a list of timelines per iteration")
        if requests != list(range(record["batch_size"])):
            _refuse(record, f"raw.token_ns must hold each of the {record['batch_size']} requests once")
        if any(len(times) != record["output_len"] for times in timelines):
            _refuse(record, f"raw.token_ns must hold {record['output_len']} times per request")
        if any(time is not None and (type(time) is not int or time < 0) for times in timelines for time in times):
            _refuse(record, "raw.token_ns must be whole nanoseconds since the start, or null")
    return latency, batches


def _count(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    if type(value) is not int or value < 1:
        _refuse(record, f"{name} must be a whole number above 0, got {value!r}")
    return value


def _refuse(record: Mapping[str, Any], problem: str) -> NoReturn:
    raise UsageError(f"record {record.get('key', 'without key')}: {problem}")
