"""The kernels of the fused decode step, in a process where Triton interprets them."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness_hf import fused

from harness.kernels.taxonomy import built_in_rules, classify

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


def test_a_profile_knows_every_kernel_by_its_name():
    sources = [ast.parse(file.read_text()) for file in Path(fused.__file__).parent.glob("*.py")]
    launched = {
        call.func.value.id
        for source in sources
        for call in ast.walk(source)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Subscript)
        and isinstance(call.func.value, ast.Name)
        and isinstance(call.func.slice, ast.Tuple)
    }
    found = {name: classify(name, built_in_rules()).category for name in launched}
    assert found == {
        **dict.fromkeys(("_experts_gate_up", "_experts_down", "_experts_down_of_one_token"), "expert_gemm"),
        **dict.fromkeys(("_attention_split", "_attention_combine"), "attention"),
        **dict.fromkeys(("_experts_sum", "_router_topk"), "routing_permute"),
        **{"_dense_linear": "dense_gemm", "_router_linear": "gate_gemm", "_rms_norm": "norm"},
        **{"pick_argmax": "sampling", "embed": "other"},
        **{"_fp8_grouped_mm": "expert_gemm", "_fp8_scaled_mm": "dense_gemm"},
    }
