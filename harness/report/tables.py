"""The sortable tables: precisions against BF16, engines against the fastest, and how near the hardware's limit.

A table is {id, columns, common, absent, rows}: a column has a name with its unit, and whether it holds numbers; a cell
is text, or [value to sort by, text, the reason where there is no value].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.judging.compare import UNKNOWN
from harness.precision import NATIVE
from harness.recording.records import Record
from harness.recording.stats import PERCENT
from harness.report.rows import (
    DASH,
    Cell,
    Facts,
    Row,
    brief,
    by,
    change,
    chunks,
    device,
    gain,
    has_quality,
    has_speed,
    mark,
    number,
    setup,
    subject,
    why_not,
    work,
)

Table = dict[str, Any]
TEXT = frozenset(  # columns of words; the others are numbers
    "model,weights,device,engine,config,precision,compute mode,in+out,dataset,MoE backend,compared with,verdict,phase,"
    "bound,problem,status,version,workload,reason,written,folder,key".split(",")
)
SIZES = frozenset(("batch", "in", "out", "n", "chunks", "starts"))
ALWAYS = frozenset(("engine", "precision"))  # shown though all rows agree


def precisions(facts: Facts) -> Table:
    """Every configuration: speed, and what it is of BF16's; perplexity, and how it changed."""
    return table("precisions", [_result(facts, row) for row in _telling(facts.configurations)])


def engines(facts: Facts) -> Table:
    """Engines at one precision and work, each against the fastest. Native, ok cells only, as in the ranking."""
    fast = [r for r in facts.records if r["workload"] == "perf" and r["status"] == "ok" and r["compute_mode"] == NATIVE]
    fast = [record for record in fast if has_speed(record)]
    rows = []
    groups = by(fast, lambda r: (subject(r), r["config"], r["precision"], work(r)))
    for group in groups.values():
        if len({record["engine"] for record in group}) > 1:
            first, *others = sorted(group, key=lambda record: record["mean_latency_ms"])
            rows.append(_engine(first, [None, "fastest"], DASH, DASH))
            rows += [_against(facts, first, other) for other in others]
    return table("engines", rows)


