"""Distributions in a worker: what an engine gave, brought to one shape, kept in a file and read back from it.

R: rows (positions), N: tokens known of a row, V: vocabulary, L: expert layers, K: experts per token. Imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.accuracy.baseline import FORMAT
from harness.engine import Logits
from harness.errors import BadOutput

LARGEST_FULL = 256 << 20  # bytes of whole rows that a section keeps unless told otherwise
LEAST = 1e-12  # probability of the tokens that are not known, at least: rounding may leave nothing of it


@dataclass(frozen=True)
class Rows:
    """Log-probabilities of consecutive positions. `ids` [R, N], the likeliest first, or None for the whole vocabulary in
    order; `tail` [R]: of all tokens that are not in `ids`."""

    values: torch.Tensor  # [R, N] float32: logits; where `ids` is given, log-probabilities
    norm: torch.Tensor  # [R] float32: value - norm = log-probability; 0 where `ids` is given
    given: torch.Tensor  # [R] float32: log-probability of the token that follows
    ids: torch.Tensor | None = None
    tail: torch.Tensor | None = None
    chosen: torch.Tensor | None = None  # [L, R, K]
    num_experts: int | None = None
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.given)

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)

    def part(self, start: int, stop: int) -> Rows:
        """Some of the positions."""
        taken = {
            name: value[:, start:stop] if name == "chosen" else value[start:stop]
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **taken)

    @property
    def likeliest(self) -> torch.Tensor:
        """[R], the token greedy decoding takes; of several equally likely ones the first of the vocabulary."""
        return self.values.argmax(-1) if self.ids is None else self.ids[:, 0]

    def top(self, count: int, near: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens in order and their values, both [R, count]. `near` [R, M]: tokens they are probably among,
        such as the other side's likeliest; looking there first takes a third of the time."""
        if self.ids is not None:
            return self.ids[:, :count], self.values[:, :count]
        if near is None or near.shape[1] <= count:
            return _in_order(*self.values.topk(count, dim=-1, sorted=False))
        values, places = self.values.gather(-1, near).topk(count, dim=-1, sorted=False)
        ids = near.gather(-1, places)
        elsewhere = self.values.scatter(-1, near, -torch.inf).amax(-1) >= values.amin(-1)
        if elsewhere.any():
            values[elsewhere], ids[elsewhere] = self.values[elsewhere].topk(count, dim=-1, sorted=False)
        return _in_order(values, ids)

    def at(self, ids_RN: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of given tokens, [R, N]; NaN where a row does not know one."""
        if self.ids is None:
            return self.values.gather(-1, ids_RN) - self.norm[:, None]
        if ids_RN is self.ids:
            return self.values
        found = ids_RN[:, :, None] == self.ids[:, None, :]
        values = (found * self.values[:, None, :]).sum(-1)
        return torch.where(found.any(-1), values, torch.nan)


@dataclass(frozen=True)
class Aligned:
    """Two sides at the same positions of the same tokens, on one device."""

    reference: Rows
    actual: Rows
    ids: torch.Tensor | None  # [R, N], the tokens compared; None: the whole vocabulary in order
    expected: (
        torch.Tensor
    )  # [R, N]: log-probabilities at `ids`, NaN where a side does not know one; without `ids` logits
    found: torch.Tensor


def align(reference: Rows, actual: Rows) -> Aligned:
    """The tokens of the side that knows fewer; the reference's where both list theirs."""
    reference = reference.to(actual.values.device)
    ids = reference.ids if reference.ids is not None else actual.ids
    if ids is None:
        return Aligned(reference, actual, None, reference.values, actual.values)
    return Aligned(reference, actual, ids, reference.at(ids), actual.at(ids))


def rows_of(piece: Logits, following_R: torch.Tensor, where: str) -> Rows:
    """What an engine gave of positions that `following_R` tokens follow. Raises BadOutput for NaN or infinite logits."""
    values = torch.as_tensor(piece.values)
    following_R = following_R.to(values.device)
    if len(values) != len(following_R):
        raise BadOutput(f"{where}: {len(following_R)} positions, the engine gave {len(values)} rows of logits")
    if piece.ids is None:
        norm = values.logsumexp(-1)
        given, ids, tail = values.gather(-1, following_R[:, None])[:, 0] - norm, None, None
    else:
        norm, given = values.new_zeros(len(values)), torch.as_tensor(piece.given)
        ids, values = _in_order(values, torch.as_tensor(piece.ids))
        tail = (1 - values.double().exp().sum(-1)).clamp_min(LEAST).log().float()
    if not (torch.isfinite(norm).all() and torch.isfinite(given).all()) or (ids is not None and values.isnan().any()):
        raise BadOutput(f"{where}: logits are not finite (NaN or infinite)")
    return Rows(values, norm, given, ids, tail, piece.chosen, piece.num_experts, piece.layers)


def _in_order(values: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equally likely tokens in the vocabulary's order, as argmax takes them; BF16 logits are often equal."""
    ids, order = ids.sort(dim=-1)
    values, again = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, again), values


def following(pieces: Iterator[Logits], sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, Rows]]:
    """Every piece of scored sequences as rows, with its sequence and the index of the token its first row gave.

    Raises BadOutput when the pieces are not those of the sequences."""
    for index, sequence in enumerate(sequences):
        start = 1
        while start < len(sequence):
            piece = next(pieces, None)
            if piece is None:
                raise BadOutput(f"sequence {index}: {len(sequence) - start} rows of logits are missing")
            count = len(piece.values)
            if not 0 < count <= len(sequence) - start:
                raise BadOutput(f"sequence {index}: {len(sequence) - start} rows to come, the engine gave {count}")
            yield index, start, rows_of(piece, torch.tensor(sequence[start : start + count]), f"sequence {index}")
            start += count
    if next(pieces, None) is not None:
        raise BadOutput("the engine gave more rows of logits than there are positions")


