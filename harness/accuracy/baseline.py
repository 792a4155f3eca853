"""The file a reference leaves behind: token ids, and what it gave at each position. Safetensors, no pickle.

Sections `windows` (a dataset's text, every position) and `greedy` (prompts and the reference's own continuation, its
positions only); a file has one or both. S: sequences, R: rows in all, V: vocabulary, K: tokens kept of a row.

    SECTION.ids      I32 [sum of lengths]     SECTION.lengths  I64 [S]
    SECTION.first    I64 [S]     index of the first token of each sequence that has a row; the row before it gave it
    SECTION.given    F32 [R]     log-probability of the token that follows
    SECTION.logits   F32 [R, V]  logits (of an engine that has only log-probabilities, those); or instead
    SECTION.top_ids  I32 [R, K], SECTION.top_logprobs F32 [R, K] (descending), SECTION.tail_logprob F32 [R] (the others)
    SECTION.chosen   U8 or I16 [L, R, experts per token]  where the engine tells
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.model.weights import folder_of, same_weights
from harness.tensorfile import TensorFile, open_header

FORMAT = "harness-baseline-1"
SECTIONS = ("windows", "greedy")
Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Baseline:
    """A file's header, checked. Rows are read in the worker, see harness.accuracy.rows."""

    path: Path
    about: dict[str, Any]  # model, weights, tokenizer_sha256, vocab_size, engine, precision, ..
    file: TensorFile

    @property
    def sections(self) -> tuple[str, ...]:
        return tuple(name for name in SECTIONS if f"{name}.ids" in self.file.tensors)

    @property
    def reference(self) -> str:
        """In a word for tables, e.g. `hf bf16`."""
        return f"{self.about['engine']} {self.about['precision']}"

    def ids(self, section: str) -> Ids:
        """Token ids of each sequence."""
        flat = self._numbers(f"{section}.ids", "i")
        ends = _cumulative(self._numbers(f"{section}.lengths", "q"))
        return tuple(tuple(flat[start:end]) for start, end in ends)

    def first(self, section: str) -> tuple[int, ...]:
        """Of each sequence, the index of the first token that has a row."""
        return tuple(self._numbers(f"{section}.first", "q"))

    def _numbers(self, name: str, code: str) -> array[int]:
        return array(code, self.file.tensors[name].read())


def open_baseline(path: Path) -> Baseline:
    """Raises UsageError for a file that is not there, cut short, or not a baseline."""
    try:
        file = open_header(path)
    except OSError as error:
        raise UsageError(f"baseline {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"baseline {error}") from None
    if file.metadata.get("format") != FORMAT:
        raise UsageError(f"{path} is no baseline of this harness (harness baseline --output FILE makes one)")
    baseline = Baseline(path, json.loads(file.metadata["about"]), file)
    for section in baseline.sections:
        if problem := _problem(baseline, section):
            raise UsageError(f"baseline {path} is not sound: {section}: {problem}")
    if not baseline.sections:
        raise UsageError(f"baseline {path} holds nothing")
    return baseline


def check_same_model(baseline: Baseline, model: str, identity: str | None) -> None:
    """That the baseline is of this model (folder or hub id), with weights `identity`, tokenizer and vocabulary.

    Raises UsageError naming what differs."""
    about, where = baseline.about, f"baseline {baseline.path} is of another"
    vocabulary, tokenizer = vocabulary_size(model), tokenizer_sha256(model)
    if about["vocab_size"] != vocabulary:
        raise UsageError(f"{where} vocabulary: {about['vocab_size']} tokens ({about['model']}), here {vocabulary}")
    if about["tokenizer_sha256"] != tokenizer:
        raise UsageError(f"{where} tokenizer: the hash of {about['model']}'s tokenizer.json is not that of {model}")
    if about["weights"] is None or identity is None:
        raise UsageError(f"baseline {baseline.path}: which weights it is of, or which these are, cannot be told")
    if not same_weights(about["weights"].partition(" as ")[0], identity.partition(" as ")[0]):
        raise UsageError(f"{where} model: its weights ({about['model']}) are not those of {model}")


def vocabulary_size(model: str) -> int:
    """Of config.json; with rows that pad the output head. Raises UsageError when it cannot be read."""
    try:
        config = json.loads((folder_of(model) / "config.json").read_text(encoding="utf-8"))
        return config.get("vocab_size") or config["text_config"]["vocab_size"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"no vocabulary size in {folder_of(model) / 'config.json'}: {error}") from None


def tokenizer_sha256(model: str) -> str | None:
    """Of tokenizer.json; None where the model has none."""
    try:
        return hashlib.sha256((folder_of(model) / "tokenizer.json").read_bytes()).hexdigest()
    except OSError:
        return None


def is_baseline(path: Path) -> bool:
    """Whether a file may be replaced by a new baseline."""
    try:
        return open_header(path).metadata.get("format") == FORMAT
    except (OSError, ValueError):
        return False


def _problem(baseline: Baseline, section: str) -> str | None:
    tensors, names = baseline.file.tensors, ["lengths", "first", "given"]
    missing = [name for name in names if f"{section}.{name}" not in tensors]
    kept = ["logits"] if f"{section}.logits" in tensors else ["top_ids", "top_logprobs", "tail_logprob"]
    missing += [name for name in kept if f"{section}.{name}" not in tensors]
    if missing:
        return f"{', '.join(missing)} missing"
    lengths, first = baseline._numbers(f"{section}.lengths", "q"), baseline.first(section)
    if len(lengths) != len(first) or sum(lengths) != tensors[f"{section}.ids"].elements:
        return "its sequences do not fit its token ids"
    if any(not 1 <= index <= length for index, length in zip(first, lengths)):
        return "a sequence has rows before its first token"
    rows = sum(length - index for length, index in zip(lengths, first))
    found = {tensors[f"{section}.{name}"].shape[0] for name in ("given", *kept)}
    return None if found == {rows} else f"{rows} positions, and rows for {sorted(found)}"


def _cumulative(lengths: array[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length
