"""Complete records without a run: what the workloads measure of a session that is told its times."""

from __future__ import annotations

import json

from harness.cells import Cell, Setup
from harness.device import Device
from harness.engine import Generation, Response
from harness.launcher import Outcome
from harness.precision import Support
from harness.recording.records import make
from harness.recording.stats import merged
from harness.working.inputs import Inputs
from harness.workloads import perf, ppl

GPU = Device("cuda", "a GPU", 8, 80 << 30, 90, "570.1", 700.0)
FACTS = {
    **{"engine_version": "1.0", "quant_algo": "FP8", "quantize": "experts", "moe_backend": "triton"},
    **{"attention_backend": "flash", "kv_dtype": "bf16", "prefix_cache_hits": 0, "cuda_graphs": False},
    **{"compiled": False, "speculative_decoding": "off", "chunked_prefill": False, "max_num_batched_tokens": 8192},
    **{"max_num_seqs": 256, "cudagraph_mode": "none", "compile_mode": "none"},
}
STEADY = (99.0, 101.0, 100.0, 98.0, 102.0)  # ms, mean 100


class Scripted:
    """A session that takes the given times, or finds the given mean NLL in each window."""

    def __init__(self, values) -> None:
        self.values = iter(values)

    def generate(self, prompts, output_len: int) -> Generation:
        step = round(next(self.values) * 1e6 / output_len)
        times = tuple(step * (index + 1) for index in range(output_len))
        return Generation(0, step * output_len, tuple(Response((1,) * output_len, times) for _ in prompts))

    def score(self, sequences):
        for sequence in sequences:
            yield [-next(self.values)] * (len(sequence) - 1)


def record(
    workload: str,
    values,
    engine: str = "swift",
    precision: str = "fp8",
    mode: str = "native",
    weights: str = "real",
    device: Device = GPU,
    tp: int = 1,
    batch_size: int = 2,
    input_len: int = 8,
    dataset: str = "stdlib",
    **facts,
) -> dict:
    """As `run` writes it, from times in ms (perf) or mean NLLs of windows (ppl); `facts` are the engine's words."""
    lengths = {"input_len": input_len, "output_len": 4, "num_iterations": len(values), "warmup_iterations": 0}
    windows = {"dataset": dataset, "input_len": input_len, "num_chunks": len(values)}
    parameters = {"perf": {"batch_size": batch_size, **lengths}, "ppl": windows}[workload]
    sequences = batch_size if workload == "perf" else len(values)
    inputs = Inputs(((1,) * input_len,) * sequences, "ids", "ab" * 32, "ef" * 32)
    measured = {"perf": perf, "ppl": ppl}[workload].measure(Scripted(values), inputs, parameters, lambda *_: None)
    facts = {**FACTS, "precision": precision, "compute_mode": mode, **facts}
    cell = Cell(Setup(engine, "tinymoe", "tinymoe", precision, weights, tp=tp), workload, parameters, Support(mode))
    outcome = Outcome(
        facts=facts,
        results=measured.results,
        conditions={"token_ids_sha256": inputs.sha256, **measured.conditions},
        weights="dummy, seed 0" if weights == "dummy" else "cd" * 32,
        load_seconds=1.0,
    )
    return json.loads(json.dumps(make(cell, outcome, "1.0", device)))


def scaled(factor: float, **options) -> dict:
    """Speed of `factor` times the steady times."""
    return record("perf", [value * factor for value in STEADY], **options)


def in_rounds(starts: list[dict], sweep: str | None) -> dict:
    """One record of what each start measured in turn with the other cells of `sweep`."""
    for index, one in enumerate(starts):
        start = {"started_at": f"2026-11-21T00:0{index}:00Z", "sweep": sweep, "round": index, "telemetry": None}
        one["rounds"] = [{"iterations": len(STEADY), **start}]
    return merged(starts)


def with_rungs(record: dict, asked: str, shared: str | None = None) -> dict:
    """`shared`: those of them that are not its precision's own arithmetic."""
    named = {"config": f"TP1_EP1_auto_{asked}", "requested": {**record["requested"], "rungs": asked}}
    return {**record, **named, "conditions": {**record["conditions"], "rungs": shared or asked}}
