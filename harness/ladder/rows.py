"""What a ladder's records say: a row per step and work, compared with plain eager and with the step before.

Which rungs a cell had is among what was requested. In which order they come, and what replaces what, the engine says;
where it is not here the longest set gives the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cells import AND, DEFAULT, NONE
from harness.engine import EngineSpec
from harness.judging.compare import Comparison, compare
from harness.ladder.steps import BASELINE, CUMULATIVE, LOGITS, OFF, PRECISION, SINGLE, one_on_another
from harness.recording.conditions import OF_RUNGS
from harness.recording.records import MEASURED, Record

SPEED = ("latency_ms", "ttft_ms", "itl_ms")
ORDER = (BASELINE, CUMULATIVE, DEFAULT, SINGLE, PRECISION, OFF)
WORK = ("batch_size", "input_len", "output_len")
SUBJECT = ("engine", "model", "weights")


@dataclass(frozen=True)
class Row:
    """A step at one work. `perf`, `ppl` and `kl` are its records; each may be missing."""

    kind: str
    added: str  # the rung that is new in it, or the precision
    rungs: str
    perf: Record
    ppl: Record | None
    kl: Record | None
    baseline: Comparison | None  # with plain eager at the same work
    before: Comparison | None  # with the step before: of a single rung plain eager

    @property
    def changes_output(self) -> bool:
        """Whether what is new in it does, by what the engine says of its rungs; a precision always does."""
        new = {self.added} if self.kind == CUMULATIVE else set(self.rungs.split(AND))
        return self.kind == PRECISION or self.kind != DEFAULT and bool(changing(self.perf["engine"]) & new)

    @property
    def replaces(self) -> tuple[str, ...]:
        """Rungs that are off from here on up, as what is new in it does their work; a rung that replaces none has none."""
        spec = _spec(self.perf["engine"]) if self.kind == CUMULATIVE else None
        return next((rung.replaces for rung in (spec.rungs if spec else ()) if rung.name == self.added), ())

    def divergence(self, phase: str) -> float | None:
        """Mean KL of prefill's or decode's logits beside plain eager's, in nats per token."""
        found = ((self.kl or {}).get("kl") or {}).get(phase)
        return found["kl_forward"]["mean"] if found else None

    def to_json(self) -> dict[str, Any]:
        """One row of `harness ladder --json`."""
        return {
            **{name: self.perf[name] for name in ("engine", "model", "weights", "precision", "status")},
            **{name: self.perf.get(name) for name in WORK},
            "kind": self.kind,
            "added": self.added,
            "rungs": self.rungs,
            "reason": why(self.perf),
            "changes_output": self.changes_output,
            "replaces": list(self.replaces),
            **{name: middle(self.perf, name) for name in SPEED},
            **{
                name: self.perf.get(name)
                for name in ("output_tokens_per_sec", "joules_per_output_token", "load_seconds")
            },
            "memory_bytes": memory(self.perf),
            "limit": {phase: limit(self.perf, phase) for phase in ("prefill", "decode")},
            "perplexity": self.ppl.get("perplexity") if self.ppl else None,
            "kl": (self.kl or {}).get("kl"),
            "kl_unread": None if self.kl and self.kl.get("kl") else why(self.kl) if self.kl else "not measured",
            "prefix_cache_hits": (self.perf.get("conditions") or {}).get("prefix_cache_hits"),
            "speedup": speedups(self.baseline),
            "step_speedup": speedups(self.before),
            "not_compared": _refused(self.baseline),
            "noise": self.baseline.noise if self.baseline else "",
        }


def ladders(records: Iterable[Record]) -> list[list[Row]]:
    """The rows of each engine, model and work that has plain eager and other rungs; steps in the order of the ladder."""
    records = list(records)
    found = []
    for group in _by(records, lambda r: (*(r[name] for name in SUBJECT), _split(r), _place(r))).values():
        perf = [record for record in group if record["workload"] == "perf"]
        works = _by((r for r in perf if r["status"] != "skipped"), _work)
        skipped = [record for record in perf if record["status"] == "skipped" and _rungs(record) != DEFAULT]
        found += [_rows([*of_work, *skipped], group) for of_work in works.values() if _is_ladder(of_work)]
    return found


def across_rungs(a: Record, b: Record) -> Comparison:
    """`compare`, where a rung may differ and everything that a rung changes; nothing else may."""
    return compare(
        *({**r, "conditions": {**r["conditions"], **dict.fromkeys(OF_RUNGS, "as the rungs say")}} for r in (a, b))
    )


def speedups(found: Comparison | None) -> dict[str, dict[str, Any]]:
    """How many times as fast, by metric, with its 99 % interval, and the verdict."""
    return {
        name: {
            "times": 1 / one.ratio,
            "interval": one.interval and [1 / one.interval[1], 1 / one.interval[0]],
            "verdict": one.verdict,
        }
        for name, one in (found.metrics if found else {}).items()
        if name in SPEED
    }


def middle(record: Record, name: str) -> float | None:
    """The median of a speed metric over rounds or iterations, in ms."""
    found = (record.get("statistics") or {}).get(name)
    return found["median"] if found else (record.get(name) or {}).get("p50")


def memory(record: Record) -> float | None:
    """Bytes in use on the fullest of its GPUs at any time, by NVML: an engine that keeps a pool holds all of the pool."""
    gpus = [gpu for one in record.get("rounds") or () for gpu in (one.get("telemetry") or {}).get("gpus") or ()]
    return max((gpu["memory_bytes"]["max"] for gpu in gpus if gpu.get("memory_bytes")), default=None)