def limits(facts: Facts) -> Table:
    """The share of the hardware's limit that a step reaches, from `record["roofline"]`."""
    return table("limits", [row for record in facts.records for row in _limits(record)])


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Columns of words and sizes that say the same in every row go into `common`, numbers that no row has into
    `absent`, by their reason; where the reasons differ the column stays."""
    names = list(rows[0]) if rows else []
    told = {n: {said(row[n]) for row in rows} for n in names}
    common = [n for n in names if n in TEXT | SIZES and n not in ALWAYS and len(rows) > 1 and len(told[n]) == 1]
    absent = {
        n: why for n in names if told[n] <= {"", DASH} and (why := _one_reason(row[n] for row in rows)) is not None
    }
    kept = [n for n in names if n not in common and n not in absent]
    return {
        "id": name,
        "columns": [{"name": n, "number": n not in TEXT} for n in kept],
        "common": [[n, *told[n]] for n in common if n not in absent],
        "absent": [[why, which] for why, which in by(absent, absent.__getitem__).items() if why],
        "rows": [[row[n] for n in kept] for row in rows],
    }


def _one_reason(cells: Iterable[Any]) -> str | None:
    """Why none of these is there: "" for words, None where the reasons differ."""
    reasons = {cell[2] if isinstance(cell, list) else "" for cell in cells}
    return reasons.pop() if len(reasons) == 1 else None


def _telling(rows: Sequence[Row]) -> Iterator[Row]:
    """Those with a speed; of a setup that has none one row: works that were not measured look alike."""
    fast = {setup(row) for row in rows if has_speed(row.perf)}
    seen: set[Any] = set()
    for row in rows:
        is_accuracy = row.perf is None and row.ppl and row.ppl["workload"] == "ppl"
        if has_speed(row.perf) or setup(row) not in fast | seen or is_accuracy:
            yield row
        seen.add(setup(row))


def said(cell: Any) -> str:
    """The text of a cell."""
    return cell[1] if isinstance(cell, list) else cell


def _result(facts: Facts, row: Row) -> dict[str, Any]:
    perf, ppl, either = row.perf, row.ppl, row.either
    measured = next((r for r in (perf, ppl) if r and r["effective"]), either)
    is_fast = has_speed(perf)
    faster = facts.against_bf16(perf, "latency_ms") if is_fast else None
    changed = facts.against_bf16(ppl, "perplexity") if has_quality(ppl) else None
    return {
        "model": _model(either),
        "engine": either["engine"],
        "precision": str(either["precision"]) + mark(perf, ppl),
        "compute mode": str(measured["compute_mode"] or DASH),
        "batch": number(perf.get("batch_size") if is_fast else None, "d", why_not(perf, "latency_ms")),
        "in+out": _lengths(perf) if is_fast else DASH,
        "latency ms": _speed(perf, "mean_latency_ms", ".1f"),
        f"× bf16 ({PERCENT})": _compared(facts, perf, "speed", faster, gain),
        "TTFT ms": _mean(perf, "ttft_ms"),
        "ITL ms": _mean(perf, "itl_ms"),
        "output tok/s": _speed(perf, "output_tokens_per_sec", ".1f"),
        "n": number(((perf or {}).get("latency_ms") or {}).get("n") if is_fast else None, "d", "no timed iterations"),
        "perplexity": number(
            ppl["perplexity"] if has_quality(ppl) else None, ".4f", why_not(ppl, "perplexity", "accuracy")
        ),
        f"change % ({PERCENT})": _compared(facts, ppl, "accuracy", changed, change, "+.2f"),
        "chunks": number(chunks(ppl), "d", "no perplexity"),
        "dataset": str((ppl or {}).get("dataset") or DASH),
        "J/token": number(
            (perf or {}).get("joules_per_output_token") if is_fast else None,
            ".3f",
            str((perf or {}).get("energy_problem") or "energy was not read"),
        ),
        "MoE backend": str(measured.get("moe_backend") or DASH),
        "config": str(either["config"]),
        "device": device(either),
    }


def _model(record: Record) -> str:
    return f"{record['model']}{' (random)' if record['weights'] == 'dummy' else ''}"


def _speed(record: Record | None, name: str, form: str) -> Cell:
    return number(record.get(name) if has_speed(record) else None, form, why_not(record, name))


def _mean(record: Record | None, name: str) -> Cell:
    found = record.get(name) if has_speed(record) else None
    return number((found or {}).get("mean"), ".2f", why_not(record, name))


def _compared(facts: Facts, record: Record | None, kind: str, found: Any, of: Any, form: str | None = None) -> Cell:
    return [of(found)[0], brief(found, of, form)] if found else [None, DASH, _no_base(facts, record, kind)]


def _no_base(facts: Facts, record: Record | None, kind: str) -> str:
    """Why a record is not compared with BF16."""
    if record is None:
        return why_not(record, "", kind)
    if record["precision"] == "bf16":
        return "it is the reference"
    base = facts.base(record)
    if base is None:
        return "bf16 was not measured on the same engine, configuration and work"
    differing = facts.compare(base, record).differing
    return f"not comparable: {_differ(differing)}" if differing else why_not(record, "", kind)


def _differ(differing: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({_short(a)} / {_short(b)})" for name, (a, b) in differing.items())


def _lengths(record: Record) -> str:
    return "+".join("?" if record.get(name) is None else str(record[name]) for name in ("input_len", "output_len"))


def _short(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


def _against(facts: Facts, first: Record, other: Record) -> dict[str, Any]:
    compared = facts.compare(first, other)
    found = compared.metrics.get("latency_ms")
    if found is None:
        return _engine(
            other, [None, DASH, f"not comparable: {_differ(compared.differing)}"], first["engine"], "not comparable"
        )
    low_high = "" if found.interval is None else f" ({found.interval[0]:.3f} to {found.interval[1]:.3f})"
    return _engine(other, [found.ratio, f"{found.ratio:.3f}{low_high}"], first["engine"], found.verdict or UNKNOWN)


def _engine(record: Record, ratio: Cell, base: str, verdict: str) -> dict[str, Any]:
    return {
        "model": _model(record),
        "precision": str(record["precision"]),
        "batch": number(record.get("batch_size"), "d", "unknown"),
        "in+out": _lengths(record),
        "engine": record["engine"],
        "latency ms": _speed(record, "mean_latency_ms", ".1f"),
        f"times as long ({PERCENT})": ratio,
        "compared with": base,
        "verdict": verdict,
        "output tok/s": _speed(record, "output_tokens_per_sec", ".1f"),
        "MoE backend": str(record.get("moe_backend") or DASH),
        "config": str(record["config"]),
        "device": device(record),
    }


def _limits(record: Record) -> Iterator[dict[str, Any]]:
    for phase, found in (record.get("roofline") or {}).items():
        why = str(found.get("reason") or "not counted")
        yield {
            "model": _model(record),
            "engine": record["engine"],
            "precision": str(record["precision"]) + mark(record),
            "batch": number(record.get("batch_size"), "d", "unknown"),
            "in": number(record.get("input_len"), "d", "unknown"),
            "phase": str(phase),
            "% of the limit": number(_percent(found.get("share_of_limit")), ".1f", why),
            "bound": str(found.get("bound") or DASH),
            "% of HBM peak": number(_percent(found.get("hbm_share")), ".1f", why),
            "% of tensor peak": number(_percent(found.get("tensor_share")), ".1f", why),
            "FLOP / byte": number(intensity(found), ".1f", why),
            "problem": str(found.get("problem") or ""),
            "config": str(record["config"]),
            "device": device(record),
        }


def intensity(found: dict[str, Any]) -> float | None:
    return found["flops"] / found["bytes"] if found.get("flops") and found.get("bytes") else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
