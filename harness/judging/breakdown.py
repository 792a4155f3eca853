"""Where a step's time goes and how near the hardware's limit it comes, for the terminal: a row per cell and phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from harness.recording.records import Record

NAMES = {
    "expert_gemm": "expert GEMM",
    "dense_gemm": "dense GEMM",
    "gate_gemm": "router GEMM",
    "attention": "attention",
    "routing_permute": "routing",
    "quant_dequant": "quantise",
    "norm": "norm",
    "comm": "comm",
}  # what is not here is "other"
LIMITS = (
    "of the hardware's limit (roofline from config.json and the data sheet): bytes over the memory's peak, or products"
)
OF_SUM = "of a CPU's operations, in percent of their summed time; the ceiling is that of the operations alone"
OF_WALL = (
    "in percent of a step's wall time; idle: nothing ran; ceiling: how many times as fast with expert GEMMs for free"
)
MIXED = "outside"  # the phase of steps that are neither: some requests are read while others already go on
WIDTH = 200


def print_breakdown(records: Sequence[Record], stream: TextIO) -> None:
    """Nothing where nothing was profiled and no peak is known."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=stream, width=WIDTH, highlight=False)
    if rows := list(_limits(records)):
        console.print(escape(LIMITS), soft_wrap=True)
        console.print(_table(rows))
    for title, is_wall in ((OF_WALL, True), (OF_SUM, False)):
        if rows := [row for row, wall in _rows(records) if wall == is_wall]:
            console.print(escape(f"where the time goes, {title}"), soft_wrap=True)
            console.print(_table(rows))
    for line in _notes(records):
        console.print(escape(line), soft_wrap=True)


def _limits(records: Sequence[Record]) -> Iterator[dict[str, str]]:
    for record in records:
        found = record.get("roofline") or {}
        shares = {phase: one["share_of_limit"] for phase, one in found.items() if one["share_of_limit"] is not None}
        if shares:
            yield {
                "engine": record["engine"],
                "precision": record["precision"],
                "batch": str(record.get("batch_size") or "-"),
                **{
                    phase: f"{shares[phase]:.1%} of {found[phase]['bound']}" if phase in shares else "-"
                    for phase in found
                },
            }


def _rows(records: Sequence[Record]) -> Iterator[tuple[dict[str, str], bool]]:
    """Cells of a row, and whether they are shares of wall time."""
    for record in records:
        phases = (record.get("profile") or {}).get("phases", {})
        for phase in ("prefill", "decode"):
            if phase in phases and not (phase == "prefill" and MIXED in phases):
                yield _row(record, phase, phases[phase]), phases[phase]["idle_ms"] is not None


def _row(record: Record, phase: str, found: Mapping[str, Any]) -> dict[str, str]:
    is_wall = found["idle_ms"] is not None
    shares = dict.fromkeys([*NAMES.values(), "other"], 0.0)
    for category, share in found["categories"].items():
        shares[NAMES.get(category, "other")] += share["percent_of_window" if is_wall else "percent"]
    step = found["ms_per_step"] if is_wall else sum(share["ms_per_step"] for share in found["categories"].values())
    return {
        "engine": record["engine"],
        "precision": record["precision"],
        "batch": str(record.get("batch_size") or "-"),
        "phase": phase,
        "ms / step": f"{step:.2f}",
        **{name: f"{share:.1f}" if share else "-" for name, share in shares.items()},
        **({"idle": f"{100 * found['idle_ms'] / step:.1f}"} if is_wall else {}),
        "ceiling": _ceiling(found, is_wall),
    }


def _ceiling(found: Mapping[str, Any], is_wall: bool) -> str:
    low, high = (found["amdahl"]["lower"], found["amdahl"]["upper"]) if is_wall else (found["max_speedup"],) * 2
    if low is None or high is None:
        return "-"
    return f"{low:.2f} x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f} x"


def _table(rows: Sequence[dict[str, str]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    for name in shown:
        is_text = name in ("engine", "precision", "phase")
        table.add_column(name.replace(" ", "\n", 1), justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in shown))
    return table


def _notes(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        profile = record.get("profile") or {}
        what = f"profile of {record['engine']} {record['precision']} {record['workload']}"
        if mixed := profile.get("phases", {}).get(MIXED):
            yield f"{what}, batch {record['batch_size']}: prefill shared {mixed['steps']} steps with decode, so it has no row"
        if "problem" in profile:
            yield f"{what}: {profile['problem']}"
        for problem in profile.get("problems", ()):
            yield f"{what} is not to be believed: {problem}"
        for warning in profile.get("warnings", ()):
            yield f"{what}: {warning}"
