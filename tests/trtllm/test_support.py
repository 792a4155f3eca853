"""What TensorRT-LLM does with a precision, by version and GPU, said without either."""

import pytest
from harness_trtllm import support

from harness.device import Device
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, WEIGHT_ONLY

CPU = Device("cpu", "a CPU", 2, None)


def gpu(sm: int) -> Device:
    return Device("cuda", "a GPU", 1, None, sm)


@pytest.mark.parametrize(
    ("precision", "sm", "version", "mode"),
    [
        ("bf16", 80, "1.2.1", NATIVE),
        ("bf16", 75, "1.2.1", UNSUPPORTED),
        ("fp32", 90, "1.2.1", UNSUPPORTED),
        ("fp8", 80, "1.2.1", UNSUPPORTED),
        ("fp8", 89, "1.2.1", NATIVE),
        ("fp8_block", 89, "1.2.1", UNSUPPORTED),
        ("fp8_block", 90, "1.2.1", NATIVE),
        ("fp8_block", 100, "1.2.1", NATIVE),
        ("nvfp4", 90, "1.2.1", UNSUPPORTED),
        ("nvfp4", 90, "1.3.0rc11", WEIGHT_ONLY),
        ("nvfp4", 100, "1.0.0", NATIVE),
        ("nvfp4", 103, "1.4.0rc1", NATIVE),
        ("nvfp4", 120, "1.2.1", UNSUPPORTED),
        ("nvfp4", 120, "1.4.0rc1", NATIVE),
        ("mxfp4", 90, "1.2.1", WEIGHT_ONLY),
        ("mxfp4", 80, "1.4.0rc1", UNSUPPORTED),
    ],
)
def test_the_table_by_version_and_sm(precision, sm, version, mode):
    answer = support(precision, gpu(sm), version)
    assert answer.mode == mode
    assert mode == NATIVE or f"SM {sm}" in answer.reason or precision == "fp32"


def test_without_a_version_the_newest_stable_one_is_meant():
    assert all(support(name, gpu(90), None) == support(name, gpu(90), "1.2.1") for name in PRECISIONS)


def test_without_a_gpu_nothing_runs_and_the_reason_says_so():
    answers = [support(name, CPU, "1.2.1") for name in PRECISIONS]
    assert {answer.mode for answer in answers} == {UNSUPPORTED}
    assert all("needs an NVIDIA GPU" in answer.reason for answer in answers)


def test_on_a_cpu_the_double_runs_bf16_and_says_what_it_is():
    assert support("bf16", CPU, "1.2.1+double").mode == NATIVE
    assert "not TensorRT-LLM" in support("bf16", CPU, "1.2.1+double").reason
    assert support("nvfp4", CPU, "1.2.1+double").mode == UNSUPPORTED
