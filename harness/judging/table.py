"""The verdict of a run: one row per measured configuration, and under it everything the row must not hide."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, TextIO

from harness.judging.compare import SAME, Difference, compare
from harness.precision import EMULATED, NATIVE, WEIGHT_ONLY
from harness.recording.records import Record, question
from harness.recording.stats import PERCENT

NOTHING = "-"
WORDS = ("engine", "config", "precision", "compute mode", "MoE backend")  # columns of text, not of numbers
LEAST_DIFFERENT = {
    "config": 2,
    "batch x in+out": 2,
    "vs bf16": 1,
    "perplexity": 1,
    "change": 1,
}  # values, for the column to be shown
WORK = ("batch_size", "input_len", "output_len")
FEW = 4  # lines of one kind
WIDTH = 200  # columns, whatever the terminal has: a line that wraps can be read, a number cut short cannot


def print_verdict(records: Sequence[Record], stream: TextIO) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=stream, width=WIDTH, highlight=False)
    for group in _by(records, itemgetter("model", "weights")):
        device = group[0]["environment"]["device"]
        place = f"{device['name']} ({device['kind']}, {device['count']} {_unit(device)})"
        console.print(escape("{model}, {weights} weights, ".format_map(group[0]) + place))
        console.print(_table(group))
    for line in notes(records):
        console.print(escape(line), soft_wrap=True)


def _table(records: Sequence[Record]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    groups = _by(records, itemgetter("engine", "config", "precision"))
    rows = [row for group in groups for row in _rows(group, records)]
    rows = list({tuple(row.values()): row for row in rows}.values())  # cells that were not measured look alike
    different = {name: {row[name] for row in rows} - {NOTHING} for name in rows[0]}
    shown = [name for name in rows[0] if len(different[name]) >= LEAST_DIFFERENT.get(name, 0)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(name.replace(" ", "\n", 1), justify="left" if name in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in shown))
    return table


def _rows(group: Sequence[Record], everyone: Sequence[Record]) -> Iterable[dict[str, str]]:
    """Rows of one engine, configuration and precision: speed and accuracy side by side."""
    speed = [record for record in group if record["workload"] == "perf"]
    accuracy = [record for record in group if record["workload"] == "ppl"]
    others = [record for record in group if record["workload"] not in ("perf", "ppl")]
    for perf, ppl in itertools.zip_longest(speed, accuracy):
        yield _row(perf, ppl, everyone)
    for record in others:
        yield _row(record, None, everyone)


def _row(perf: Record | None, ppl: Record | None, everyone: Sequence[Record]) -> dict[str, str]:
    either = perf or ppl
    measured = next((record for record in (perf, ppl) if record and record["effective"]), either)
    mark = " (!)" if any(r and (r["status"] == "mismatch" or _is_weight_only(r)) for r in (perf, ppl)) else ""
    return {
        "engine": either["engine"],
        "config": either["config"],
        "precision": either["precision"] + mark,
        "compute mode": measured["compute_mode"],
        "batch x in+out": f"{perf['batch_size']} x {perf['input_len']}+{perf['output_len']}"
        if _has_speed(perf)
        else NOTHING,
        "latency ms": _number(perf, "mean_latency_ms", ".1f"),
        "vs bf16": _speedup(_against_bf16(perf, everyone, "latency_ms")),
        "TTFT ms": _mean(perf, "ttft_ms"),
        "ITL ms": _mean(perf, "itl_ms"),
        "output tok/s": _number(perf, "output_tokens_per_sec", ".1f"),
        "perplexity": _number(ppl, "perplexity", ".4f", speed=False),
        "change": _change(_against_bf16(ppl, everyone, "perplexity")),
        "MoE backend": str(measured["moe_backend"] or NOTHING),
    }


def _has_speed(record: Record | None) -> bool:
    return (
        record is not None
        and record["status"] in ("ok", "mismatch")
        and record["compute_mode"] != EMULATED
        and "latency_ms" in record
    )


def _number(record: Record | None, name: str, form: str, speed: bool = True) -> str:
    if record is None or record["status"] not in ("ok", "mismatch") or speed and not _has_speed(record):
        return NOTHING
    value = record.get(name)
    return NOTHING if value is None else format(value, form)


def _mean(record: Record | None, name: str) -> str:
    return format(record[name]["mean"], ".2f") if _has_speed(record) and record.get(name) else NOTHING


def _against_bf16(record: Record | None, everyone: Sequence[Record], metric: str) -> Difference | None:
    """Against the same work in BF16 on the same engine and configuration; None where the two are not comparable."""
    if record is None or record["precision"] == "bf16":
        return None
    for base in everyone:
        if base["precision"] == "bf16" and base["engine"] == record["engine"] and question(base) == question(record):
            if found := compare(base, record).metrics.get(metric):
                return found
    return None


def _speedup(found: Difference | None) -> str:
    if found is None:
        return NOTHING
    return "same" if found.verdict == SAME else f"{1 / found.ratio:.2f} x"


def _change(found: Difference | None) -> str:
    return NOTHING if found is None else f"{(found.ratio - 1) * 100:+.2f} %"


def notes(records: Sequence[Record]) -> list[str]:
    """Lines under the table: what was measured, then skipped, failed and mismatched cells with their reasons, equal reasons together."""
    perf = [record for record in records if record["workload"] == "perf" and _has_speed(record)]
    shapes = {f"batch {r['batch_size']}, {r['input_len']} tokens in, {r['output_len']} out" for r in perf}
    means = "times are means over the iterations"
    lines = [f"speed at {shapes.pop()}; {means}" if len(shapes) == 1 else means] if perf else []
    for status, reason_of in (
        ("skipped", lambda record: record["reason"]),
        ("mismatch", lambda record: record["reason"] + "; kept, not compared"),
        ("failed", lambda record: f"{record['failure']['class']}: {record['failure']['message']}"),
    ):
        reasons: dict[str, list[str]] = {}
        for record in records:
            if record["status"] == status:
                what = f"{record['engine']} {record['model']} {record['precision']} {record['workload']}"
                reasons.setdefault(reason_of(record), []).append(what)
        lines += [f"{status} {', '.join(dict.fromkeys(cells))}: {reason}" for reason, cells in reasons.items()]
    lines += ranking(records)
    lines += _noise(records)
    if weak := _weight_only(records):
        lines.append(
            f"(!) {', '.join(weak)}: weight-only, stored low and multiplied in 16 bit; not ranked under that label"
        )
    if any(record["compute_mode"] == EMULATED for record in records):
        lines.append("emulated rows have no speed: values pass through the format, products are computed in BF16")
    return lines


def ranking(records: Sequence[Record]) -> list[str]:
    """The fastest of each work against the next that is comparable with it; where none is, what keeps them apart.
    Only cells that computed what their label says take part."""
    speed = [r for r in records if r["workload"] == "perf" and r["status"] == "ok" and r["compute_mode"] == NATIVE]
    lines = []
    for group in _by(speed, question):
        if len(group) < 2:
            continue
        first, *others = sorted(group, key=lambda record: record["mean_latency_ms"])
        second = next((other for other in others if compare(first, other).comparable), others[0])
        where = "batch {}, {}+{}".format(*(first[name] for name in WORK))
        names = [f"{record['engine']} {record['precision']}" for record in (first, second)]
        found = compare(first, second)
        if not found.comparable:
            what = ", ".join(f"{name} ({a} / {b})" for name, (a, b) in found.differing.items())
            lines.append(f"no ranking at {where}: {names[0]} and {names[1]} are not comparable: {what}")
            continue
        latency = found.metrics["latency_ms"]
        if latency.verdict == SAME:
            lines.append(f"no difference at {where} between {names[0]} and {names[1]}")
        else:
            low_high = latency.interval
            noise = "noise unknown" if low_high is None else "{}: {:.3f} to {:.3f}".format(PERCENT, *low_high)
            lines.append(
                f"fastest at {where}: {names[0]}; {names[1]} takes {latency.ratio:.3f} times as long ({noise})"
            )
    return lines


def _noise(records: Sequence[Record]) -> list[str]:
    """What makes speeds hard to trust: throttling, clocks, other programs, drift. The first few; records have them all."""
    said = [
        f"noise {record['engine']} {record['precision']} batch {record['batch_size']}: {line}"
        for record in records
        for line in record.get("noise") or ()
    ]
    more = [f"noise: {len(said) - FEW} more such lines in the records"] if len(said) > FEW else []
    return said[:FEW] + more


def _weight_only(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(f"{r['engine']} {r['precision']}" for r in records if _is_weight_only(r)))


def _is_weight_only(record: Record) -> bool:
    return record["compute_mode"] == WEIGHT_ONLY and record["status"] in ("ok", "mismatch")


def _by(records: Sequence[Record], key: Callable[[Record], Any]) -> Iterable[list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups.values()


def _unit(device: dict[str, Any]) -> str:
    return ("GPU" if device["kind"] == "cuda" else "core") + ("" if device["count"] == 1 else "s")
