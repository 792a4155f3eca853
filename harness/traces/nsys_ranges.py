"""Who launched an operation that nsys saw: NVTX ranges around the launching call, or the capture of its graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import polars

from harness.traces import marks
from harness.traces.spans import OUTER, SPANS, Chains, at, flatten
from harness.traces.sqlitefile import SqliteFile
from harness.traces.trace import Step

RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
NODES = "CUDA_GRAPH_NODE_EVENTS"
_RANGE_TYPES = "(59, 60, 70, 71)"  # push and pop, start and end, and the old forms of both
_PID = "(globalTid >> 24) & 0xFFFFFF"
_MODULE = re.compile(r"\{'Module': '([^']+)'")  # vLLM's layer ranges are the text of a dict
_TAIL = re.compile(r", (?:seq|op_id|sizes|input_op_ids) = .*", re.DOTALL)  # PyTorch's, different at each call


@dataclass(frozen=True)
class Ranges:
    """What the ranges of a trace say of its operations. `attribute` gives a part of them `scope` and `step`."""

    scopes: tuple[str, ...]
    steps: tuple[Step, ...]
    attribute: Callable[[polars.DataFrame], polars.DataFrame]
    lost: list[int]  # for each part attributed: operations without a launch

    def notes(self, operations: int) -> list[str]:
        """What could not be told of all operations."""
        if not (lost := sum(self.lost)):
            return []
        said = f"{lost} of {operations} operations ({lost / operations:.1%}) have no launch in the trace"
        return [f"{said}: ranges around them are not known"]


def read_ranges(file: SqliteFile, has_pid: bool) -> Ranges:
    """The NVTX ranges of a file, ready for operations with or without a process.

    A range holds an operation if the call that launched it lies in the range on the same thread. Under a replayed
    graph that is the graph's launch; where the making of its nodes was seen, the ranges around that are the scope."""
    spans, words = _spans(file)
    threads = spans.select("tid").unique(maintain_order=True).with_row_index("thread")
    spans = spans.join(threads, on="tid", maintain_order="left")
    chains = Chains(words)
    pieces = flatten(spans.select(list(SPANS)), chains).sort("time", maintain_order=True)
    steps, table = marks.find(spans.select(list(marks.RANGES)), words)
    table = table.rename({"pid": "process"})
    del spans
    keys = ["process", "correlation"] if has_pid else ["correlation"]
    calls = _calls(file, has_pid, threads)
    made = at(_nodes(file, threads), pieces).select("process", "node", made="scope")
    lost: list[int] = []

    def attribute(part: polars.DataFrame) -> polars.DataFrame:
        absent = {key: polars.lit(None, kind) for key, kind in _KEYS.items() if key not in part.columns}
        part = part.with_columns(**absent).rename({"pid": "process"} if has_pid else {"pid": "unknown"})
        # numbers of launches grow with time: a part needs few of all calls
        low, high = part["correlation"].min(), part["correlation"].max()
        first = calls["correlation"].search_sorted(low, "left") if low is not None else 0
        until = calls["correlation"].search_sorted(high, "right") if low is not None else 0
        near = calls.slice(first, until - first).unique(keys, keep="first", maintain_order=True)
        part = at(part.join(near, on=keys, how="left"), pieces)
        if made.height:
            part = part.join(made, on=["process", "node"], how="left")
            part = part.with_columns(scope=polars.coalesce("made", "scope"))
        if steps:
            part = marks.assign(part, table, "process", "time")
        lost.append(part["time"].null_count())
        return part.drop("unknown", "correlation", "node", "process", "thread", "time", "made", strict=False)

    return Ranges(tuple(chains.texts), steps, attribute, lost)


_KEYS = {"pid": polars.UInt32, "correlation": polars.Int64, "node": polars.Int64}


