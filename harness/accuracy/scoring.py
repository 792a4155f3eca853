"""What the workloads `baseline` and `validate` do with a session. Imports torch; runs in workers only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from harness.accuracy.baseline import Baseline, Ids, open_baseline
from harness.accuracy.divergence import OVERLAP, TIE, Divergence
from harness.accuracy.matching import Matching, match, match_prompt
from harness.accuracy.routing import Drift
from harness.accuracy.rows import LARGEST_FULL, Rows, Section, Stored, align, following, rows_of, save
from harness.accuracy.suspects import Residuals, suspects
from harness.accuracy.tolerances import Tolerance, parse
from harness.engine import Session
from harness.errors import BadOutput
from harness.working.inputs import Inputs
from harness.workload import Progress

KEPT = 64  # tokens of a row where whole rows would be too many
ASKED_WHOLE = 16384  # vocabulary up to which an engine that lists log-probabilities is asked for all of it
MOST_LISTED = 1000  # else that many, the largest k of the seeds' tolerances
GREEDY_PROMPTS = 4  # of a dataset's windows, the beginning of each
NO_ROUTING = "the engine does not tell which experts a token went to"


def make_baseline(
    session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Runs the reference and writes the file. Returns what the record says of it."""
    about, num_tokens = parameters["about"], parameters["num_tokens"]
    vocabulary = about["vocab_size"]
    given = parameters["texts"] is not None
    prompts = inputs.ids if given else tuple(_beginning(ids, num_tokens) for ids in inputs.ids[:GREEDY_PROMPTS])
    total = len(prompts) + (0 if given else len(inputs.ids))
    sections, done = {}, 0
    if not given:
        first = [1] * len(inputs.ids)
        sections["windows"] = section = _section(inputs.ids, first, vocabulary, parameters["top_k"])
        for index, _, rows in _scored(session, inputs.ids, section.keep or vocabulary):
            section.add(rows)
            progress(done := index + 1, total)
    continued = []
    for prompt in prompts:
        ((tokens, piece),) = session.generate_logits([prompt], num_tokens, parameters["top_k"] or vocabulary)
        rows = rows_of(piece, torch.tensor(tokens), f"prompt {len(continued)}")
        if (rows.given < rows.top(1)[1][:, 0] - rows.norm - TIE).any():
            raise BadOutput(f"prompt {len(continued)}: the tokens are not those its own logits hold likeliest")
        continued.append((prompt + tokens, rows))
        progress(done := done + 1, total)
    ids = tuple(sequence for sequence, _ in continued)
    sections["greedy"] = greedy = _section(ids, list(map(len, prompts)), vocabulary, parameters["top_k"])
    for _, rows in continued:
        greedy.add(rows)
    facts = session.facts()
    known = {name: facts.get(name) for name in ("engine_version", "precision", "compute_mode")}
    save(Path(parameters["output"]), sections, {**about, **known, "source": inputs.source})
    return {
        "baseline": parameters["output"],
        "baseline_bytes": Path(parameters["output"]).stat().st_size,
        "sections": {
            name: {
                "sequences": len(section.sequences),
                "tokens": sum(map(len, section.sequences)) - sum(section.first),
                "kept_of_each": section.keep or "whole vocabulary",
            }
            for name, section in sections.items()
        },
    }


