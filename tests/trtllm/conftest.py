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


@pytest.fixture(scope="session")
def environment_of():
    return environment


@pytest.fixture(scope="session")
def sessions(tmp_path_factory):
    """`sessions(era, asked, ..., env)`: what each says of itself, and what they printed; see one_session.py."""

    def sessions(era: str, *asked: dict, env: dict[str, str] | None = None) -> tuple[list[dict], str]:
        folder = tmp_path_factory.mktemp("sessions")
        words = [sys.executable, Path(__file__).parent / "one_session.py", json.dumps(asked), folder / "answers.json"]
        done = subprocess.run(words, cwd=folder, env=environment(era, **(env or {})), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((folder / "answers.json").read_text()), done.stdout

    return sessions


SIZES = "--input-len 64 --output-len 4 --num-iterations 2 --warmup-iterations 1 --num-chunks 2".split()


@pytest.fixture(scope="session")
def sizes():
    return SIZES


@pytest.fixture
def trtllm(harness):
    """`harness run --engine trtllm` on tiny sizes, on the double of 1.2 if `use` is not called."""

    def arguments(*more: object) -> list[object]:
        return ["run", "--engine", "trtllm", "--precision", "bf16", "--output-dir", "out", *SIZES, *more]

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
    from harness.model import models

    def folder_with(files: dict[str, object] | None = None, **config: object) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        own = json.loads((Path(models.resolve("tinymoe").path) / "config.json").read_text())
        for name, content in {"config.json": {**own, **config}, **(files or {})}.items():
            (folder / name).write_text(json.dumps(content))
        return folder

    return folder_with
