"""SGLang's double: on the path of every worker these tests start, and of no other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOUBLE = ROOT / "tests/doubles/sglang"


def on_path(env: dict[str, str], *words: str) -> dict[str, str]:
    """An environment in which `sglang` is the double. With the word "gpu" this machine stands in for one with a GPU."""
    paths = [str(DOUBLE), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths), "SGLANG_DOUBLE": ",".join(words)}


@pytest.fixture(scope="session")
def double_env() -> dict[str, str]:
    return {**on_path(dict(os.environ), "gpu"), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def sglang(harness):
    """`harness run --engine sglang` on tiny sizes: `sglang.run(options, sins=...)`."""

    def run(*more: object, sins: tuple[str, ...] = (), has_gpu: bool = True) -> object:
        sizes = ["--input-len", 16, "--output-len", 4, "--num-iterations", 2, "--warmup-iterations", 1]
        harness.env = on_path(harness.env, *["gpu"] * has_gpu, *sins)
        python = ["--python", f"sglang={sys.executable}"]
        chunks = ["--num-chunks", 2, "--precision", "bf16"]
        return harness("run", "--engine", "sglang", *python, "--output-dir", "out", *sizes, *chunks, *more)

    harness.run = run
    return harness
