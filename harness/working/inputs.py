"""Token ids, made once per model and handed to every load, so that all engines and precisions see the same ones.

    python -m harness.working.inputs < requests        # runs where the tokenizer is; a line of JSON in, a line out

`prompts` are drawn from a seeded generator over the vocabulary; `windows` are a dataset's text, tokenised and cut
into non-overlapping pieces; `texts` are a person's prompts; `baseline` are the tokens of a baseline file. Nothing is
cached by name: a file of ids is named by the hash of its ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cells import InputFile
from harness.errors import UsageError
from harness.serde import from_json, to_json

SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Token ids and what is known of the text behind them."""

    ids: tuple[tuple[int, ...], ...]  # sequences x tokens; of prompts and windows all of one length
    source: str  # "random ids, seed 0" or the dataset
    sha256: str  # of the ids; two records with equal hashes saw equal ids
    text_sha256: str | None = None  # of the dataset's text
    words: int | None = None  # in the text of the scored tokens: all but the first of each window
    bytes: int | None = None


@dataclass(frozen=True)
class Request:
    """What a cell needs; equal requests are made once."""

    model: str  # a folder or a hub id
    kind: str  # "prompts", "windows", "texts" or "baseline"
    count: int = 0  # sequences; of windows, at most
    length: int = 0  # tokens of each; of texts, those that follow each
    dataset: str | None = None
    texts: tuple[str, ...] = ()
    path: str | None = None  # of a baseline


def request_for(kind: str, model: str, parameters: Mapping[str, Any]) -> Request:
    if parameters.get("texts"):
        return Request(model, "texts", length=parameters["output_len"], texts=tuple(parameters["texts"]))
    if kind == "baseline":
        return Request(model, kind, path=parameters["baseline"])
    if kind == "windows":
        return Request(model, kind, parameters["num_chunks"], parameters["input_len"], parameters["dataset"])
    return Request(model, kind, parameters["batch_size"], parameters["input_len"])


def made(requests: Iterable[Request], folder: Path, python: str) -> dict[Request, InputFile]:
    """The file of each request, or why there is none (a model that cannot be read, or no room), all made by one process
    of `python`. Raises UsageError for a bad dataset."""
    requests = list(requests)
    job = subprocess.run(
        [python, "-m", "harness.working.inputs"],
        input="".join(json.dumps(to_json(request)) + "\n" for request in requests),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    whole = job.stdout[: job.stdout.rfind("\n") + 1]  # a process that is killed may leave half a line
    answers = [json.loads(line) for line in whole.splitlines()]
    words = job.stderr.strip().splitlines() or [f"exit status {job.returncode}"]
    answers += [{"problem": words[-1]}] * (len(requests) - len(answers))  # of a process that ended before it was done
    return {request: _kept(answer, folder.resolve()) for request, answer in zip(requests, answers)}


def _kept(answer: Mapping[str, Any], folder: Path) -> InputFile:
    if "usage" in answer:
        raise UsageError(answer["usage"])
    if "problem" in answer:
        return InputFile(None, answer["problem"])
    ids, sha256 = answer["inputs"]["ids"], answer["inputs"]["sha256"]
    path = folder / f"{sha256[:16]}.json"
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(answer["inputs"]))
        temporary.replace(path)
    except OSError as error:
        return InputFile(None, str(error))
    finally:
        temporary.unlink(missing_ok=True)
    return InputFile(str(path), longest=max(map(len, ids)))


def read(path: str | Path) -> Inputs:
    return from_json(Inputs, json.loads(Path(path).read_text()))


def stop_tokens(model: str) -> tuple[int, ...]:
    """Ids that end a text, of generation_config.json or config.json; none where neither names one."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads(_model_file(model, name).read_text()).get("eos_token_id")
        except (OSError, ValueError):
            continue
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def make(request: Request) -> Inputs:
    return {"windows": _windows, "prompts": _prompts, "texts": _texts, "baseline": _of_baseline}[request.kind](request)


def _prompts(request: Request) -> Inputs:
    draw = random.Random(SEED)
    size = _vocabulary_size(request.model)
    ids = tuple(tuple(draw.randrange(size) for _ in range(request.length)) for _ in range(request.count))
    return Inputs(ids, f"random ids below {size}, seed {SEED}", _hash(ids))


def _windows(request: Request) -> Inputs:
    from harness.working.corpus import read_text

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


def _texts(request: Request) -> Inputs:
    """As a person's prompt reaches the model: with the special tokens its tokenizer adds."""
    tokenizer = tokenizer_of(request.model)
    ids = tuple(tuple(tokenizer.encode(text).ids) for text in request.texts)
    window = _config(request.model).get("max_position_embeddings")
    for number, (text, tokens) in enumerate(zip(request.texts, ids), start=1):
        if not tokens:
            raise UsageError(f"prompt {number} ({text!r}) has no tokens")
        if window and len(tokens) + request.length > window:
            raise UsageError(
                f"prompt {number} is too long: {len(tokens)} tokens and {request.length} to generate, "
                f"{request.model} holds {window}"
            )
    return Inputs(ids, "prompts", _hash(ids))


def _of_baseline(request: Request) -> Inputs:
    from harness.accuracy.baseline import open_baseline

    baseline = open_baseline(Path(request.path))
    ids = tuple(sequence for section in baseline.sections for sequence in baseline.ids(section))
    return Inputs(ids, f"baseline of {baseline.reference}: {baseline.about.get('source')}", _hash(ids))


def _vocabulary_size(model: str) -> int:
    return _config(model)["vocab_size"]


def _config(model: str) -> dict[str, Any]:
    """Of the language model, where config.json holds several."""
    config = json.loads(_model_file(model, "config.json").read_text())
    return config if "vocab_size" in config else config["text_config"]


def _tokenise(model: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids without special tokens, and the characters (from, to) of each."""
    encoding = tokenizer_of(model).encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def tokenizer_of(model: str) -> Any:
    """The `tokenizers.Tokenizer` of a folder or hub id, without truncation or padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_model_file(model, "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


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
    """A request a line on stdin, an answer a line on stdout, which libraries may not write to."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(_answer(line)) + "\n")
        answers.flush()
    return 0


def _answer(line: str) -> dict[str, Any]:
    try:
        return {"inputs": to_json(make(from_json(Request, json.loads(line))))}
    except UsageError as error:
        return {"usage": str(error)}
    except Exception as error:  # the parent shows this line beside the engine's own words
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    sys.exit(main())
