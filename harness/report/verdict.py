"""The verdict: per model and device, which precision and engine pays, by how much, at what cost in accuracy, and where
the numbers cannot say. Every ratio is that of `harness compare`, the ranking is that of `harness run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judging.compare import BETTER, SAME, UNKNOWN, WORSE, Difference
from harness.judging.table import ranking
from harness.precision import EMULATED, NATIVE, WEIGHT_ONLY
from harness.recording.records import Record, shared_config
from harness.report.read import MEASURED
from harness.report.rows import (
    Facts,
    by,
    change,
    gain,
    has_quality,
    has_speed,
    noise,
    ratio,
    setup_words,
    subject,
    work_words,
)

NAMED = 4  # works, setups or lines that a sentence names one by one


@dataclass(frozen=True)
class Verdict:
    """`said`: a word for what a sentence is about, and the sentence. `ranking`: a line per work."""

    model: str
    weights: str
    device: str
    said: tuple[tuple[str, str], ...]
    ranking: tuple[str, ...]


def verdicts(facts: Facts) -> list[Verdict]:
    found = []
    for (model, weights, device), records in by(facts.records, subject).items():
        lines = _ranking(facts.light(records))
        said = (
            ("Speed", _speed(facts, records)),
            ("Fastest", _fastest(lines)),
            ("Accuracy", _accuracy(facts, records)),
            ("Limits", _limits(facts, records, lines)),
        )
        found.append(Verdict(model, weights, device, tuple((word, text) for word, text in said if text), tuple(lines)))
    return found


def _ranking(records: Sequence[Record]) -> list[str]:
    """As `harness run` prints it; with several configurations each line says of which it is."""
    configs = by((record for record in records if has_speed(record)), shared_config)
    return [
        line if len(configs) == 1 else f"{config}: {line}"
        for config, group in configs.items()
        for line in ranking(group)
    ]


def _speed(facts: Facts, records: Sequence[Record]) -> str:
    """Which precision pays most against BF16 on the same engine, and what it does at the other works."""
    fast = [r for r in records if r["workload"] == "perf" and r["status"] == "ok" and r["compute_mode"] == NATIVE]
    fast = [record for record in fast if record["precision"] != "fp32"]  # a reference, and no lower one
    pairs = [(r, found) for r in fast if (found := facts.against_bf16(r, "latency_ms"))]
    if not pairs:
        return _no_speed(facts, records, fast)
    settled = [pair for pair in pairs if pair[1].verdict == BETTER] or pairs
    best, found = min(settled, key=lambda pair: (pair[1].interval or (0, pair[1].ratio))[1])
    many = len({record["config"] for record in fast}) > 1
    name = setup_words(best, many)
    same = [p for p in pairs if setup_words(p[0], True) == setup_words(best, True) and p[0] is not best]
    how = f"{_times(found)} times as fast as bf16 at {work_words(best)} ({noise(found)})"
    if found.verdict == BETTER:
        lead = f"{name} pays most: {how}"
    elif found.verdict == UNKNOWN:
        lead = f"whether a lower precision pays is unknown: {name} is {how}"
    else:
        lead = f"no lower precision pays: the nearest, {name}, is {how}"
    return _sentence(lead + _elsewhere(same))


def _times(found: Difference) -> str:
    value = gain(found)[0]
    return format(value, ratio(value))


def _elsewhere(pairs: Sequence[tuple[Record, Difference]]) -> str:
    if not pairs:
        return ""
    if len(pairs) <= NAMED:
        return "; " + ", ".join(
            f"{_times(found)} times at {work_words(record)} ({noise(found)})" for record, found in pairs
        )
    words = {BETTER: "faster", WORSE: "slower", SAME: "no different", UNKNOWN: "of unknown noise"}
    counts = by(pairs, lambda pair: pair[1].verdict)
    low, high = (end(gain(found)[0] for _, found in pairs) for end in (min, max))
    parts = ", ".join(f"{words[verdict]} at {len(group)}" for verdict, group in counts.items())
    return f"; at {len(pairs)} other workloads {low:.2f} to {high:.2f} × ({parts})"


def _no_speed(facts: Facts, records: Sequence[Record], fast: Sequence[Record]) -> str:
    perf = [record for record in records if record["workload"] == "perf"]
    low = [record for record in fast if record["precision"] != "bf16"]
    if not perf:
        return "No speed was measured."
    if not low and any(record["compute_mode"] == EMULATED for record in perf):
        return "No lower precision has a speed here: this device does not compute in it, its rows are emulated."
    if not low:
        return "No lower precision was measured in its own arithmetic, so none can pay."
    if not any(facts.base(record) for record in low):
        return "What a lower precision gains cannot be said: bf16 was not measured on the same engine at the same work."
    first = next(record for record in low if facts.base(record))
    differing = ", ".join(facts.compare(facts.base(first), first).differing)
    return f"What a lower precision gains cannot be said: {setup_words(first)} and bf16 differ in {differing}."


def _fastest(lines: Sequence[str]) -> str:
    ranked = [line for line in lines if "no ranking" not in line]
    if not ranked:
        return ""
    more = len(ranked) - NAMED
    lines = [_sentence(line) for line in ranked[:NAMED]]
    return "\n".join([*lines, *([f"And at {more} more workloads, below."] if more > 0 else [])])


def _accuracy(facts: Facts, records: Sequence[Record]) -> str:
    quality = [record for record in records if record["workload"] == "ppl" and has_quality(record)]
    if records[0]["weights"] == "dummy":
        return "Nothing can be said of accuracy: the weights are random."
    if not quality:
        return "No accuracy was measured."
    if all(record["precision"] == "bf16" for record in quality):
        return "Accuracy was measured in bf16 only."
    found = [(r, d) for r in quality if r["status"] == "ok" and (d := facts.against_bf16(r, "perplexity"))]
    if not found:
        return "What a lower precision costs in accuracy cannot be said: no perplexity is comparable with that of bf16."
    parts = [_cost(precision, group) for precision, group in by(found, lambda pair: pair[0]["precision"]).items()]
    return f"Perplexity against bf16: {'; '.join(parts)}."


def _cost(precision: str, found: Sequence[tuple[Record, Difference]]) -> str:
    """Of one setup its change with the interval, of several the least and the greatest."""
    ends = [min(found, key=lambda pair: pair[1].ratio), max(found, key=lambda pair: pair[1].ratio)]
    said = [f"{change(d)[0]:+.2f} % ({noise(d, change, '+.2f')})" for _, d in ends]
    if len(found) == 1:
        return f"{precision} {said[0]}"
    names = [setup_words(record, with_config=True) for record, _ in ends]
    return f"{precision} from {said[0]}, {names[0]}, to {said[1]}, {names[1]}, in {len(found)} setups"


def _limits(facts: Facts, records: Sequence[Record], lines: Sequence[str]) -> str:
    return " ".join(_sentence(part) for part in _limit_parts(facts, records, lines))


def _limit_parts(facts: Facts, records: Sequence[Record], lines: Sequence[str]) -> Iterator[str]:
    measured = [record for record in records if record["status"] in MEASURED]
    if weak := _setups(record for record in measured if record["compute_mode"] == WEIGHT_ONLY):
        yield f"{weak}: stored low and multiplied in 16 bit, so not ranked under that label"
    if emulated := _setups(r for r in records if r["compute_mode"] == EMULATED and r["workload"] in ("perf", "ppl")):
        yield f"{emulated}: emulated, so without a speed"
    if wrong := _setups(record for record in records if record["status"] == "mismatch"):
        yield f"{wrong}: what ran is not what the label says, so not compared"
    if apart := [line for line in lines if "no ranking" in line]:
        yield apart[0] + (f"; and {len(apart) - 1} more such works" if len(apart) > 1 else "")
    if failed := [record for record in records if record["status"] == "failed"]:
        classes = by(failed, lambda record: record["failure"].get("class"))
        counts = ", ".join(f"{name} {len(group)}" for name, group in classes.items())
        yield f"{len(failed)} of {len(records)} cells failed ({counts})"
    if skipped := [record for record in records if record["status"] == "skipped"]:
        yield f"{len(skipped)} of {len(records)} cells were skipped, each with its reason below"
    if any(record["workload"] == "perf" for record in measured):
        noisy = [record for record in measured if record.get("noise")]
        if noisy:
            yield f"{len(noisy)} cells were timed in noise, as their provenance says: {noisy[0]['noise'][0]}"
        said = dict.fromkeys(facts.compare(facts.base(r), r).noise for r in measured if facts.base(r))
        yield from (f"The noise in the intervals of speed is {words}" for words in said if words)


def _setups(records: Any) -> str:
    names = list(dict.fromkeys(setup_words(record) for record in records))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _sentence(text: str) -> str:
    return _capital(text) + ("" if text.endswith(".") else ".")


def _capital(text: str) -> str:
    """Only where the first word is ours: names of engines keep their letters."""
    return text[:1].upper() + text[1:] if text.startswith(("fastest", "no ", "whether", "what")) else text
