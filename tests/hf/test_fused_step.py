"""The kernels of the fused decode step, in a process where Triton interprets them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

VLLMS = Path(__file__).parents[2] / ".venv-vllm/bin/python"  # vLLM brings Triton, PyTorch for CPUs does not
PYTHON = sys.executable if importlib.util.find_spec("triton") else str(VLLMS) if VLLMS.exists() else None


@pytest.mark.skipif(PYTHON is None, reason="no environment has Triton: make venv-vllm")
def test_every_kernel_and_the_whole_step_compute_what_transformers_computes():
    done = subprocess.run(
        [
            PYTHON,
            "-m",
            "pytest",
            "-x",
            "-n0",
            "-p",
            "no:cacheprovider",
            Path(__file__).with_name("fused_in_interpreter.py"),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[100%]" in done.stdout and "skipped" not in done.stdout
