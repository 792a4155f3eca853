"""The real vLLM of `.venv-vllm`, which `make test` builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.model import models
from harness.planning import interpreters
from harness.plugins import discover


@pytest.fixture(scope="session")
def vllm_python() -> str:
    environment = interpreters.look(discover().engines["vllm"], {})
    assert environment.problem is None, environment.problem
    return environment.python


@pytest.fixture
def vllm(harness, vllm_python):
    """`harness run --engine vllm` on tiny sizes; tests add models, cells and bad luck."""

    def arguments(*more: object) -> list[object]:
        sizes = ["--input-len", 16, "--output-len", 4, "--num-iterations", 2, "--warmup-iterations", 1]
        return ["run", "--engine", "vllm", "--python", f"vllm={vllm_python}", "--output-dir", "out", *sizes, *more]

    harness.vllm = arguments
    harness.env["VLLM_RPC_BASE_PATH"] = "/tmp"  # a test's own temporary folder is too long a name for a socket
    return harness


@pytest.fixture
def bent(tmp_path):
    """A copy of tinymoe with another config and other files: `bent(name, files, **config)` returns its folder."""

    def bend(name: str, files: dict[str, bytes] | None = None, **config: object) -> Path:
        folder = shutil.copytree(models.resolve("tinymoe").path, tmp_path / name)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        return folder

    return bend
