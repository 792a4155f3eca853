"""What the parts of a report share: subjects, setups and works of the records, comparisons, and how numbers are said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.cells import DEFAULT
from harness.judging.compare import SAME, UNKNOWN, Comparison, Difference, compare
from harness.ladder.rows import Row as Step
from harness.ladder.rows import ladders
from harness.precision import EMULATED, PRECISIONS, WEIGHT_ONLY
from harness.recording.records import Record, question
from harness.recording.stats import PERCENT
from harness.report.read import MEASURED, Entry

Cell = list  # [value to sort by or None, text, reason where it is None]
DASH = "–"
SETUP = ("engine", "config", "precision")
QUALITY = "perplexity"
NAMES = ("fp32", "bf16", *(name for name in PRECISIONS if name not in ("fp32", "bf16")))  # from wide to narrow


@dataclass(frozen=True)
class Row:
    """A configuration at one work: its speed, its accuracy, either may be missing."""

    perf: Record | None
    ppl: Record | None

    @property
    def either(self) -> Record:
        return self.perf or self.ppl


class Facts:
    """The current records of a report, looked up rather than searched: there may be thousands."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = sorted((entry for entry in entries if entry.is_current), key=lambda one: _order(one.record))
        self.records = [entry.record for entry in self.entries]
        self.profiled = _profiled(entries)
        self.rows = list(_rows(self.records))
        self._bases = {_base_key(r): r for r in reversed(self.records) if r["precision"] == "bf16"}
        self._light = {id(record): _light(record) for record in self.records}
        self._compared: dict[tuple[int, int], Comparison] = {}

    @cached_property
    def steps(self) -> list[Step]:
        """Of every ladder among the records."""
        return [step for steps in ladders(self.records) for step in steps]

    @cached_property
    def configurations(self) -> list[Row]:
        """The rows without the steps of a ladder, which have a table of their own; but for the engine's default."""
        climbed = [step.perf for step in self.steps if step.rungs != DEFAULT]
        steps, setups = set(map(id, climbed)), {setup(Row(perf, None)) for perf in climbed}
        return [row for row in self.rows if not (id(row.perf) in steps or row.perf is None and setup(row) in setups)]

    def compare(self, a: Record, b: Record) -> Comparison:
        """`harness.judging.compare.compare` in latency and perplexity, once for each pair."""
        key = id(a), id(b)
        if key not in self._compared:
            self._compared[key] = compare(self._light[id(a)], self._light[id(b)])
        return self._compared[key]

    def light(self, records: Iterable[Record]) -> list[Record]:
        """Without the token times, which a ranking does not read and thousands of comparisons would add up."""
        return [self._light[id(record)] for record in records]

    def base(self, record: Record | None) -> Record | None:
        """The same work in BF16 on the same engine and configuration."""
        if record is None or record["precision"] == "bf16":
            return None
        return self._bases.get(_base_key(record))

    def against_bf16(self, record: Record | None, metric: str) -> Difference | None:
        base = self.base(record)
        return self.compare(base, record).metrics.get(metric) if base else None


def _profiled(entries: Iterable[Entry]) -> list[Entry]:
    """Of each key the newest that has a profile, for it may have been measured again without. None of emulated cells,
    whose times mean nothing."""
    found: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda one: str(one.record.get("written_at") or "")):
        if entry.record.get("profile") and entry.record["compute_mode"] != EMULATED:
            found[entry.record["key"]] = entry
    return sorted(found.values(), key=lambda one: _order(one.record))


def setup(row: Row) -> tuple[Any, ...]:
    """Whatever the work."""
    return subject(row.either), *(row.either[name] for name in SETUP)


def chunks(ppl: Record | None) -> int | None:
    """Windows that a perplexity is of."""
    return len((ppl or {}).get("per_chunk_ppls") or ()) or None


def subject(record: Record) -> tuple[str, str, str]:
    """What a verdict is about: model, weights and device."""
    return record["model"] or "unknown model", record["weights"] or "unknown", device(record)


def device(record: Record) -> str:
    named = ((record.get("environment") or {}).get("device") or {}).get("name")
    return named or record.get("gpu_name") or "unknown device"


def work(record: Record) -> tuple[Any, ...]:
    """What was asked of a configuration in a perf cell."""
    return tuple(record.get(name) for name in ("batch_size", "input_len", "output_len"))


def work_words(record: Record) -> str:
    batch, input_len, output_len = work(record)
    if record["workload"] != "perf":
        return f"{record['workload']}, {_or(record.get('num_chunks'))} × {_or(input_len)}"
    return f"batch {_or(batch)}, {_or(input_len)}+{_or(output_len)}"


def setup_words(record: Record, with_config: bool = False) -> str:
    words = [record["engine"], record["precision"] or "?", *([record["config"]] if with_config else [])]
    return " ".join(map(str, words))