def limit(record: Record, phase: str) -> dict[str, Any] | None:
    """`{share, bound}` of the hardware's limit, from the roofline."""
    found = (record.get("roofline") or {}).get(phase) or {}
    share = found.get("share_of_limit")
    return None if share is None else {"share": share, "bound": found.get("bound")}


def why(record: Record) -> str:
    """Why it has no number, or one that is not ranked."""
    if record["status"] == "failed":
        return f"{record['failure'].get('class')}: {record['failure'].get('message')}"
    return record.get("reason") or record.get("kl_problem") or ""


def changing(engine: str) -> set[str]:
    """Rungs of an engine that change the output; none where the engine is not here."""
    spec = _spec(engine)
    return {rung.name for rung in spec.rungs if rung.changes_output} if spec else set()


def _is_ladder(perf: Sequence[Record]) -> bool:
    rungs = set(map(_rungs, perf))
    return NONE in rungs and len(rungs) > 1


def _rows(perf: Sequence[Record], group: Sequence[Record]) -> list[Row]:
    eager = [record for record in perf if _rungs(record) == NONE]
    first = eager[0]["precision"]
    # a rung that cannot be on is said of every work, a precision without a speed of its own
    perf = [r for r in perf if r["status"] != "skipped" or r["precision"] == first or _work(r) == _work(eager[0])]
    names = [_rungs(r).split(AND) for r in perf if r["precision"] == first and r["status"] != "skipped"]
    names = [one for one in names if one not in ([NONE], [DEFAULT])]
    order, climbed = _ladder_of(perf[0]["engine"], names)
    beside = {
        name: {(r["precision"], _rungs(r)): r for r in group if r["workload"] == name} for name in ("ppl", LOGITS)
    }
    marked = sorted(
        ((*_kind(record, first, climbed, beside), record) for record in perf), key=lambda one: _order(*one, order)
    )
    base = next((r for r in eager if r["precision"] == first and r["status"] in MEASURED), None)
    rows: list[Row] = []
    last = base
    for kind, added, record in marked:
        before = last if kind in (CUMULATIVE, PRECISION) else base if kind == SINGLE else None
        key = record["precision"], _rungs(record)
        others = [beside[name].get(key) if kind != OFF else None for name in ("ppl", LOGITS)]
        pair = [across_rungs(a, record) if a is not None and a is not record else None for a in (base, before)]
        rows.append(Row(kind, added, key[1], record, *others, *(pair if kind != OFF else (None, None))))
        if kind == CUMULATIVE and record["status"] == "ok":
            last = record
        if kind == CUMULATIVE and AND not in key[1] and any(one[0] == SINGLE for one in marked):  # alone as well
            rows.append(Row(SINGLE, added, key[1], record, *others, pair[0], pair[0]))
    return sorted(rows, key=lambda row: ORDER.index(row.kind))  # stable: inside a kind as they were


def _ladder_of(engine: str, found: Sequence[Sequence[str]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The rungs of these sets in the ladder's order, and the sets that have been put one on another: none where cells
    had rungs one by one only."""
    every = {name for one in found for name in one}
    spec = _spec(engine)
    order = [rung.name for rung in spec.rungs if rung.name in every] if spec else []
    if set(order) == every:
        climbed = one_on_another(spec, order)
    else:  # the engine is not here, or another version of it
        order = list(max(found, key=len))
        climbed = [tuple(order[:at]) for at in range(1, len(order) + 1)]
    is_ladder = set(order) == every and climbed and set(climbed[-1]) in map(set, found)
    return order, climbed if is_ladder else []


def _kind(
    record: Record, first: str, climbed: Sequence[Sequence[str]], beside: Mapping[str, Mapping[Any, Record]]
) -> tuple[str, str]:
    """Its place in the ladder, and what it adds. A precision without a speed may have an accuracy."""
    names, added = _rungs(record).split(AND), record["precision"]
    if added != first:
        measured = (record, *(of.get((added, _rungs(record))) for of in beside.values()))
        return PRECISION if any(one and one["status"] != "skipped" for one in measured) else OFF, added
    if record["status"] == "skipped":
        return OFF, names[-1]
    if names in ([NONE], [DEFAULT]):
        return (BASELINE if names == [NONE] else DEFAULT), names[0]
    step = next((one for one in climbed if set(one) == set(names)), None)
    return (CUMULATIVE, step[-1]) if step else (SINGLE, names[-1])


def _order(kind: str, added: str, record: Record, order: Sequence[str]) -> tuple[int, int]:
    return ORDER.index(kind), order.index(added) if added in order else len(order)


def _spec(engine: str) -> EngineSpec | None:
    from harness.plugins import discover

    return discover().engines.get(engine)


def _work(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in (*WORK, "num_iterations"))


def _rungs(record: Record) -> str:
    return record["requested"].get("rungs", DEFAULT)


def _split(record: Record) -> tuple[Any, ...]:
    return tuple(record["requested"].get(name) for name in ("tp", "ep", "moe_backend", "quantize"))


def _place(record: Record) -> str | None:
    return (record["environment"].get("device") or {}).get("name")


def _refused(found: Comparison | None) -> dict[str, list[Any]] | None:
    return {name: list(pair) for name, pair in found.differing.items()} if found and found.differing else None


def _by(items: Iterable[Record], key: Any) -> Mapping[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
