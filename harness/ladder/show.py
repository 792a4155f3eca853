"""A ladder for the terminal: a table per work, and under it what a table cannot hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from harness.cells import AND
from harness.judging.compare import SAME
from harness.judging.table import WIDTH
from harness.ladder.rows import Row, ladders, limit, memory, middle, speedups, why
from harness.ladder.steps import BASELINE, CUMULATIVE, OFF, PRECISION, SINGLE
from harness.recording.records import MEASURED, Record
from harness.recording.stats import PERCENT

NOTHING = "-"
GIB = 1 << 30
TITLES = {BASELINE: "", CUMULATIVE: "+ ", SINGLE: "only ", PRECISION: "top, in "}
SMALL_KL = 1e-3
MUCH = 3  # times the KL of every step below


def print_ladder(records: Sequence[Record], stream: TextIO) -> None:
    """Nothing where no record is of a ladder. What goes for all works is said once, below the last."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=stream, width=WIDTH, highlight=False)
    found = [(rows, notes(rows)) for rows in ladders(records)]
    common = [line for line in (found[0][1] if found else ()) if all(line in lines for _, lines in found)]
    for rows, lines in found:
        one = rows[0].perf
        place = one["environment"]["device"]["name"]
        about = f"{one['engine']} {one['model']}, {one['weights']} weights, {one['precision']}, {place}: batch "
        console.print(escape(f"{about}{one['batch_size']}, {one['input_len']} tokens in, {one['output_len']} out"))
        steps = [row for row in rows if row.kind != OFF]
        console.print(_table([{**_step(row), **_speed(row)} for row in steps]))
        console.print(_table([{**_step(row), **_cost(row)} for row in steps]))
        for line in (line for line in lines if line not in common):
            console.print(escape(line), soft_wrap=True)
    for line in common:
        console.print(escape(line), soft_wrap=True)
    if found:
        console.print()


def notes(rows: Sequence[Row]) -> list[str]:
    """What the rows must not hide: what is not on and why, what was cached, how sure the ratios are."""
    lines = [
        "times are medians; × in ITL and latency: times as fast as the step before, and as plain eager (none); "
        f"{PERCENT} intervals"
    ]
    lines += _covered(rows)
    lines += _once(f"noise of {title(row)}: {row.perf['noise'][0]}" for row in rows if row.perf.get("noise"))
    lines += _once(f"perplexity: {_windows(row.ppl)}" for row in rows if row.ppl and row.ppl.get("perplexity"))
    if any(row.changes_output for row in rows if row.kind != OFF):
        lines.append("*: changes the output beyond the order of sums, and so of every step above it")
    lines += (f"{r.added} replaces {', '.join(r.replaces)}: off from there on up" for r in rows if r.replaces)
    lines += _silent(rows)
    lines += _unscored(rows)
    lines += _once(f"not compared, {title(row)}: {_refusal(row)}" for row in rows if _refusal(row))
    lines += _once(
        f"{'no speed of' if row.perf['status'] == 'skipped' else row.perf['status']} {title(row)}: {why(row.perf)}"
        for row in rows
        if row.kind != OFF and why(row.perf)
    )
    lines += _off([why(row.perf) for row in rows if row.kind == OFF])
    untold = {title(row): why(row.kl) for row in rows if row.kl and not row.kl.get("kl")}
    untimed = {title(row): _untimed(row.perf) for row in rows if _untimed(row.perf)}
    lines += (f"no KL of {names}: {reason}" for names, reason in _by_reason(untold))
    lines += (f"no ITL of {names}: {reason}" for names, reason in _by_reason(untimed))
    return [*lines, *_cached(rows)]


def title(row: Row) -> str:
    mark = "*" if row.changes_output else ""
    needed = [name for name in row.rungs.split(AND) if name != row.added] if row.kind == SINGLE else []
    return f"{TITLES.get(row.kind, '')}{row.added}{mark}{f' with {AND.join(needed)}' if needed else ''}"


def times(found: Mapping[str, Any] | None, with_interval: bool = True) -> str:
    """`1.52 x (1.49-1.55)`; `same` where the interval holds 1."""
    if not found:
        return NOTHING
    number, interval = found["times"], found["interval"]
    bounds = f" ({interval[0]:{_form(number)}}-{interval[1]:{_form(number)}})" if with_interval and interval else ""
    return f"{number:{_form(number)}} x{bounds}{' same' if found['verdict'] == SAME else ''}"


def kl_words(row: Row, phase: str) -> str:
    """Mean KL in nats per token."""
    value = row.divergence(phase)
    return NOTHING if value is None else f"{value:.1e}" if 0 < value < SMALL_KL else f"{value:.4f}"


def _step(row: Row) -> dict[str, str]:
    return {"rung": title(row) + (" (!)" if row.perf["status"] not in ("ok", "skipped") else "")}