def _spans(file: SqliteFile) -> tuple[polars.DataFrame, list[str]]:
    """start, end, name, role, pid and tid of every range that ended on the thread it began on, and the names."""
    columns = file.tables["NVTX_EVENTS"]
    tid = "coalesce(globalTid, 0)" if "globalTid" in columns else "0"
    text = "text" if "text" in columns else "NULL"
    if "textId" in columns:
        text = f"coalesce({text}, (SELECT value FROM StringIds WHERE id = textId))"
    conditions = ["typeof(start) = 'integer'", "typeof(\"end\") = 'integer'", "start >= 0", '"end" > start']
    if "eventType" in columns:
        conditions.append(f"eventType IN {_RANGE_TYPES}")
    if "endGlobalTid" in columns:
        conditions.append(f"(endGlobalTid IS NULL OR endGlobalTid = {tid})")
    wanted = {"start": "start", "end": '"end"', "tid": tid, "text": f"CAST(coalesce({text}, '') AS BLOB)"}
    numbers: dict[str, int] = {}

    def numbered(part: polars.DataFrame) -> polars.DataFrame:
        texts = part["text"].unique()
        labels = [_label(text.decode("utf-8", "replace")) for text in texts]
        with lock:
            dense = [numbers.setdefault(label, len(numbers)) for label in labels]
        known = polars.DataFrame([texts, polars.Series("name", dense, dtype=polars.UInt32)])
        return part.join(known, on="text", maintain_order="left").drop("text")

    lock = Lock()
    parts = file.parts("NVTX_EVENTS", wanted, numbered, "AND " + " AND ".join(conditions))
    pid = (polars.col("tid") // 2**24 % 2**24).cast(polars.UInt32)
    return polars.concat(parts).with_columns(pid=pid, role=polars.lit(OUTER, polars.UInt8)), list(numbers)


def _label(text: str) -> str:
    if found := _MODULE.match(text):
        return found[1]
    return _TAIL.sub("", text) or "(no name)"


def _calls(file: SqliteFile, has_pid: bool, threads: polars.DataFrame) -> polars.DataFrame:
    """correlation (sorted), process, time and thread of the calls to CUDA."""
    schema = {"correlation": polars.Int64, "process": polars.UInt32, "time": polars.Int64, "thread": polars.UInt32}
    if not file.has(RUNTIME, "start", "correlationId"):
        return polars.DataFrame(schema=schema)
    columns = {"correlation": "correlationId", "time": "start"}
    columns |= {"process": _PID, "tid": "globalTid"} if file.has(RUNTIME, "globalTid") else {"process": "0", "tid": "0"}

    def narrow(part: polars.DataFrame) -> polars.DataFrame:
        part = part.drop_nulls().join(threads, on="tid", how="left", maintain_order="left")
        return part.select(polars.col(name).cast(kind) for name, kind in schema.items())

    calls = polars.concat(file.parts(RUNTIME, columns, narrow), rechunk=True)
    if not has_pid and calls["process"].n_unique() > 1:  # one number in two processes: whose operation is it?
        calls = calls.filter(polars.col("process").n_unique().over("correlation") == 1)
    return calls if calls["correlation"].is_sorted() else calls.sort("correlation", maintain_order=True)


def _nodes(file: SqliteFile, threads: polars.DataFrame) -> polars.DataFrame:
    """time, thread, process and node: when and where the node was made that each graph node was copied from."""
    schema = {"time": polars.Int64, "tid": polars.Int64, "process": polars.UInt32, "node": polars.Int64}
    if not file.has(NODES, "start", "globalTid", "graphNodeId"):
        return polars.DataFrame(schema=schema).join(threads, on="tid", how="left")
    original = "originalGraphNodeId" if file.has(NODES, "originalGraphNodeId") else "NULL"
    rows = file.rows(
        f"SELECT globalTid, {_PID}, graphNodeId, {original}, start FROM {NODES} "
        "WHERE globalTid IS NOT NULL AND graphNodeId IS NOT NULL ORDER BY start"
    )
    made: dict[tuple[int, int], tuple[int, int]] = {}
    copied: dict[tuple[int, int], int] = {}
    for tid, pid, node, source, start in rows:
        if source:
            copied.setdefault((pid, node), source)
        else:
            made.setdefault((pid, node), (start, tid))
    found = []
    for pid, node in {**made, **copied}:
        first, seen = node, set()
        while (pid, first) in copied and first not in seen:
            seen.add(first)
            first = copied[pid, first]
        if (pid, first) in made:
            found.append((*made[pid, first], pid, node))
    return polars.DataFrame(found, schema=schema, orient="row").join(threads, on="tid", how="left")
