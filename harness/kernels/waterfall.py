"""From one trace to another by category: bars that add up to the difference in wall time, idle time included."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from harness.errors import UsageError
from harness.jsonfile import Node
from harness.kernels.agreement import percent
from harness.kernels.ledger import OUTSIDE, WHOLE
from harness.kernels.sweep import rounded
from harness.traces.trace import PHASES, NoAnswer

IDLE = "idle"
PRECISION_HELPS = ("expert_gemm", "dense_gemm", "gate_gemm", "quant_dequant")  # GEMMs, and what their format costs
SAID = 5  # bars named in the conclusion
SMALL = Fraction(1, 100)  # of the longer side; a bar or difference below it is not worth a word


@dataclass(frozen=True)
class Bar:
    category: str  # or IDLE
    a: int  # ns per step, or of the whole window
    b: int

    @property
    def difference(self) -> int:
        return self.b - self.a


@dataclass(frozen=True)
class Waterfall:
    """One phase. The bars add up to `a`, `b` and their difference exactly, in whole ns."""

    phase: str
    steps: tuple[int, int] | None  # per step of so many; None: of whole windows
    measure: str  # "wall time" or, where one side has no timeline, "summed kernel time"
    bars: tuple[Bar, ...]  # largest difference first

    @property
    def a(self) -> int:
        return sum(bar.a for bar in self.bars)

    @property
    def b(self) -> int:
        return sum(bar.b for bar in self.bars)


@dataclass(frozen=True)
class Explanation:
    names: tuple[str, str]
    waterfalls: tuple[Waterfall, ...]
    problems: tuple[str, ...]  # of either trace
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "valid": not self.problems,
            "a": self.names[0],
            "b": self.names[1],
            "phases": {waterfall.phase: _to_json(waterfall) for waterfall in self.waterfalls},
            "problems": list(self.problems),
            "notes": list(self.notes),
            "conclusion": conclusion(self),
        }


def explain(a: Node, b: Node, names: tuple[str, str]) -> Explanation:
    """`a`, `b`: what `harness analyze` says of two traces, as JSON; `names` are theirs in sentences.

    Raises NoAnswer when one has no answer, and UsageError when one is no such JSON.
    """
    sides = [_side(node) for node in (a, b)]
    common = [phase for phase in PHASES if all(phase in side for side in sides)]
    notes = []
    for phase in PHASES:
        if len(has := [name for name, side in zip(names, sides) if phase in side]) == 1:
            notes.append(f"only {has[0]} has a {phase} phase: it is not explained")
    for name, side in zip(names, sides):
        if OUTSIDE in side and (mixed := side[OUTSIDE].at("steps", "count").count()):
            notes.append(f"{name}: {mixed} steps read some requests while others go on: prefill is not explained")
            common = [phase for phase in common if phase != "prefill"]
    if not common:
        if notes:
            notes.append("the whole windows are compared: they mean something only if they hold the same work")
        elif not all(side[WHOLE].at("steps", "count").count() for side in sides):
            notes.append("no steps are marked: whole windows are compared, and must hold the same work")
        common = [WHOLE]
    found = tuple(_waterfall(phase, *(side[phase] for side in sides)) for phase in common)
    notes += [note for phase in common for note in _unlike(names, phase, *(side[phase] for side in sides))]
    formats = [str(node.at("format").value) for node in (a, b)]
    if formats[0] != formats[1]:
        notes.append(
            f"recorded by {formats[0]} and {formats[1]}: profilers slow a host differently, which is idle time"
        )
    problems = tuple(
        f"{name}: {problem.value}" for name, node in zip(names, (a, b)) for problem in node.at("problems").items()
    )
    return Explanation(names, found, problems, tuple(dict.fromkeys(notes)))


def conclusion(explanation: Explanation) -> list[str]:
    """A sentence per phase."""
    return [_sentence(waterfall, *explanation.names) for waterfall in explanation.waterfalls]


def _side(node: Node) -> dict[str, Node]:
    """The ledgers of the device that answers, by phase."""
    if not isinstance(node.value, dict) or not {"valid", "categories", "ledgers", "source"} <= node.value.keys():
        raise UsageError(f"{node.place}: neither a trace nor what `harness analyze --output` wrote")
    if node.at("device").value is None:
        said = "; ".join(str(problem.value) for problem in node.at("problems").items())
        raise NoAnswer(f"{node.at('source').value}: has no answer to explain: {said}")
    ledgers = [one for one in node.at("ledgers").items() if one.at("device").value == node.at("device").value]
    found = {one.at("phase").need().text(): one for one in ledgers}
    if WHOLE not in found:
        node.at("ledgers").refuse(f"expected a ledger of the whole device {node.at('device').value}")
    return found


def _waterfall(phase: str, a: Node, b: Node) -> Waterfall:
    has_wall = all(node.at("window_ns").value is not None for node in (a, b))
    counts = [node.at("steps", "count").count() or 0 for node in (a, b)]
    per = counts if all(counts) else [1, 1]
    sides = [_parts(node, has_wall, count) for node, count in zip((a, b), per)]
    bars = [Bar(name, *(side.get(name, 0) for side in sides)) for name in dict.fromkeys((*sides[0], *sides[1]))]
    bars.sort(key=lambda bar: (-abs(bar.difference), bar.category))
    measure = "wall time" if has_wall else "summed kernel time"
    return Waterfall(phase, tuple(counts) if all(counts) else None, measure, tuple(bars))


def _parts(node: Node, has_wall: bool, steps: int) -> dict[str, int]:
    """Whole ns per step that add up to those of the window. Raises UsageError when the file's own do not."""
    key, whole = ("charged_ns", "window_ns") if has_wall else ("time_ns", "sum_ns")
    total = node.at(whole).need().count()
    categories = node.at("categories").need()
    if not isinstance(categories.value, dict):
        categories.refuse("expected an object")
    parts = {name: categories.at(name, key).need().count() for name in categories.value}
    if has_wall:
        parts[IDLE] = node.at("idle_ns").need().count()
    if sum(parts.values()) != total:
        node.at(whole).refuse(f"categories add up to {sum(parts.values())}: the file was changed")
    return rounded({name: Fraction(part, steps) for name, part in parts.items()}, round(Fraction(total, steps)))