def _beginning(ids: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """Half of a window, or what leaves room in it for the continuation."""
    return ids[: max(1, min(len(ids) // 2, len(ids) - num_tokens))]


def match_one(session: Session, baseline: Baseline, prompt: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Logit matching along one greedy continuation of a baseline, for a record."""
    tolerances = parse(parameters["tol_map"])
    matching = Matching(tolerances, parameters["divergence_difference_tol"])
    sequences, first = baseline.ids("greedy"), baseline.first("greedy")
    row = sum(len(ids) - begin for ids, begin in zip(sequences[:prompt], first))
    stored, top = Stored(baseline.path, "greedy"), _top(baseline, "greedy", tolerances)
    checked = parameters["num_tokens_to_check"]
    match_prompt(session, prompt, sequences[prompt], first[prompt], stored, row, checked, top, matching)
    return matching.summary()


@dataclass
class _Against:
    """One baseline, and what the scored tokens come to beside it."""

    baseline: Baseline
    stored: Stored
    divergence: Divergence
    residuals: Residuals
    drift: Drift | None = None

    def add(self, rows: Rows, sequence: int, token: int, at: int) -> None:
        both = align(self.stored.rows(at, at + len(rows)), rows)
        self.divergence.add(both, sequence, token)
        self.residuals.add(both)
        if self.drift is not None:
            self.drift.add(both.reference.chosen, rows.chosen)

    def found(self) -> dict[str, Any]:
        sets = self.drift and self.drift.sets()
        return {
            "reference": self.baseline.reference,
            "path": str(self.baseline.path),
            **self.divergence.summary(),
            "routing": self.drift and self.drift.summary(),
            "routing_unread": None if self.drift else NO_ROUTING,
            "suspects": suspects(self.divergence.positions(), sets, self.drift and self.drift.layers, self.residuals),
        }


def validate(session: Session, inputs: Inputs, parameters: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Scores a baseline's tokens and compares; `also` are other baselines over the same tokens, `store` keeps this
    engine's own rows as one. Returns results for the record."""
    baseline = open_baseline(Path(parameters["baseline"]))
    tolerances = parse(parameters["tol_map"])
    section = baseline.sections[0]
    sequences, first, vocabulary = baseline.ids(section), baseline.first(section), baseline.about["vocab_size"]
    compared = [
        _Against(other, Stored(other.path, section), Divergence(), Residuals(vocabulary))
        for other in (baseline, *(open_baseline(Path(path)) for path in parameters["also"]))
    ]
    own = _section(sequences, first, vocabulary, _kept(baseline, section)) if parameters["store"] else None
    top = _top(baseline, section, tolerances)
    begins = list(accumulate((len(ids) - begin for ids, begin in zip(sequences, first)), initial=0))
    started = time.perf_counter()
    for index, token, rows in _scored(session, sequences, top):
        skip = max(0, first[index] - token)  # positions within a prompt have no row in the file
        if skip >= len(rows):
            continue
        rows = rows.part(skip, len(rows))
        for other in compared:
            _hear_routing(other, rows)
            other.add(rows, index, token + skip, begins[index] + token + skip - first[index])
        if own:
            own.add(rows)
        progress(index + 1, len(sequences))
    first_found, *others = [other.found() for other in compared]
    seconds = time.perf_counter() - started
    if own:
        facts = session.facts()
        known = {name: facts.get(name) for name in ("engine_version", "precision", "compute_mode")}
        save(Path(parameters["store"]), {section: own}, {**baseline.about, **parameters["about"], **known})
    matching, why_not = None, "the baseline holds no greedy continuation (harness baseline makes one)"
    if "greedy" in baseline.sections:
        matching, why_not = _matched(session, baseline, tolerances, parameters, top), None
    return {
        "divergence": {"section": section, **first_found},
        "against": others,
        "logit_matching": matching,
        "logit_matching_unread": why_not,
        "scoring_seconds": seconds,
    }


def _matched(
    session: Session, baseline: Baseline, tolerances: Sequence[Tolerance], parameters: Mapping[str, Any], top: int
) -> dict[str, Any]:
    matching = Matching(tolerances, parameters["divergence_difference_tol"])
    sequences, first = baseline.ids("greedy"), baseline.first("greedy")
    stored = Stored(baseline.path, "greedy")
    match(session, sequences, first, stored, parameters["num_tokens_to_check"], top, matching)
    return matching.summary()


def _hear_routing(other: _Against, rows: Rows) -> None:
    """Starts to follow the experts with the first rows, where both sides tell them."""
    if other.drift is None and rows.chosen is not None and not other.divergence.agree and other.stored.tells_experts:
        other.drift = Drift(rows.num_experts, rows.layers)


def _scored(session: Session, sequences: Ids, top: int) -> Any:
    return following(iter(session.score_logits(sequences, top)), sequences)


def _section(sequences: Ids, first: Sequence[int], vocabulary: int, keep: int | None) -> Section:
    """Whole rows when asked for nothing else and there is room; else the KEPT likeliest of each."""
    rows = sum(map(len, sequences)) - sum(first)
    if keep is None and rows * vocabulary * 4 > LARGEST_FULL:
        keep = KEPT
    return Section(sequences, first, None if keep is None else min(keep, vocabulary))


def _kept(baseline: Baseline, section: str) -> int | None:
    tensors = baseline.file.tensors
    return None if f"{section}.logits" in tensors else tensors[f"{section}.top_ids"].shape[1]


def _top(baseline: Baseline, section: str, tolerances: Sequence[Tolerance]) -> int:
    """How many of the likeliest tokens to ask an engine for."""
    vocabulary, kept = baseline.about["vocab_size"], _kept(baseline, section)
    if vocabulary <= ASKED_WHOLE and kept is None:
        return vocabulary
    largest = max((tolerance.k or MOST_LISTED for tolerance in tolerances), default=OVERLAP)
    return min(vocabulary, max(OVERLAP, kept or 0, min(largest, MOST_LISTED)))
