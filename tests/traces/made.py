"""Small traces made for the tests of the readers: what a profiler would write, with nothing left to chance."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path

PID = 321
PROCESS = PID << 24
THREAD = PROCESS + 5
SHARED = Path(__file__).parents[2] / "../shared/traces"

STRINGS = "CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL)"
META = "CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT)"
KERNELS = """CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER, deviceId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, demangledName INTEGER, shortName INTEGER, graphNodeId INTEGER)"""
COPIES = """CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, "end" INTEGER, deviceId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, bytes INTEGER, copyKind INTEGER, graphNodeId INTEGER)"""
FILLS = """CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER, "end" INTEGER, deviceId INTEGER, streamId INTEGER,
    correlationId INTEGER, globalPid INTEGER, bytes INTEGER, graphNodeId INTEGER)"""
CALLS = """CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, "end" INTEGER, eventClass INTEGER,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER)"""
RANGES = """CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, eventType INTEGER, text TEXT, globalTid INTEGER,
    endGlobalTid INTEGER, textId INTEGER)"""
GRAPHS = """CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER, "end" INTEGER, deviceId INTEGER,
    graphId INTEGER, correlationId INTEGER, streamId INTEGER)"""
NODES = """CREATE TABLE CUDA_GRAPH_NODE_EVENTS (start INTEGER, "end" INTEGER, nameId INTEGER, globalTid INTEGER,
    graphNodeId INTEGER, originalGraphNodeId INTEGER)"""
NAMES = {1: "void gemm<float>(int)", 2: "gemm", 3: "void norm<(int)4>(T1)", 4: "norm", 5: "registered range"}


def sqlite(path: Path, *tables: str, names: dict | None = None, **rows: list[tuple]) -> Path:
    """An export with the given CREATE statements beside names and version; `rows` are by the last word of a table."""
    with closing(sqlite3.connect(path)) as base, base:
        for statement in (STRINGS, META, *tables):
            base.execute(statement)
        base.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.20.3')")
        base.executemany("INSERT INTO StringIds VALUES (?, ?)", (NAMES if names is None else names).items())
        known = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for word, values in rows.items():
            table = next(name for name in known if name.upper().endswith(word.upper()))
            base.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values[0]))})", values)
    return path


def kernel(start: int, end: int, *, device: int = 0, stream: int = 7, launch: int | None = None, **other: int) -> tuple:
    """A row of KERNELS."""
    pid, name, node = other.get("pid", PROCESS), other.get("name", 1), other.get("node")
    return start, end, device, stream, launch, pid, name, name + 1, node


def call(start: int, launch: int, thread: int = THREAD) -> tuple:
    """A row of CALLS, 10 ns long."""
    return start, start + 10, 0, thread, launch, 2


def span(start: int, end: int, text: str | None, thread: int = THREAD, *, until: int | None = None, **other) -> tuple:
    """A row of RANGES."""
    return start, end, other.get("kind", 59), text, thread, until, other.get("text_id")


def event(category: str, name: str, ts: float, dur: float, *, pid: object = 1, tid: object = 1, **args: object) -> dict:
    """A complete event of a Kineto trace, times in us. `External_id` becomes "External id"."""
    args = {key.replace("_", " "): value for key, value in args.items()}
    return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def launched(
    name: str, number: int, at: float, start: float, dur: float, *, stream: int = 7, tid: int = 1
) -> list[dict]:
    """The call that launches a kernel, and the kernel."""
    gpu = event("kernel", name, start, dur, pid=0, tid=stream, device=0, stream=stream, correlation=number)
    return [event("cuda_runtime", "cudaLaunchKernel", at, 1.0, tid=tid, correlation=number), gpu]


def kineto(path: Path, events: list[dict], **head: object) -> Path:
    """A trace of PyTorch's profiler, packed where the name ends in .gz."""
    text = json.dumps({"schemaVersion": 1, **head, "traceEvents": events}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def listed(trace) -> list[dict]:
    """The operations of a Trace with names, scopes and steps in words."""
    return [
        {
            **row,
            "name": trace.names[row["name"]],
            "scope": None if row["scope"] is None else trace.scopes[row["scope"]],
            "step": None if row["step"] is None else trace.steps[row["step"]].label,
        }
        for row in trace.ops.iter_rows(named=True)
    ]
