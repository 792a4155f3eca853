"""Traces made by hand, for tests of what is asked of them: rows with labels, and small files for whole commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars

from harness.kernels.taxonomy import Label
from harness.traces.trace import SCHEMA, Step, Trace

PREFILL, DECODE = "execute_context_1(512)_generation_0(0)", "execute_context_0(0)_generation_1(1)"
EXPERT, ATTENTION, QUANT = "fused_moe_kernel", "flash_fwd_kernel", "void vllm::scaled_fp8_quant_kernel"
MARKS = {"prefill": PREFILL, "decode": DECODE}


@dataclass(frozen=True)
class Labelled:
    ops: polars.DataFrame
    labels: tuple[Label, ...]


def known_as(category: str, found_by: str = "name") -> Label:
    return Label(category, found_by, "high", "by hand")


LABELS = {  # by name; a test may add its own
    "gemm": known_as("expert_gemm"),
    "attn": known_as("attention", "module"),
    "gate": known_as("gate_gemm"),
    "comm": known_as("comm"),
    "quant": known_as("quant_dequant"),
    "who": known_as("other", "none"),
    "fill": known_as("other"),
}


def made(*ops, steps=(), scopes=()):
    """A trace and its labels from rows of name, start, duration and, if need be, step, device, stream (all in ns)."""
    names = tuple(dict.fromkeys(op[0] for op in ops))
    rows = []
    for op in ops:
        name, start, duration, step, device, stream = (*op, *(None, 0, 7)[len(op) - 3 :])
        rows.append((start, duration, 1, device, stream, "kernel", names.index(name), None, step))
    frame = polars.DataFrame(rows, schema=SCHEMA, orient="row").sort("device", "start")
    trace = Trace("made", "by hand", frame, names, tuple(scopes), tuple(steps))
    labels = tuple(dict.fromkeys(LABELS[name] for name in names))
    of_name = polars.Series([labels.index(LABELS[name]) for name in names], dtype=polars.UInt16)
    return trace, Labelled(frame.with_columns(of_name.gather(frame["name"]).alias("label")), labels)


def decode_steps(count: int) -> list[Step]:
    return [Step(DECODE, "decode")] * count


def kineto(path: Path, *steps: tuple[str, list[tuple[str, float, float]]]) -> Path:
    """A torch.profiler file. Steps are a phase and rows of name, us idle before it, and duration in us."""
    events, now = [], 1000.0
    for phase, rows in steps:
        first = now
        for name, gap, duration in rows:
            arguments = {"device": 0, "stream": 7, "correlation": len(events) + 1}
            kind = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7}
            events.append({**kind, "name": name, "ts": now + gap, "dur": duration, "args": arguments})
            now += gap + duration
        about = {"ph": "X", "cat": "gpu_user_annotation", "pid": 0, "tid": 7, "name": MARKS[phase]}
        events.append({**about, "ts": first, "dur": now - first, "args": {}})
    path.write_text(json.dumps({"schemaVersion": 1, "deviceProperties": [], "traceEvents": events}))
    return path