def _unlike(names: tuple[str, str], phase: str, a: Node, b: Node) -> list[str]:
    """What makes the two sides less alike than one would like."""
    notes = []
    counts = [node.at("steps", "count").count() or 0 for node in (a, b)]
    if counts[0] != counts[1] and all(counts):
        notes.append(f"{phase}: {counts[0]} steps in {names[0]}, {counts[1]} in {names[1]}; each is per step")
    labels = [list((node.at("steps", "labels").value or {}).keys()) for node in (a, b)]
    if all(labels) and not set(labels[0]) & set(labels[1]):
        said = [str(found[0])[:60] for found in labels]
        notes.append(f"{phase}: steps are marked {said[0]!r} and {said[1]!r}: are they of the same batch and length?")
    reasons = [f"{name} has no timeline" for name, node in zip(names, (a, b)) if node.at("window_ns").value is None]
    if reasons:
        notes.append(f"{' and '.join(reasons)}: summed kernel time is compared, and idle time is unknown")
    return notes


def _sentence(waterfall: Waterfall, a: str, b: str) -> str:
    what = f"a {waterfall.phase} step" if waterfall.phase in PHASES else "a step" if waterfall.steps else "the window"
    difference = waterfall.b - waterfall.a
    longer = max(waterfall.a, waterfall.b)
    values = f"({waterfall.a / 1e6:.2f} -> {waterfall.b / 1e6:.2f} ms of {waterfall.measure})"
    named = [bar for bar in waterfall.bars if abs(bar.difference) >= SMALL * longer][:SAID]
    rest = difference - sum(bar.difference for bar in named)
    parts = [f"{bar.category} {_signed(bar.difference)}" for bar in named]
    parts += [f"the rest {_signed(rest)}"] if len(named) < len(waterfall.bars) else []
    listed = ", ".join(parts)
    if abs(difference) <= SMALL * longer:
        shifts = f": {listed}" if named else ""
        return f"From {a} to {b} {what} takes as long, within {percent(float(SMALL), '.0f')} {values}{shifts}."
    word = "shorter" if difference < 0 else "longer"
    said = f"From {a} to {b} {what} is {abs(difference) / 1e6:.2f} ms {word} {values}: {listed}."
    helped = sum(bar.difference for bar in waterfall.bars if bar.category in PRECISION_HELPS)
    if not any(bar.category in PRECISION_HELPS for bar in waterfall.bars):
        return said
    if helped * difference > 0 and abs(helped) * 2 >= abs(difference):
        return f"{said} It comes from GEMMs and quantisation ({_signed(helped)}), where a precision counts."
    return f"{said} It comes mostly from elsewhere than GEMMs and quantisation ({_signed(helped)})."


def _signed(time: int) -> str:
    return f"{time / 1e6:+.2f}"


def _to_json(waterfall: Waterfall) -> dict[str, Any]:
    return {
        "per": "step" if waterfall.steps else "window",
        "measure": waterfall.measure,
        "steps": waterfall.steps and list(waterfall.steps),
        "a_ns": waterfall.a,
        "b_ns": waterfall.b,
        "difference_ns": waterfall.b - waterfall.a,
        "a_ms": waterfall.a / 1e6,
        "b_ms": waterfall.b / 1e6,
        "difference_ms": (waterfall.b - waterfall.a) / 1e6,
        "bars": [
            {
                "category": bar.category,
                "a_ns": bar.a,
                "b_ns": bar.b,
                "difference_ns": bar.difference,
                "a_ms": bar.a / 1e6,
                "b_ms": bar.b / 1e6,
                "difference_ms": bar.difference / 1e6,
            }
            for bar in waterfall.bars
        ],
    }
