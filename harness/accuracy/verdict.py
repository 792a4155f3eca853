"""What a validation says, for a person and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from harness.accuracy.baseline import Baseline
from harness.accuracy.ladder import BOTH, QUANTISATION, Rung, rungs
from harness.accuracy.words import in_words
from harness.judging.table import WIDTH
from harness.precision import EMULATED, WEIGHT_ONLY
from harness.recording.records import Record

HEADS = (
    "cause",
    "what",
    "beside",
    "KL mean",
    "KL p99",
    "KL max",
    "reverse KL",
    "top-1",
    "top-k",
    "NLL",
    "same experts",
)
MODES = {
    EMULATED: "every value passes through the format, products are computed in BF16",
    WEIGHT_ONLY: "stored low and multiplied in 16 bit, so not the accuracy of the format's own arithmetic",
}
SHOWN = 3  # divergences and suspects in words


def to_json(baseline: Baseline, records: Sequence[Record]) -> dict[str, Any]:
    """`passed` is null where no record says; records are those of the output folder."""
    verdicts = [record["logit_matching"]["passed"] for record in _measured(records) if record["logit_matching"]]
    decided = [verdict for verdict in verdicts if verdict is not None]
    return {
        "baseline": {"path": str(baseline.path), "sections": list(baseline.sections), **baseline.about},
        "passed": all(decided) if decided else None,
        "ladder": [vars(rung) for rung in rungs(baseline, records)],
        "records": list(records),
    }


def print_verdict(baseline: Baseline, records: Sequence[Record], stream: TextIO) -> None:
    """The ladder of causes, and under it what a table cannot hold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=stream, width=WIDTH, highlight=False)
    found = rungs(baseline, records)
    console.print(escape(f"{baseline.about['model']} beside {baseline.reference}: {baseline.path}"))
    if found:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in HEADS:
            table.add_column(head, justify="left" if head in HEADS[:3] else "right", no_wrap=True)
        for rung in found:
            table.add_row(*map(escape, _cells(rung)))
        console.print(table)
    for line in _notes(baseline, records, found):
        console.print(escape(line))


def _cells(rung: Rung) -> list[str]:
    found = rung.divergence
    forward, routing = found["kl_forward"], found["routing"]
    return [
        rung.cause,
        rung.what,
        rung.beside,
        *(_number(forward[name]) for name in ("mean", "p99", "max")),
        _number(found["kl_reverse"]["mean"]),
        f"{found['top1_agreement']:.2%}",
        f"{found['topk_overlap']['mean']:.2%} of {found['topk_overlap']['k']}",
        f"{found['nll_difference']['mean']:+.5f}",
        "-" if routing is None else f"{routing['agreement']:.2%}",
    ]


def _notes(baseline: Baseline, records: Sequence[Record], found: Sequence[Rung]) -> list[str]:
    lines = []
    if found:
        first = found[0].divergence
        lines.append(f"{first['tokens']} tokens; KL and NLL in nats per token; KL is {first['kl_is']}")
    for mode, meaning in MODES.items():
        if whats := dict.fromkeys(rung.what for rung in found if rung.compute_mode == mode):
            lines.append(f"{mode.replace('_', '-')}: {', '.join(whats)}: {meaning}")
    for rung in found:
        lines += _of_rung(rung)
    for record in _measured(records):
        lines.append(_matching(record))
    lines += [f"{_name(r)} is no {r['precision']}: {r['reason']}" for r in records if r["status"] == "mismatch"]
    lines += [f"skipped {_name(record)}: {record['reason']}" for record in records if record["status"] == "skipped"]
    lines += [
        f"failed {_name(record)}: {record['failure']['class']}: {record['failure']['message']}"
        for record in records
        if record["status"] == "failed"
    ]
    if any(rung.cause == BOTH for rung in found) and not any(rung.cause == QUANTISATION for rung in found):
        lines.append("engine and quantisation error are not told apart: add bf16 to --precision")
    return lines


def _of_rung(rung: Rung) -> list[str]:
    where, first, routing = (
        f"{rung.what} beside {rung.beside}",
        rung.divergence["first_divergence"],
        rung.divergence["routing"],
    )
    lines = []
    if first["diverged"]:
        lines.append(
            f"{where}: {first['diverged']} of {first['sequences']} sequences diverge, the earliest at token "
            f"{first['earliest_token']} of sequence {first['of_sequence']}"
        )
    if routing:
        worst = min(routing["layers"], key=lambda layer: layer["agreement"])
        if worst["changed"]:
            lines.append(
                f"{where}: experts changed for {routing['changed']:.2%} of the tokens in some layer, most in layer "
                f"{worst['layer']} ({worst['changed']:.2%}; imbalance {worst['imbalance_reference']:.2f} to "
                f"{worst['imbalance']:.2f})"
            )
    if infinite := rung.divergence["kl_forward"]["infinite"]:
        lines.append(f"{where}: KL is infinite at {infinite} tokens, which the figures leave out")
    lines += [f"{where}: suspect {in_words(suspect)}" for suspect in rung.divergence["suspects"][:SHOWN]]
    return lines


def _matching(record: Record) -> str:
    found = record["logit_matching"]
    if found is None:
        return f"{_name(record)}: logit matching not done: {record['logit_matching_unread']}"
    checked = ", ".join(check["k"] for check in found["checks"] if check["passed"] is not None)
    verdict = {True: "passed", False: f"failed: {found['why']}", None: f"not decided: {found['why']}"}[found["passed"]]
    not_done = f", not at k = {', '.join(found['not_checked'])}" if found["not_checked"] else ""
    return f"{_name(record)}: logit matching over {found['tokens_checked']} tokens at k = {checked or 'none'}{not_done}: {verdict}"


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["status"] in ("ok", "mismatch")]


def _name(record: Record) -> str:
    return f"{record['engine']} {record['precision']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 0.001 else f"{value:.5f}"
