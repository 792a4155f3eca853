"""The ladder of optimisations: what each rung is worth beside plain eager and beside the step before, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.judging.compare import SAME
from harness.ladder.rows import Row, limit, memory, middle, speedups, why
from harness.ladder.show import GIB, kl_words, title
from harness.ladder.steps import CUMULATIVE, OFF, PRECISION
from harness.recording.records import Record
from harness.recording.stats import rounds_of
from harness.report.rows import DASH, Cell, Facts, chunks, device, number
from harness.report.tables import Table, table

WORDS = ("rung", "changes output")  # columns of text that only this table has


def ladder(facts: Facts) -> Table:
    """A row per step and work; what could not be on has its reason in place of numbers."""
    every: list[dict[str, Any]] = []
    for row in facts.steps:
        cells = _cells(row)
        if row.kind != OFF or cells not in every:  # what is off is off in every work
            every.append(cells)
    found = table("ladder", every)
    columns = [{**one, "number": False} if one["name"] in WORDS else one for one in found["columns"]]
    return {**found, "columns": columns}


def _cells(row: Row) -> dict[str, Any]:
    record, eager, step = row.perf, speedups(row.baseline), speedups(row.before)
    is_step = row.kind in (CUMULATIVE, PRECISION)
    nothing = why(record) or ("it is what the others are compared with" if row.baseline is None else _refusal(row))
    used = memory(record)
    return {
        "model": record["model"],
        "device": device(record),
        "engine": record["engine"],
        "precision": record["precision"],
        "batch": number(None if row.kind == OFF else record.get("batch_size"), "d", why(record) or "unknown"),
        "in+out": DASH if row.kind == OFF else f"{record.get('input_len')}+{record.get('output_len')}",
        "starts": number(None if row.kind == OFF else len(rounds_of(record)), "d", why(record) or "unknown"),
        "rung": f"off: {row.added}" if row.kind == OFF else title(row),
        "changes output": "yes" if row.changes_output and row.kind != OFF else "",
        "ITL × eager": _times(eager.get("itl_ms"), nothing),
        "ITL × step": _times(step.get("itl_ms") if is_step else None, nothing if is_step else "it is no step up"),
        "latency × eager": _times(eager.get("latency_ms"), nothing),
        "TTFT × eager": _times(eager.get("ttft_ms"), nothing),
        "TTFT ms": _number(middle(record, "ttft_ms"), ".2f", nothing),
        "ITL ms": _number(middle(record, "itl_ms"), ".3f", nothing),
        "output tok/s": _number(record.get("output_tokens_per_sec"), ".1f", nothing),
        "prefill of limit %": _share(record, "prefill"),
        "decode of limit %": _share(record, "decode"),
        "memory GiB": _number(used and used / GIB, ".1f", why(record) or "no GPU whose memory NVML tells"),
        "J / token": _number(record.get("joules_per_output_token"), ".3f", record.get("energy_problem") or nothing),
        "load s": _number(record.get("load_seconds"), ".1f", nothing),
        "perplexity": _number(row.ppl.get("perplexity") if row.ppl else None, ".4f", "no perplexity was measured"),
        "chunks": _number(chunks(row.ppl), "d", "no perplexity was measured"),
        "KL prefill": _kl(row, "prefill"),
        "KL decode": _kl(row, "decode"),
    }


def _times(found: Mapping[str, Any] | None, nothing: str) -> Cell:
    if not found:
        return [None, DASH, nothing]
    form = ".1f" if found["times"] >= 10 else ".2f"
    bounds = " ({}–{})".format(*(format(one, form) for one in found["interval"])) if found["interval"] else ""
    return [found["times"], f"{found['times']:{form}} ×{bounds}{', same' if found['verdict'] == SAME else ''}"]


def _number(value: float | None, form: str, nothing: str) -> Cell:
    return [None, DASH, nothing or "not measured"] if value is None else [value, format(value, form)]


def _share(record: Record, phase: str) -> Cell:
    found = limit(record, phase)
    if found is None:
        return [None, DASH, ((record.get("roofline") or {}).get(phase) or {}).get("reason") or "no roofline"]
    return [100 * found["share"], f"{100 * found['share']:.1f} of {found['bound']}"]


def _kl(row: Row, phase: str) -> Cell:
    value = row.divergence(phase)
    if value is None:
        return [None, DASH, why(row.kl) if row.kl else "not measured"]
    return [value, kl_words(row, phase)]


def _refusal(row: Row) -> str:
    return "not comparable: " + ", ".join(_names(row)) if row.baseline else ""


def _names(row: Row) -> Iterator[str]:
    yield from (row.baseline.differing if row.baseline else {})
