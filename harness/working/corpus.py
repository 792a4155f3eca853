"""The text behind a dataset name: `stdlib`, `wikitext` or `file:PATH`. It never tokenises and never caches.

`stdlib` ships no text: it is the documentation of the running interpreter's own standard library, read with `ast`
and never imported, so building it executes nothing. The modules are split by a hash of their name into train,
validation and test, so the test part was never seen by the embedded model whatever Python version runs.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UsageError

DATASETS = ("stdlib", "wikitext", "file:PATH")
SHORTEST = 40  # characters; shorter docstrings are noise such as "Return x."
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def read_text(dataset: str) -> str:
    """The evaluation text of a dataset name.

    Raises UsageError when the name is unknown, the file cannot be read, or `wikitext` cannot be fetched.
    """
    if dataset == "stdlib":
        return stdlib_text("test")
    if dataset == "wikitext":
        return _wikitext()
    if dataset.startswith("file:"):
        return _file_text(Path(dataset.removeprefix("file:")))
    raise UsageError(f"unknown dataset {dataset!r}: use one of {', '.join(DATASETS)}")


def stdlib_text(split: str) -> str:
    """Documentation strings of the standard library's modules of one split (`train`, `validation` or `test`)."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = (path for path in sorted(_sources(root)) if _split_of(path.relative_to(root)) == split)
    texts = (text for path in sources for text in _docstrings(path))
    return "\n\n".join(dict.fromkeys(texts)) + "\n"  # dict.fromkeys: a text repeated across modules counts once


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = set(subfolders) - SKIPPED  # above all site-packages, which may hold a hundred thousand files
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _split_of(relative: Path) -> str:
    """Twins such as `_pydecimal` and `decimal` share much text, so they share a split: the name is taken bare."""
    name = relative.parts[0].removesuffix(".py").removeprefix("_py").strip("_")
    bucket = hashlib.sha256(name.encode()).digest()[0] % 16
    return {0: "test", 1: "test", 10: "validation"}.get(bucket, "train")


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the library holds a few files that are broken on purpose
        return
    for node in ast.walk(tree) if path.name == "topics.py" else _statements(tree):
        text = None
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
        elif path.name == "topics.py" and isinstance(node, ast.Dict):  # pydoc's topics: a dictionary of long texts
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value.strip()
        if text and len(text) >= SHORTEST:
            yield text


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """As ast.walk, in its order, without going into expressions: no docstring is in one."""
    nodes = deque([tree])
    while nodes:
        node = nodes.popleft()
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            nodes.extend(child for child in getattr(node, part, ()) if isinstance(child, ast.AST))
        yield node


def _wikitext() -> str:
    """WikiText-2 raw, test split, its rows joined as the papers do (two newlines between rows)."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError("dataset wikitext needs the package 'datasets': pip install 'moe-harness[hf]'") from error
    try:
        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
    except Exception as error:  # datasets raises a dozen types for "no network"; its own words say which
        raise UsageError(f"dataset wikitext could not be loaded: {type(error).__name__}: {error}") from error
    return "\n\n".join(rows)


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"dataset file {str(path)!r} cannot be read: {error}") from error