@dataclass
class Section:
    """Rows of one section, collected to be written."""

    sequences: Sequence[Sequence[int]]
    first: Sequence[int]  # of each, the index of the first token that has a row
    keep: int | None  # tokens of each row; None: all
    _parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, rows: Rows) -> None:
        """Takes the next rows."""
        if rows.ids is None and self.keep is None:
            self._put("logits", rows.values)
        else:
            ids, values = rows.top(min(self.keep or rows.values.shape[1], rows.values.shape[1]))
            logprobs = values - rows.norm[:, None]
            tail = (1 - logprobs.double().exp().sum(-1)).clamp_min(LEAST).log().float()
            self._put("top_ids", ids.int())
            self._put("top_logprobs", logprobs)
            self._put("tail_logprob", tail)
        self._put("given", rows.given)
        if rows.chosen is not None:
            self._put("chosen", rows.chosen.transpose(0, 1).to(torch.int16))

    def _put(self, name: str, value: torch.Tensor) -> None:
        self._parts.setdefault(name, []).append(value.cpu())

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, as the file holds them."""
        flat = [token for sequence in self.sequences for token in sequence]
        found = {name: torch.cat(parts).contiguous() for name, parts in self._parts.items()}
        if "chosen" in found:
            chosen = found["chosen"].transpose(0, 1).contiguous()
            found["chosen"] = chosen.to(torch.uint8) if int(chosen.max()) < 256 else chosen
        return {
            "ids": torch.tensor(flat, dtype=torch.int32),
            "lengths": torch.tensor([len(sequence) for sequence in self.sequences]),
            "first": torch.tensor(list(self.first)),
            **found,
        }


def save(path: Path, sections: Mapping[str, Section], about: Mapping[str, Any]) -> None:
    """Writes a baseline: all of it or none of it. Raises OSError."""
    tensors = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.tensors().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, temporary, {"format": FORMAT, "about": json.dumps(about, allow_nan=False)})
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Stored:
    """The rows of one section of a file, read as they are asked for."""

    def __init__(self, path: str | Path, section: str) -> None:
        self._file = safe_open(str(path), "pt")
        self._section, self._names = section, set(self._file.keys())
        self.tells_experts = f"{section}.chosen" in self._names

    def rows(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of the section."""
        given = self._slice("given", start, stop)
        chosen = None
        if self.tells_experts:
            chosen = self._file.get_slice(f"{self._section}.chosen")[:, start:stop].long()
        if f"{self._section}.logits" in self._names:
            values = self._slice("logits", start, stop)
            return Rows(values, values.logsumexp(-1), given, chosen=chosen)
        ids, values = self._slice("top_ids", start, stop).long(), self._slice("top_logprobs", start, stop)
        tail = self._slice("tail_logprob", start, stop)
        return Rows(values, torch.zeros(len(values)), given, ids, tail, chosen)

    def _slice(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._file.get_slice(f"{self._section}.{name}")[start:stop]
