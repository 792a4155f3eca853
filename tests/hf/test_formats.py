"""Every emulated value is exactly what its format can hold: checked against ml_dtypes and torchao, which share no code
with the library that converts."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from harness_hf.formats import activation_through, weight_through

E4M3, E2M1, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu
ROWS, COLUMNS = 256, 384


@pytest.fixture(params=[1.0, 1e-3, 50.0], ids=lambda scale: f"scale {scale:g}")
def values(request) -> np.ndarray:
    draw = np.random.default_rng(7)
    return (draw.standard_t(4, (ROWS, COLUMNS)) * request.param).astype(np.float32)


def cast(values: np.ndarray, dtype) -> np.ndarray:
    return values.astype(dtype).astype(np.float32)


def e4m3_per_tensor(values: np.ndarray) -> np.ndarray:
    scale = np.abs(values).max() / np.float32(448)
    return cast(values / scale, E4M3) * scale


def e4m3_per_block(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    blocks = values.reshape(ROWS // rows, rows, COLUMNS // columns, columns)
    scale = np.abs(blocks).max((1, 3), keepdims=True) / np.float32(448)
    return (cast(blocks / scale, E4M3) * scale).reshape(values.shape)


def nvfp4(values: np.ndarray) -> np.ndarray:
    """E2M1 in blocks of 16; a block's scale is amax / 6 in E4M3, after one FP32 scale for the tensor."""
    tensor_scale = np.float32(448 * 6) / np.abs(values).max()
    blocks = values.reshape(ROWS, -1, 16)
    block_scale = cast(np.abs(blocks).max(-1, keepdims=True) / np.float32(6) * tensor_scale, E4M3)
    block_scale[block_scale == 0] = 0.125
    return (cast(blocks / (block_scale / tensor_scale), E2M1) * (block_scale / tensor_scale)).reshape(values.shape)


def mxfp4(values: np.ndarray) -> np.ndarray:
    """E2M1 in blocks of 32; the scale is the power of two under amax, rounded as E2M1 rounds, over 4."""
    blocks = values.reshape(ROWS, -1, 32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    rounded_up = amax / np.exp2(np.floor(np.log2(amax))) >= 1.75
    scale = cast(np.exp2(np.floor(np.log2(amax)) + rounded_up - 2), E8M0)
    return (cast(np.clip(blocks / scale, -6, 6), E2M1) * scale).reshape(values.shape)


@pytest.mark.parametrize(
    "through, precision, expected",
    [
        (weight_through, "fp8", e4m3_per_tensor),
        (activation_through, "fp8", e4m3_per_tensor),
        (weight_through, "fp8_block", lambda values: e4m3_per_block(values, 128, 128)),
        (activation_through, "fp8_block", lambda values: e4m3_per_block(values, 1, 128)),
        (weight_through, "nvfp4", nvfp4),
        (activation_through, "nvfp4", nvfp4),
        (weight_through, "mxfp4", mxfp4),
        (activation_through, "mxfp4", mxfp4),
    ],
)
def test_values_are_those_of_a_second_library(values, through, precision, expected):
    ours = through(precision, torch.from_numpy(values)).numpy()
    theirs = expected(values)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(values).max()
    assert (ours != values).mean() > 0.5, "the format must have changed something"


@pytest.mark.parametrize("precision", ["fp8", "fp8_block", "nvfp4", "mxfp4"])
def test_zeros_stay_zeros_and_bf16_stays_bf16(precision):
    zeros = torch.zeros(128, 128, dtype=torch.bfloat16)
    assert torch.equal(weight_through(precision, zeros), zeros)
    assert weight_through(precision, torch.randn(128, 128).bfloat16()).dtype == torch.bfloat16
    assert activation_through(precision, torch.empty(0, 128)).shape == (0, 128)


TORCHAO = """
import torch
from harness_hf.formats import weight_through
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

torch.manual_seed(0)
for scale in (1e-3, 1.0, 50.0):
    values = torch.randn(256, 384) * scale
    theirs = NVFP4Tensor.to_nvfp4(values, per_tensor_scale=per_tensor_amax_to_scale(values.abs().max())).dequantize(torch.float32)
    torch.testing.assert_close(weight_through("nvfp4", values), theirs, rtol=1e-6, atol=0)
    theirs = MXTensor.to_mx(values, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.EVEN).dequantize(torch.float32)
    torch.testing.assert_close(weight_through("mxfp4", values), theirs, rtol=0, atol=0)
print("agree")
"""


def test_four_bit_values_are_those_of_torchao(tmp_path):
    """In a folder of its own: transformers imports torchao wherever it finds it, which would slow every worker."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), "torchao==0.18.0"]
    subprocess.run(pip, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", TORCHAO], env=environment, capture_output=True, text=True)
    assert answer.stdout.strip() == "agree", answer.stderr
