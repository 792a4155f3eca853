"""Token ids, made once per model and handed to every load, so that all engines and precisions see the same ones.

    python -m harness.inputs < request.json        # runs where the tokenizer is; prints the JSON of `Inputs`

`prompts` are drawn from a seeded generator over the vocabulary; `windows` are a dataset's text, tokenised and cut
into non-overlapping pieces. Nothing is cached by name: a file of ids is named by the hash of its ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, UsageError
from harness.serde import from_json, to_json

SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Token ids and what is known of the text behind them."""

    ids: tuple[tuple[int, ...], ...]  # sequences x tokens, all of one length
    source: str  # "random ids, seed 0" or the dataset
    sha256: str  # of the ids; two records with equal hashes saw equal ids
    text_sha256: str | None = None  # of the dataset's text
    words: int | None = None  # in the text of the scored tokens: all but the first of each window
    bytes: int | None = None


@dataclass(frozen=True)
class Request:
    """What a cell needs; equal requests are made once."""

    model: str  # a folder or a hub id
    kind: str  # "prompts" or "windows"
    count: int  # sequences; of windows, at most
    length: int  # tokens of each
    dataset: str | None = None


def request_for(kind: str, model: str, parameters: Mapping[str, Any]) -> Request:
    if kind == "windows":
        return Request(model, kind, parameters["num_chunks"], parameters["input_len"], parameters["dataset"])
    return Request(model, kind, parameters["batch_size"], parameters["input_len"])


def prepare(request: Request, folder: Path, python: str) -> Path:
    """File with the ids, made by `python`. Raises UsageError for a bad dataset, HarnessError with the job's last
    words for anything else, such as a model without a tokenizer."""
    job = subprocess.run(
        [python, "-m", "harness.inputs"],
        input=json.dumps(to_json(request)),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if job.returncode == 2:
        raise UsageError(job.stderr.strip().splitlines()[-1])
    if job.returncode:
        words = job.stderr.strip().splitlines() or [f"exit status {job.returncode}"]
        raise HarnessError(words[-1])
    path = folder / f"{json.loads(job.stdout)['sha256'][:16]}.json"
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        temporary.write_text(job.stdout)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def read(path: str | Path) -> Inputs:
    return from_json(Inputs, json.loads(Path(path).read_text()))


def make(request: Request) -> Inputs:
    return _windows(request) if request.kind == "windows" else _prompts(request)


def _prompts(request: Request) -> Inputs:
    draw = random.Random(SEED)
    size = _vocabulary_size(request.model)
    ids = tuple(tuple(draw.randrange(size) for _ in range(request.length)) for _ in range(request.count))
    return Inputs(ids, f"random ids below {size}, seed {SEED}", _hash(ids))


def _windows(request: Request) -> Inputs:
    from harness.corpus import read_text

    text = read_text(request.dataset)
    tokens, spans = _tokenise(request.model, text)
    count = min(request.count, len(tokens) // request.length)
    if count == 0:
        raise UsageError(
            f"dataset {request.dataset!r} has {len(tokens)} tokens, fewer than one window of {request.length}"
        )
    starts = range(0, count * request.length, request.length)
    scored = [text[spans[start + 1][0] : spans[start + request.length - 1][1]] for start in starts]
    ids = tuple(tuple(tokens[start : start + request.length]) for start in starts)
    return Inputs(
        ids,
        request.dataset,
        _hash(ids),
        hashlib.sha256(text.encode()).hexdigest(),
        words=sum(len(piece.split()) for piece in scored),
        bytes=sum(len(piece.encode()) for piece in scored),
    )


def _vocabulary_size(model: str) -> int:
    config = json.loads(_model_file(model, "config.json").read_text())
    return config.get("vocab_size") or config["text_config"]["vocab_size"]


def _tokenise(model: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids without special tokens, and the characters (from, to) of each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_model_file(model, "tokenizer.json")))
    tokenizer.no_truncation()
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _model_file(model: str, name: str) -> Path:
    if os.path.isdir(model) or os.path.isabs(model):
        return Path(model, name)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name))


def _hash(ids: tuple[tuple[int, ...], ...]) -> str:
    digest = hashlib.sha256()
    for sequence in ids:
        digest.update(len(sequence).to_bytes(8, "little") + array("q", sequence).tobytes())
    return digest.hexdigest()


def main() -> int:
    try:
        inputs = make(from_json(Request, json.load(sys.stdin)))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # the parent shows this line beside the engine's own words
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    json.dump(to_json(inputs), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
