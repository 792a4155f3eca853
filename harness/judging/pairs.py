"""Two sets of records, matched: what of A belongs to what of B, what each pair says, and what has no partner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.judging.compare import Comparison, common_metrics, compare, regressions
from harness.recording import importers, records
from harness.recording.records import Record, question
from harness.recording.stats import PERCENT

FEW = 4  # conditions to name one by one
LABEL = ("engine", "precision")


@dataclass(frozen=True)
class Pair:
    a: Record
    b: Record
    comparison: Comparison


@dataclass(frozen=True)
class Pairs:
    pairs: list[Pair]
    alone: list[tuple[str, Record]]  # "A" or "B", and a record without a partner

    @property
    def comparable(self) -> bool:
        return bool(self.pairs) and not self.alone and all(pair.comparison.comparable for pair in self.pairs)

    def regressions(self, tolerance: float) -> list[tuple[Pair, str]]:
        return [(pair, name) for pair in self.pairs for name in regressions(pair.comparison, tolerance)]

    def labels(self) -> list[str]:
        """One for each pair, no two alike: short where that is enough, else with configuration, weights and dataset."""
        short, long = ([_both(pair, say) for pair in self.pairs] for say in (_about, _all_about))
        names = [brief if short.count(brief) == 1 else full for brief, full in zip(short, long)]
        return [n if names.count(n) == 1 else f"{n} #{names[: i + 1].count(n)}" for i, n in enumerate(names)]

    def to_json(self) -> dict[str, Any]:
        """`{comparable, differing, metrics}` of the one pair; of several the names carry the pair's label."""
        metrics, differing = {}, {}
        for pair, label in zip(self.pairs, self.labels()):
            prefix = f"{label}: " if len(self.pairs) > 1 else ""
            metrics |= {prefix + name: asdict(found) for name, found in pair.comparison.metrics.items()}
            differing |= {prefix + name: {"a": a, "b": b} for name, (a, b) in pair.comparison.differing.items()}
        differing |= {
            _about(record): {side.lower(): record["status"], other: "no such record"}
            for side, record in self.alone
            for other in ("b" if side == "A" else "a",)
        }
        return {"comparable": self.comparable, "differing": differing, "metrics": metrics}

    def text(self, tolerance: float) -> str:
        worse = {(id(pair), name) for pair, name in self.regressions(tolerance)}
        lines: list[str] = []
        for pair, label in zip(self.pairs, self.labels()):
            lines += [label, *_verdict(pair, worse), ""]
        lines += [f"only in {side}: {_about(record)} ({record['status']})" for side, record in self.alone]
        return "\n".join(lines).rstrip() or "nothing to compare"


def read(path: Path) -> list[Record]:
    """Records of an output folder, a record's own file, or another tool's results. Raises UsageError for anything
    else, and for a folder without records."""
    if os.path.isdir(path):
        if found := list(records.read_folder(path)):
            return found
        raise UsageError(f"{str(path)!r}: no records in it; give an output folder of `harness run`, or a record")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError):
        content = None
    return [content] if records.is_record(content) else importers.read(path)


def pair_up(a: Sequence[Record], b: Sequence[Record], assume: Iterable[str] = ()) -> Pairs:
    """Two single records are a pair whatever they are. Else equal work is matched, first that of equal engine and
    precision, then what is left one to one. Cells that were skipped on both sides are left out, and workloads whose
    results are no metric."""
    if len(a) == len(b) == 1:
        return Pairs([Pair(a[0], b[0], compare(a[0], b[0], assume))], [])
    left_a, left_b = _by_work(a), _by_work(b)
    pairs: list[Pair] = []
    alone: list[tuple[str, Record]] = []
    for work in dict.fromkeys([*left_a, *left_b]):
        ours, theirs = left_a.get(work, []), left_b.get(work, [])
        for x, y in _matches(ours, theirs):
            ours, theirs = [r for r in ours if r is not x], [r for r in theirs if r is not y]
            is_measured = x["status"] == y["status"] == "ok"
            if not x["status"] == y["status"] == "skipped" and (common_metrics(x, y) or not is_measured):
                pairs.append(Pair(x, y, compare(x, y, assume)))
        alone += [("A", record) for record in ours if record["status"] != "skipped"]
        alone += [("B", record) for record in theirs if record["status"] != "skipped"]
    return Pairs(pairs, alone)


def _matches(a: Sequence[Record], b: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    taken: set[int] = set()
    for names in (("key",), (*LABEL, "config"), LABEL, ("precision",), ("engine",), ()):
        for x in a:
            same = [y for y in b if id(y) not in taken and all(x[name] == y[name] for name in names)]
            if id(x) not in taken and len(same) == 1:
                taken |= {id(x), id(same[0])}
                yield x, same[0]


def _by_work(found: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in found:
        groups.setdefault(question(record), []).append(record)
    return groups


def _both(pair: Pair, say: Callable[[Record], str]) -> str:
    a, b = say(pair.a), say(pair.b)
    return a if a == b else f"{a} -> {b}"


def _about(record: Record) -> str:
    words = [record[name] for name in ("engine", "engine_version", "model", "precision", "workload")]
    if record.get("output_len"):
        words.append(f"batch {record.get('batch_size')}, {record.get('input_len')}+{record['output_len']}")
    return " ".join(str(word) for word in words if word is not None)


def _all_about(record: Record) -> str:
    details = [record["config"], f"{record['weights']} weights", record.get("dataset")]
    if record.get("input_len"):
        details.append(f"{record['input_len']} tokens in")
    return f"{_about(record)} ({', '.join(str(detail) for detail in details if detail is not None)})"


def _verdict(pair: Pair, worse: set[tuple[int, str]]) -> Iterator[str]:
    found = pair.comparison
    if found.told:
        yield "  differ, as they may: " + ", ".join(
            f"{name} {_shown(a)} -> {_shown(b)}" for name, (a, b) in found.told.items()
        )
    if not found.comparable:
        yield "  not comparable:"
        for name, (a, b) in found.differing.items():
            yield f"    {name}: {_shown(a)} -> {_shown(b)}"
        unknown = [name for name, values in found.differing.items() if None in values]
        if unknown and len(unknown) == len(found.differing):
            yield f"  if you know that they agree: --assume {','.join(unknown) if len(unknown) <= FEW else 'all'}"
        return
    rows = [("metric", "A", "B", "B / A", f"{PERCENT} interval", "verdict")]
    for name, d in found.metrics.items():
        interval = "unknown" if d.interval is None else f"{d.interval[0]:.4f} .. {d.interval[1]:.4f}"
        mark = " (regression)" if (id(pair), name) in worse else ""
        rows.append((name, f"{d.a:.4f}", f"{d.b:.4f}", f"{d.ratio:.4f}", interval, d.verdict + mark))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        left, *numbers, verdict = (cell.rjust(width) for cell, width in zip(row, widths))
        yield "  " + "  ".join([left.strip().ljust(widths[0]), *numbers, verdict.strip()])
    if found.noise:
        yield f"  noise in the intervals of speed: {found.noise}"


def _shown(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "..."
