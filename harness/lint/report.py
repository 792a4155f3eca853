"""All checks over a checkpoint, and what they say: as JSON, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from harness.errors import UsageError
from harness.lint import engines, formats, parts, scales
from harness.lint.findings import Finding, ordered, printable, tally
from harness.lint.layers import PLAIN, Layer, class_of, weights_in
from harness.lint.subject import Subject, look
from harness.provenance import joined
from harness.tensorfile import Tensor

KINDS = ("experts", "attention", "router", "embedding", "head", "other")


@dataclass(frozen=True)
class Class:
    """All tensors of one layer class."""

    stored: str  # formats of its matrices, or of all its tensors where it has none
    tensors: int
    weights: int | None  # as multiplied: a packed byte holds two; None where their bits are not known
    bytes: int  # scales included

    @property
    def bits_per_weight(self) -> float | None:
        return self.bytes * 8 / self.weights if self.weights else None


@dataclass(frozen=True)
class Report:
    subject: Subject
    classes: dict[str, Class]
    total: Class
    findings: list[Finding]

    @property
    def has_error(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        said = self.subject.scheme
        shown = {
            name: {key: value for key, value in asdict(entry).items() if key != "stored"}
            | {"bits_per_weight": entry.bits_per_weight}
            for name, entry in self.classes.items()
        }
        return {
            "path": str(self.subject.checkpoint.path),
            "format": self.subject.format,
            "precision": {name: entry.stored for name, entry in self.classes.items()},
            "bits_per_weight": self.total.bits_per_weight,
            "bytes": self.total.bytes,
            "classes": shown,
            "kv_scheme": said.kv if said else None,
            "excluded": list(said.excluded) if said else [],
            "findings": [asdict(finding) for finding in self.findings],
        }


def lint(path: Path) -> Report:
    """Raises UsageError when it is no checkpoint folder, or cannot be read."""
    subject = look(path)
    try:
        measured = scales.measure(subject)
        classes = _classes(subject)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    findings = [*subject.checkpoint.findings, *measured.findings]
    findings += [f for check in (*parts.CHECKS, *formats.CHECKS, *engines.CHECKS) for f in check(subject)]
    findings += [f for check in scales.CHECKS for f in check(subject, measured)]
    return Report(subject, classes, _sum(classes.values()), ordered(findings))


def _classes(subject: Subject) -> dict[str, Class]:
    """Raises OSError."""
    layers: dict[str, list[Layer]] = {}
    loose: dict[str, list[Tensor]] = {}
    tensors: dict[str, list[Tensor]] = {}
    for layer in subject.sorted.layers:
        layers.setdefault(layer.kind, []).append(layer)
    for tensor in subject.sorted.loose:
        loose.setdefault(class_of(tensor.name), []).append(tensor)
    for tensor in subject.checkpoint.tensors.values():
        tensors.setdefault(class_of(tensor.name), []).append(tensor)
    return {
        kind: _class(subject, layers.get(kind, []), loose.get(kind, []), tensors[kind])
        for kind in KINDS
        if kind in tensors
    }


def _class(subject: Subject, layers: list[Layer], loose: list[Tensor], tensors: list[Tensor]) -> Class:
    matrices = [layer for layer in layers if layer.is_matrix]
    words = [subject.word(layer) for layer in matrices or layers]
    words = words or [PLAIN.get(tensor.dtype, tensor.dtype.lower()) for tensor in loose]
    counts = [_weights(subject, layer) for layer in layers] + [tensor.elements for tensor in loose]
    weights = None if None in counts else sum(counts)
    return Class(joined(words) or "unknown", len(tensors), weights, sum(tensor.size for tensor in tensors))


def _weights(subject: Subject, layer: Layer) -> int | None:
    rule = subject.rules.get(layer.name)
    return weights_in(layer, subject.stored[layer.name], rule.bits if rule else None)


def _sum(classes: Iterable[Class]) -> Class:
    classes = list(classes)
    counts = [entry.weights for entry in classes]
    weights = None if None in counts else sum(counts)
    return Class("", sum(c.tensors for c in classes), weights, sum(c.bytes for c in classes))


# --- text ------------------------------------------------------------------------------------------------------------


def show(report: Report, stream: TextIO) -> None:
    from rich.console import Console
    from rich.markup import escape

    said = report.subject.scheme
    console = Console(file=stream, width=200, highlight=False)
    excluded = f"{len(said.excluded)} patterns excluded" if said and said.excluded else "nothing excluded"
    facts = f"{report.subject.format}, KV cache {said.kv or 'not quantised' if said else 'not quantised'}, {excluded}"
    console.print(escape(printable(f"{report.subject.checkpoint.path}: {facts}")), soft_wrap=True)
    console.print(_table(report))
    for finding in report.findings:
        console.print(escape(f"{finding.severity} {finding.code}: {printable(finding.where)}"), soft_wrap=True)
        console.print(escape(f"    {printable(finding.what)}"), soft_wrap=True)
        console.print(escape(f"    -> {printable(finding.advice)}"), soft_wrap=True)
    verdict = "do not measure it before the errors are mended" if report.has_error else "no error"
    console.print(f"{verdict}: {tally(report.findings)}", soft_wrap=True)


def _table(report: Report) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("class", "tensors", "stored as", "bits/weight", "GiB"):
        table.add_column(name, justify="left" if name in ("class", "stored as") else "right", no_wrap=True)
    for name, entry in (*report.classes.items(), ("all", report.total)):
        bits = "-" if entry.bits_per_weight is None else f"{entry.bits_per_weight:.3f}"
        table.add_row(name, str(entry.tensors), entry.stored, bits, f"{entry.bytes / 2**30:.3f}")
    return table
