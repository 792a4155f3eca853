"""A checkpoint folder as it lies on disk: configurations, index and the headers of its files. No tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.jsonfile import Node, load
from harness.lint.findings import Finding, printable, some
from harness.tensorfile import Tensor, open_header

INDEX = "model.safetensors.index.json"
NOTHING = Node(None, "")
DOWNLOAD = "fetch the file again and compare its size with the source's"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, and what is wrong with the files themselves."""

    path: Path
    config: Node
    modelopt: Node  # hf_quant_config.json; a node of None without it
    layers: Node  # quant_cfg.json, which may name the format of each layer; a node of None without it
    tensors: dict[str, Tensor]
    findings: list[Finding] = field(default_factory=list)


def read(path: Path) -> Checkpoint:
    """Raises UsageError when it is no checkpoint folder, or when something in it cannot be read."""
    try:
        if not path.is_dir():
            raise UsageError(f"{path}: {'no folder' if path.exists() else 'no such folder, and no model in the cache'}")
        files = sorted(file for file in path.iterdir() if file.suffix == ".safetensors")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not (path / "config.json").exists():
        raise UsageError(f"{path}: no checkpoint: it has no config.json")
    index = _json(path / INDEX)
    if not files and index.value is None:
        raise UsageError(f"{path}: no checkpoint: it has no .safetensors files")
    weight_map = _weight_map(index)
    findings: list[Finding] = []
    if weight_map is not None:
        files, left_out = _without_consolidated(files, set(weight_map.values()))
        findings += left_out
    tensors = _open(files, findings)
    findings += _no_index(files) if weight_map is None else _against_index(weight_map, files, tensors)
    return Checkpoint(
        path,
        _json(path / "config.json"),
        _json(path / "hf_quant_config.json"),
        _json(path / "quant_cfg.json"),
        tensors,
        findings,
    )


def _json(path: Path) -> Node:
    if not path.exists():
        return NOTHING
    _, nodes = load(path)
    if len(nodes) != 1 or not isinstance(nodes[0].value, dict):
        raise UsageError(f"{path}: expected one JSON object")
    return nodes[0]


def _weight_map(index: Node) -> dict[str, str] | None:
    if index.value is None:
        return None
    node = index.at("weight_map").need()
    if not isinstance(node.value, dict) or not all(isinstance(file, str) for file in node.value.values()):
        node.refuse("expected an object of file names")
    return node.value


def _without_consolidated(files: list[Path], indexed: set[str]) -> tuple[list[Path], list[Finding]]:
    """Some publishers put the same weights beside the shards once more, whole; engines go by the index."""
    extra = [file for file in files if file.name not in indexed and file.name.startswith("consolidated")]
    where, what = some(file.name for file in extra), f"not in {INDEX} and left out here, as engines do"
    note = Finding("note", "file-left-out", where, what, "nothing, or delete it to save space")
    return [file for file in files if file not in extra], [note] if extra else []


def _open(files: list[Path], findings: list[Finding]) -> dict[str, Tensor]:
    """All tensors of the files that are sound; adds a finding for each that is not."""
    tensors: dict[str, Tensor] = {}
    twice = []
    for file in files:
        if not file.is_file():
            findings.append(Finding("error", "broken-file", file.name, "no file, or a link to nothing", DOWNLOAD))
            continue
        try:
            found = open_header(file).tensors
        except OSError as error:
            raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            what = printable(str(error).removeprefix(f"{file} is ").removeprefix(f"{file} "))
            findings.append(Finding("error", "broken-file", file.name, what, DOWNLOAD))
            continue
        twice += found.keys() & tensors.keys()
        tensors |= found
    if twice:
        what = "in more than one file; which one is loaded depends on the engine"
        advice = "keep one set of files; delete what an earlier export left in the folder"
        findings.append(Finding("error", "duplicate-tensor", some(sorted(twice), "tensor"), what, advice))
    return tensors


def _no_index(files: list[Path]) -> Iterator[Finding]:
    """Several files tell by their names whether one is missing."""
    numbers = [re.search(r"-(\d+)-of-(\d+)$", file.stem) for file in files]
    totals = {int(number[2]) for number in numbers if number}
    have = {int(number[1]) for number in numbers if number}
    missing = [str(number) for number in range(1, min(max(totals, default=0), 10_000) + 1) if number not in have]
    if missing:
        what = f"missing: {len(have)} of {max(totals)} numbered files are here"
        yield Finding("error", "missing-file", f"file {some(missing)}", what, "fetch the missing files")
    if len(files) > 1:
        what = (
            f"missing, with {len(files)} files: transformers cannot load the folder, and nobody can see a lost tensor"
        )
        yield Finding("warning", "no-index", INDEX, what, "fetch the index, or export again")


def _against_index(weight_map: dict[str, str], files: list[Path], tensors: dict[str, Tensor]) -> Iterator[Finding]:
    names = {file.name for file in files}
    absent = sorted(set(weight_map.values()) - names)
    if absent:
        what = f"named in {INDEX}, not in the folder"
        yield Finding("error", "missing-file", some(absent, "file"), what, "fetch the missing files")
    lost = [name for name, file in weight_map.items() if file in names and name not in tensors]
    if lost:
        what = f"named in {INDEX}, in none of the files"
        yield Finding("error", "missing-tensor", some(lost, "tensor"), what, DOWNLOAD)
    astray = [n for n, file in weight_map.items() if n in tensors and file in names and tensors[n].path.name != file]
    if astray:
        what = f"in another file than {INDEX} says"
        yield Finding("error", "index-wrong-file", some(astray, "tensor"), what, "write the index again")
    unknown = [name for name in tensors if name not in weight_map]
    if unknown:
        what = f"in the files, not in {INDEX}: engines that go by the index do not load it"
        yield Finding("error", "tensor-not-in-index", some(unknown, "tensor"), what, "write the index again")
