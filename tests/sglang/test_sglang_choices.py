"""What is decided before SGLang starts: precisions by SM, arguments a version knows, parallel sizes that divide."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from harness_sglang import arguments as chosen
from harness_sglang import support

from harness import Setup, Unsupported
from harness.cells import Cell, Load
from harness.device import Device
from harness.model import models
from harness.precision import NATIVE, UNSUPPORTED, WEIGHT_ONLY, Support

KNOWN = set(
    "model_path dtype load_format random_seed skip_tokenizer_init trust_remote_code context_length disable_radix_cache "
    "enable_metrics stream_interval tp_size ep_size log_level custom_sigquit_handler attention_backend "
    "moe_runner_backend quantization json_model_override_args".split()
)


def load_of(path: str = "", input_len: int = 16, **setup: object) -> Load:
    setup = Setup(**{"engine": "sglang", "model": "m", "path": path or models.resolve("tinymoe").path, **setup})
    cell = Cell(setup, "perf", {"batch_size": 1, "input_len": input_len, "output_len": 4}, Support(NATIVE))
    return Load(setup, (cell,), NATIVE)


def passed(*path: str, **named: object) -> dict[str, object]:
    return chosen.arguments(load_of(*path, **named), KNOWN)[0]


@pytest.mark.parametrize(
    ("precision", "modes"),
    [
        ("bf16", {75: UNSUPPORTED, 80: NATIVE, 90: NATIVE, 100: NATIVE, 120: NATIVE}),
        ("fp8", {80: UNSUPPORTED, 89: NATIVE, 90: NATIVE, 100: NATIVE}),
        ("fp8_block", {80: UNSUPPORTED, 90: NATIVE}),
        ("nvfp4", {75: UNSUPPORTED, 80: WEIGHT_ONLY, 90: WEIGHT_ONLY, 100: NATIVE, 103: NATIVE, 120: NATIVE}),
        ("mxfp4", {80: WEIGHT_ONLY, 90: WEIGHT_ONLY, 100: NATIVE, 103: NATIVE, 120: NATIVE}),
    ],
)
def test_each_sm_has_its_mode(precision, modes):
    for sm, mode in modes.items():
        answer = support(precision, Device("cuda", "a GPU", 1, None, sm), None)
        assert answer.mode == mode and (answer.reason or mode == NATIVE)
    assert support(precision, Device("cpu", "a CPU", 2, None), None).mode == UNSUPPORTED


def test_sm_120_had_no_mxfp4_kernels_of_its_own_in_earlier_versions():
    gpu = Device("cuda", "a GPU", 1, None, 120)
    modes = [support("mxfp4", gpu, version).mode for version in ("0.5.13", "0.5.16", "0.5.23")]
    assert modes == [WEIGHT_ONLY, WEIGHT_ONLY, NATIVE]


def test_no_argument_is_passed_that_the_version_lacks():
    given, left_out = chosen.arguments(load_of(precision="bf16"), KNOWN)
    assert given["enable_metrics"] is True and left_out == []
    fewer, left_out = chosen.arguments(load_of(precision="bf16"), KNOWN - {"enable_metrics", "stream_interval"})
    assert fewer.keys() < KNOWN and left_out == ["enable_metrics", "stream_interval"]


def test_a_version_that_cannot_switch_its_prefix_cache_off_is_refused():
    with pytest.raises(Unsupported, match="no disable_radix_cache"):
        chosen.arguments(load_of(precision="bf16"), KNOWN - {"disable_radix_cache"})


def test_what_was_asked_for_is_never_left_out_in_silence():
    assert passed(precision="bf16", moe_backend="triton")["moe_runner_backend"] == "triton"
    with pytest.raises(Unsupported, match="no moe_runner_backend"):
        chosen.arguments(load_of(precision="bf16", moe_backend="triton"), KNOWN - {"moe_runner_backend"})


def test_a_format_sglang_cannot_make_is_asked_for_as_a_checkpoint():
    with pytest.raises(Unsupported, match="--checkpoint nvfp4="):
        chosen.arguments(load_of(precision="nvfp4"), KNOWN)


def test_random_weights_take_the_layout_of_a_checkpoint():
    given = passed(precision="fp8_block", weights="dummy")
    layout = json.loads(given["json_model_override_args"])["quantization_config"]
    assert given["load_format"] == "dummy" and layout["weight_block_size"] == [128, 128]
    assert "self_attn" in layout["modules_to_not_convert"]


def test_the_context_is_longer_than_the_longest_sequence_by_what_sglang_keeps_for_itself():
    assert passed(precision="bf16", input_len=2044)["context_length"] == 2044 + 4 + 8


def test_a_precision_a_checkpoint_is_stored_in_is_not_asked_for_again():
    assert "quantization" not in passed(precision="fp8", checkpoint=models.resolve("tinymoe").path)
    assert passed(precision="fp8")["quantization"] == "fp8"


def run(double_env, code: str) -> subprocess.CompletedProcess:
    guarded = "if __name__ == '__main__':\n    " + code.replace("\n", "\n    ")
    return subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True, env=double_env)


def test_the_double_refuses_arguments_sglang_does_not_have(double_env):
    done = run(double_env, "import sglang\nsglang.Engine(model_path='x', skip_tokenizer_init=True, radix_cache=False)")
    assert "unexpected keyword argument 'radix_cache'" in done.stderr and done.returncode == 1


def test_the_double_kills_a_caller_that_does_not_listen(double_env):
    made = "import sglang\ntry:\n    sglang.Engine(model_path='nowhere', skip_tokenizer_init=True)\n"
    done = run(
        {**double_env, "SGLANG_DOUBLE": ""}, made + "except BaseException:\n    print('it raised')\nprint('it lives')"
    )
    assert done.returncode == -9 and done.stdout == "", done.stderr
