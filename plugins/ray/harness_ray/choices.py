"""What `--launcher-option NAME=VALUE` says to Ray: address, gpu, cpus, wait, python.ENGINE and runtime_env.ENGINE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.names import check_known
from harness.plugins import discover

NAMES = ("address", "gpu", "cpus", "wait", "python.ENGINE", "runtime_env.ENGINE")


@dataclass(frozen=True)
class Choices:
    address: str | None = None  # HOST:PORT of the head; None: the cluster of this machine, else one that is started
    gpu: str | None = None  # Ray's name of a kind of GPU, such as H200
    cpus: int | None = None  # cores of a load; None: on a CPU all of a node, beside a GPU one
    wait: float = 60.0  # seconds in which a node that can hold a load must come
    pythons: Mapping[str, str] = field(default_factory=dict)  # engine -> interpreter on the nodes
    runtime_envs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # engine -> Ray's runtime environment


def parse(options: Mapping[str, str]) -> Choices:
    """Raises UsageError for a name or a value that is none."""
    plain: dict[str, Any] = {}
    pythons: dict[str, str] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    for name, value in options.items():
        what, _, engine = name.partition(".")
        if engine and what in ("python", "runtime_env"):
            check_known("engine", engine, discover().engines)
        if name in ("address", "gpu"):
            plain[name] = value
        elif name in ("cpus", "wait"):
            plain[name] = _number(name, value)
        elif engine and what == "python":
            pythons[engine] = value
        elif engine and what == "runtime_env":
            environments[engine] = _runtime_env(name, Path(value))
        else:
            raise UsageError(f"the launcher 'ray' has no option {name}; it has {', '.join(NAMES)}")
    if both := sorted(pythons.keys() & environments.keys()):
        raise UsageError(f"{both[0]}: python.{both[0]} or runtime_env.{both[0]}, please: each names its interpreter")
    if plain.get("address", "").startswith("ray://"):
        raise UsageError(
            f"address={plain['address']}: HOST:PORT, please, on a machine of the cluster, not Ray's client"
        )
    return Choices(**plain, pythons=pythons, runtime_envs=environments)


def _number(name: str, value: str) -> int | float:
    try:
        number = {"cpus": int, "wait": float}[name](value)
        if 0 < number < float("inf"):
            return number
    except ValueError:
        pass
    raise UsageError(f"--launcher-option {name}={value}: expected a number above 0")


def _runtime_env(name: str, path: Path) -> Mapping[str, Any]:
    """YAML, of which JSON is a part."""
    import yaml
    from ray.runtime_env import RuntimeEnv

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        if unknown := sorted(map(str, found.keys() - RuntimeEnv.known_fields)):
            raise ValueError(f"unknown key {unknown[0]}; Ray knows {', '.join(sorted(RuntimeEnv.known_fields))}")
        return RuntimeEnv(**found).to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"--launcher-option {name}={path}: no runtime environment: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
