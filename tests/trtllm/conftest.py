"""The double of TensorRT-LLM in two versions, on the path of processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOUBLES = Path(__file__).parents[1] / "doubles"
ERAS = ("1_2", "1_4")
sys.path.append(str(DOUBLES))  # for trtllm_double, which no engine is; tensorrt_llm itself stays out of this process


def environment(era: str, **more: str) -> dict[str, str]:
    paths = [str(DOUBLES), str(DOUBLES / f"trtllm_{era}"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


@pytest.fixture
def environment_of():
    return environment


@pytest.fixture
def loaded(tmp_path):
    """`loaded(era, what, **setup)`: what one session says of itself; see tests/trtllm/one_session.py."""

    def loaded(era: str, what: str = "facts", env: dict[str, str] | None = None, **asked: object) -> dict:
        answer = tmp_path / "answer.json"
        words = [sys.executable, Path(__file__).parent / "one_session.py", what, json.dumps(asked), answer]
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=environment(era, **(env or {})), capture_output=True, text=True
        )
        assert answer.exists(), done.stdout + done.stderr
        return json.loads(answer.read_text())

    return loaded


@pytest.fixture
def trtllm(harness):
    """`harness run --engine trtllm` on tiny sizes, on the double of 1.2 if `use` is not called."""

    def arguments(*more: object) -> list[object]:
        sizes = ["--input-len", 64, "--output-len", 4, "--num-iterations", 2, "--warmup-iterations", 1]
        return ["run", "--precision", "bf16", "--output-dir", "out", *sizes, "--num-chunks", 2, *more]

    paths = harness.env["PYTHONPATH"]
    harness.use, harness.small_run = lambda era, fault="": _use(harness, paths, era, fault), arguments
    harness.use("1_2")
    return harness


def _use(harness, paths: str, era: str, fault: str) -> None:
    harness.env["PYTHONPATH"] = os.pathsep.join([paths, str(DOUBLES), str(DOUBLES / f"trtllm_{era}")])
    harness.env["TRTLLM_DOUBLE_FAULT"] = fault


@pytest.fixture
def folder_with(tmp_path):
    """A checkpoint folder of these JSON files, besides tinymoe's config.json with other words in it."""
    from harness import models

    def folder_with(files: dict[str, object] | None = None, **config: object) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        own = json.loads((Path(models.resolve("tinymoe").path) / "config.json").read_text())
        for name, content in {"config.json": {**own, **config}, **(files or {})}.items():
            (folder / name).write_text(json.dumps(content))
        return folder

    return folder_with