def _speed(row: Row) -> dict[str, str]:
    record, eager, step = row.perf, speedups(row.baseline), speedups(row.before)
    return {
        "TTFT ms": _number(middle(record, "ttft_ms"), ".2f"),
        "ITL ms": _number(middle(record, "itl_ms"), ".3f"),
        "output tok/s": _number(record.get("output_tokens_per_sec"), ".1f"),
        "ITL × step": times(step.get("itl_ms")) if row.kind in (CUMULATIVE, PRECISION) else NOTHING,
        "ITL × none": times(eager.get("itl_ms")),
        "latency × step": times(step.get("latency_ms"), False) if row.kind in (CUMULATIVE, PRECISION) else NOTHING,
        "latency × none": times(eager.get("latency_ms")),
        "TTFT × none": times(eager.get("ttft_ms"), False),
    }


def _cost(row: Row) -> dict[str, str]:
    """What it needs, what of the hardware it reaches, and what it does to the output."""
    record = row.perf
    used, joules = memory(record), record.get("joules_per_output_token")
    return {
        "prefill of limit": _share(limit(record, "prefill")),
        "decode of limit": _share(limit(record, "decode")),
        "memory GiB": _number(used and used / GIB, ".1f"),
        "J / token": _number(joules, ".3f"),
        "load s": _number(record.get("load_seconds"), ".1f"),
        "perplexity": _number(row.ppl.get("perplexity") if row.ppl else None, ".4f"),
        "KL prefill": kl_words(row, "prefill"),
        "KL decode": kl_words(row, "decode"),
    }


def _covered(rows: Sequence[Row]) -> Iterator[str]:
    """Which noise the intervals cover; a step that lacks a round, as after Ctrl-C, covers less than the others."""
    said = {title(row): row.baseline.noise for row in rows if row.baseline and row.baseline.noise}
    for place, (names, noise) in enumerate(_by_reason(said)):
        yield f"noise in {f'those of {names}' if place else 'the intervals'}: {noise}"


def _cached(rows: Sequence[Row]) -> Iterator[str]:
    """Steps whose prefix cache held a part of the prompts, which is what their TTFT means, and those where it held none."""
    hits = {title(row): (row.perf.get("conditions") or {}).get("prefix_cache_hits") for row in rows}
    if cached := [name for name, hit in hits.items() if hit]:
        yield f"TTFT of prompts that were cached, as every iteration repeats them: {', '.join(cached)}"
    on = {title(row) for row in rows if (row.perf["effective"] or {}).get("prefix_cache")}
    if missed := [name for name, hit in hits.items() if hit == 0 and name in on]:
        yield f"prefix cache on, and no prompt's beginning was in it: {', '.join(missed)}"


def _off(reasons: Sequence[str]) -> Iterator[str]:
    """Rungs with one reason in one line; what is off for no rung of its own is said as it is."""
    own = dict(one.removeprefix("rung ").partition(": ")[::2] for one in reasons if one.startswith("rung "))
    yield from (f"off: {names}: {reason}" for names, reason in _by_reason(own))
    yield from _once(f"off: {reason}" for reason in reasons if not reason.startswith("rung "))


def _by_reason(reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The names that share a reason, and it; in the order of the first of them."""
    for reason in dict.fromkeys(reasons.values()):
        yield ", ".join(name for name, why in reasons.items() if why == reason), reason


def _windows(record: Record) -> str:
    return f"{len(record['per_chunk_ppls'])} windows of {record.get('dataset')}"


def _untimed(record: Record) -> str:
    """Why a measured step has no ITL; empty where it has one."""
    if record["status"] not in MEASURED or record.get("itl_ms") or record.get("output_len") == 1:
        return ""
    unread = (record["effective"].get("unread") or {}).get("itl_ms")
    return unread or "tokens that come together have one time; latency and output tok/s speak"


def _silent(rows: Sequence[Row]) -> Iterator[str]:
    """Rungs that are not said to change the output, after which the logits lie much further from plain eager's."""
    for phase in ("prefill", "decode"):
        worst = SMALL_KL
        for row in (row for row in rows if row.kind == CUMULATIVE):
            found = row.divergence(phase)
            if found is not None and found > MUCH * worst and not row.changes_output:
                yield f"look at {title(row)}: not said to change the output, yet its {phase} KL is {found:.4f}"
            worst = max(worst, found or 0.0)


def _unscored(rows: Sequence[Row]) -> Iterator[str]:
    """Rungs that change the output, and not one bit of the perplexity."""
    for before, row in zip(rows, rows[1:]):
        scored = [one.ppl.get("per_chunk_ppls") if one.ppl else None for one in (before, row)]
        if row.kind == CUMULATIVE and row.changes_output and scored[0] and scored[0] == scored[1]:
            yield f"scoring does not go through {title(row)}, so its perplexity says nothing of it; KL decode does"


def _table(rows: Sequence[dict[str, str]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
    for name in shown:
        table.add_column(name.replace(" ", "\n", 1), justify="left" if name == "rung" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in shown))
    return table


def _refusal(row: Row) -> str:
    differing = row.baseline.differing if row.baseline and row.perf["status"] == "ok" else {}
    return ", ".join(f"{name} ({a} / {b})" for name, (a, b) in differing.items())


def _once(lines: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(lines)


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _share(found: Mapping[str, Any] | None) -> str:
    return f"{found['share']:.0%} {found['bound']}" if found else NOTHING


def _form(number: float) -> str:
    return ".1f" if number >= 10 else ".2f"
