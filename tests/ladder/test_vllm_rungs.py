"""vLLM's rungs as arguments of its LLM, and what proves that they are in force. Needs no vLLM."""

import pytest
from harness_vllm.rungs import RUNGS, arguments, state

from harness.device import Device

EAGER = {
    "compile_mode": "NONE",
    "cudagraph_mode": "NONE",
    "chunked_prefill": False,
    "kv_dtype": "bfloat16",
    "speculative_decoding": "off",
    "prefix_cache": False,
}


def test_the_default_is_left_to_vllm_but_for_prefix_caching():
    assert arguments(None) == {"enable_prefix_caching": False}


def test_none_is_plain_eager():
    off = {"enable_prefix_caching": False, "enable_chunked_prefill": False}
    assert arguments(()) == {**off, "enforce_eager": True}


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (("compile",), {"mode": 3, "cudagraph_mode": "NONE"}),
        (("cuda_graphs",), {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}),
        (("compile", "cuda_graphs"), {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"}),
    ],
)
def test_compilation_and_graphs_are_chosen_apart(names, config):
    assert arguments(names)["compilation_config"] == config and "enforce_eager" not in arguments(names)


def test_the_cache_the_guesses_and_the_prefixes_are_arguments_of_their_own():
    found = arguments(("fp8_kv", "ngram", "prefix_caching"))
    assert found["kv_cache_dtype"] == "fp8" and found["speculative_config"]["method"] == "ngram"
    assert found["enable_prefix_caching"]


def test_what_is_in_force_is_read_from_the_running_engine():
    assert state(EAGER)["rungs_in_force"] == {}
    on = {
        "compile_mode": "VLLM_COMPILE",
        "cudagraph_mode": "FULL_AND_PIECEWISE",
        "chunked_prefill": True,
        "kv_dtype": "uint8",
        "speculative_decoding": "ngram",
        "prefix_cache": True,
    }
    assert state(on)["rungs_in_force"].keys() == {rung.name for rung in RUNGS}
    assert "not found" in state({**on, "cudagraph_mode": None})["rungs_off"]["cuda_graphs"]


def test_a_cpu_and_an_older_gpu_say_what_they_lack():
    problems = {rung.name: rung.problem("bf16", Device("cpu", "a CPU", 2, None)) for rung in RUNGS}
    assert [name for name, why in problems.items() if why is None] == [
        "chunked_prefill",
        "fp8_kv",
        "ngram",
        "prefix_caching",
    ]
    cache = next(rung for rung in RUNGS if rung.name == "fp8_kv")
    assert cache.problem("bf16", Device("cuda", "a GPU", 1, None, 80)) == "needs SM 89 or later, this GPU is SM 80"
    assert cache.problem("bf16", Device("cuda", "a GPU", 1, None, 90)) is None
