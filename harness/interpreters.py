"""Which Python runs which engine, and what is installed there. Asks package metadata; imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata

from harness.engine import EngineSpec
from harness.errors import UsageError

_ASK = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


def python_for(engine: str, chosen: Mapping[str, str]) -> str:
    """The interpreter of an engine: the one chosen with --python, else our own. Raises UsageError if it is not there."""
    if engine not in chosen:
        return sys.executable
    import shutil

    python = shutil.which(os.path.expanduser(chosen[engine]))
    if python is None:
        raise UsageError(f"--python {engine}={chosen[engine]}: no such program")
    return os.path.abspath(python)  # not resolved: a link inside a virtual environment is what makes it one


def versions(python: str, distributions: Iterable[str]) -> dict[str, str | None]:
    """Version of each distribution in that interpreter; None where it is missing."""
    names = list(distributions)
    if python == sys.executable:
        return {name: _version_here(name) for name in names}
    import json
    import subprocess

    try:
        answer = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True)
        if answer.returncode:
            words = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
            raise UsageError(f"{python} is no working Python: {words[-1]}")
        return json.loads(answer.stdout)
    except (OSError, ValueError) as error:  # it cannot be executed, or what it printed is no answer
        raise UsageError(f"{python} is no working Python: {error}") from error


def missing(engine: EngineSpec, found: Mapping[str, str | None]) -> list[str]:
    return [name for name in engine.requires if found[name] is None]


def version_of(engine: EngineSpec, found: Mapping[str, str | None]) -> str | None:
    """The engine's own version: that of the last distribution it requires."""
    return found[engine.requires[-1]] if engine.requires else None


def _version_here(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