def has_speed(record: Record | None) -> bool:
    """As in the table of `harness run`: emulated cells have none."""
    return (
        record is not None
        and record["status"] in MEASURED
        and record["compute_mode"] != EMULATED
        and bool(record.get("latency_ms"))
        and record.get("mean_latency_ms") is not None
    )


def has_quality(record: Record | None) -> bool:
    return record is not None and record["status"] in MEASURED and record.get(QUALITY) is not None


def mark(*records: Record | None) -> str:
    """(!) as in the table of `harness run`: what ran is not what the label says, or computed in 16 bit."""
    found = [r for r in records if r and r["status"] in MEASURED]
    return " (!)" if any(r["status"] == "mismatch" or r["compute_mode"] == WEIGHT_ONLY for r in found) else ""


def why_not(record: Record | None, name: str, kind: str = "speed") -> str:
    """Why a record has no such number."""
    if record is None:
        return f"no cell measured its {'accuracy' if kind == 'accuracy' else 'speed'}"
    if record["status"] == "failed":
        return f"{record['failure'].get('class')}: {record['failure'].get('message')}"
    if record["status"] == "skipped":
        return f"skipped: {record['reason']}"
    if kind == "speed" and record["compute_mode"] == EMULATED:
        return "emulated: values pass through the format, products are computed in BF16; its speed would mean nothing"
    if name in ("itl_ms", "tpot_ms") and record.get("output_len") == 1:
        return "one token out: there is no gap between tokens"
    unread = (record["effective"].get("unread") or {}).get(name)
    return str(unread or "not measured: the engine gave no such time")


def number(value: float | None, form: str, why: str, unit: str = "") -> Cell:
    return [None, DASH, why] if value is None else [value, format(value, form) + unit]


def gain(found: Difference) -> tuple[float, tuple[float, float] | None]:
    """How many times as fast B is, with its interval, of a difference in latency."""
    return 1 / found.ratio, found.interval and (1 / found.interval[1], 1 / found.interval[0])


def change(found: Difference) -> tuple[float, tuple[float, float] | None]:
    """By how many percent B lies above A, with its interval."""
    return (found.ratio - 1) * 100, found.interval and tuple((end - 1) * 100 for end in found.interval)


def ratio(value: float) -> str:
    """`.2f`, or `.3f` near 1, where two digits would hide the difference."""
    return ".3f" if 0.9 < value < 1.1 else ".2f"


def noise(found: Difference, of: Callable[[Difference], Any] = gain, form: str | None = None) -> str:
    """The interval of `gain` or `change`, for a sentence."""
    value, interval = of(found)
    form = form or ratio(value)
    if interval is None:
        return UNKNOWN
    same = f", {SAME}" if found.verdict == SAME else ""
    return f"{PERCENT}: {interval[0]:{form}} to {interval[1]:{form}}{same}"


def brief(found: Difference, of: Callable[[Difference], Any], form: str | None = None) -> str:
    """`1.39 (1.38–1.40)`, for a table."""
    value, interval = of(found)
    form = form or ratio(value)
    if interval is None:
        return f"{value:{form}} ({UNKNOWN})"
    dash = "–" if min(interval) >= 0 and "+" not in form else " to "
    return f"{value:{form}} ({interval[0]:{form}}{dash}{interval[1]:{form}}){', same' if found.verdict == SAME else ''}"


def by(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _light(record: Record) -> Record:
    kept = {name: value for name, value in record.items() if name not in ("ttft_ms", "itl_ms", "tpot_ms")}
    raw = {name: value for name, value in (record.get("raw") or {}).items() if name != "token_ns"}
    return {**kept, "raw": raw} if raw else kept


def _rows(records: Sequence[Record]) -> Iterable[Row]:
    """Speed at each work beside the accuracy of the same setup; an accuracy on a second dataset has its own row."""
    for group in by(records, lambda r: (subject(r), *(r[name] for name in SETUP))).values():
        speed = [record for record in group if record["workload"] == "perf"]
        quality = [record for record in group if record["workload"] == "ppl"]
        first = next((record for record in quality if has_quality(record)), quality[0] if quality else None)
        yield from (Row(perf, first) for perf in speed)
        yield from (Row(None, ppl) for ppl in quality if not speed or ppl is not first)
        yield from (Row(None, other) for other in group if other["workload"] not in ("perf", "ppl"))


def _order(record: Record) -> tuple[Any, ...]:
    """Subjects together, then engines, precisions from wide to narrow, works from small to large."""
    precision = record["precision"] or ""
    place = NAMES.index(precision) if precision in NAMES else len(NAMES)
    sizes = [record.get(name) or 0 for name in ("batch_size", "input_len", "output_len")]
    return subject(record), record["engine"] or "", str(record["config"]), place, precision, *sizes


def _base_key(record: Record) -> tuple[Any, ...]:
    return device(record), record["engine"], _hashable(record.get("num_chunks")), question(record)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _or(value: Any) -> str:
    return "?" if value is None else str(value)
