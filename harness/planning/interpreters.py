"""Which Python runs which engine, and what is installed there. Asks package metadata; imports nothing heavy."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from harness.engine import EngineSpec
from harness.errors import UsageError

_ASK = """
import sys
sys.path = [path for path in sys.path if path]  # before Python 3.11 the folder one is in comes first
import json
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""
_HOLDS = """
import sys
sys.path = [path for path in sys.path if path]
from importlib.util import find_spec
from pathlib import Path
package, _, rest = sys.argv[1].partition("/")
spec = find_spec(package)
folders = spec and spec.submodule_search_locations or []
print(any((Path(folder) / rest).is_file() for folder in folders))
"""


@dataclass(frozen=True)
class Environment:
    """Where an engine runs and what is there."""

    python: str
    found: Mapping[str, str | None]  # version of each distribution the engine requires; None where it is missing
    problem: str | None = None  # why the engine cannot run there, and what to do
    is_broken: bool = False  # the interpreter, or what is installed in it, not just something missing

    @property
    def version(self) -> str | None:
        """The engine's own: that of the last distribution it requires."""
        return list(self.found.values())[-1] if self.found else None

    @property
    def missing(self) -> list[str]:
        return [name.replace("|", " or ") for name, version in self.found.items() if version is None]


def look(engine: EngineSpec, chosen: Mapping[str, str]) -> Environment:
    """The environment of an engine. Raises UsageError only if the interpreter chosen for it is not there."""
    python = python_for(engine.name, chosen)
    try:
        found = versions(python, engine.requires)
    except UsageError as error:
        return Environment(python, dict.fromkeys(engine.requires), str(error), is_broken=True)
    there = Environment(python, found)
    install = engine.install or f"pip install 'moe-harness[{engine.name}]'"
    if engine.holds and there.version and not _holds(python, engine.holds):
        what = f"{engine.requires[-1]} {there.version} in {python} is an empty placeholder, without {engine.holds}"
        return replace(there, problem=f"engine {engine.name!r}: {what}: {install}", is_broken=True)
    if not there.missing and _release(there.version) >= _release(engine.oldest):
        return there
    if not there.missing:
        what = f"{list(found)[-1]} {engine.oldest} or later, {python} has {there.version}"
        return replace(there, problem=f"engine {engine.name!r} needs {what}: {install}", is_broken=True)
    return replace(there, problem=f"engine {engine.name!r} needs {', '.join(there.missing)} in {python}: {install}")


def python_for(engine: str, chosen: Mapping[str, str]) -> str:
    """The interpreter of an engine: the one chosen with --python, else that of a folder `.venv-ENGINE` here or beside
    our own environment, else our own. Raises UsageError if the chosen one is not there."""
    if engine not in chosen:
        for place in (Path.cwd(), Path(sys.prefix).parent):
            if os.access(python := place / f".venv-{engine}" / "bin" / "python", os.X_OK):
                return str(python)
        return sys.executable
    import shutil

    python = shutil.which(os.path.expanduser(chosen[engine]))
    if python is None:
        raise UsageError(f"--python {engine}={chosen[engine]}: no such program")
    return os.path.abspath(python)  # not resolved: a link inside a virtual environment is what makes it one


def versions(python: str, requires: Iterable[str]) -> dict[str, str | None]:
    """Version of each distribution in that interpreter; None where it is missing. Of alternatives (`a|b`) the one that
    is there is named. Raises UsageError where two alternatives are: they overwrite each other's files."""
    requires = list(requires)
    names = [name for requirement in requires for name in requirement.split("|")]
    found = {name: _version_here(name) for name in names} if python == sys.executable else _ask(python, names)
    answer = {}
    for requirement in requires:
        there = [name for name in requirement.split("|") if found[name] is not None]
        if len(there) > 1:
            what = " and ".join(f"{name} {found[name]}" for name in there)
            raise UsageError(f"{python} has both {what}: they share one package; keep one of them")
        answer[there[0] if there else requirement] = found[there[0]] if there else None
    return answer


def _release(version: str | None) -> tuple[int, ...]:
    """The numbers a version begins with; of `0.5.16rc1+x` (0, 5, 16)."""
    found = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(map(int, found[0].split("."))) if found else ()


def _holds(python: str, file: str) -> bool:
    """Whether the package is there with that file; found, not imported."""
    import subprocess

    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    answer = subprocess.run([python, "-c", _HOLDS, file], capture_output=True, text=True, env=env)
    return answer.stdout.strip() == "True"


def _ask(python: str, names: list[str]) -> dict[str, str | None]:
    import json
    import subprocess

    try:
        env = {**os.environ, "PYTHONSAFEPATH": "1"}
        answer = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True, env=env)
        if answer.returncode:
            words = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
            raise UsageError(f"{python} is no working Python: {words[-1]}")
        found = json.loads(answer.stdout)
        if not isinstance(found, dict) or found.keys() != set(names):
            raise ValueError(f"asked for versions, it answered {answer.stdout[:80]!r}")
        return found
    except (OSError, ValueError) as error:  # it cannot be executed, or what it printed is no answer
        raise UsageError(f"{python} is no working Python: {error}") from error


def _version_here(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
