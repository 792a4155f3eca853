"""The gate: each fault of a capture is named, what was not looked at is said, and a sound trace passes."""

from __future__ import annotations

import pytest
from byhand import LABELS, decode_steps, known_as, made

from harness.kernels.agreement import FAILED, NOT_CHECKED, OK, WARNING, kernels_agree
from harness.kernels.labelling import ROTARY
from harness.kernels.ledger import WHOLE, ledgers
from harness.kernels.validity import Given, check
from harness.traces.trace import Step


def statuses(*ops, given=None, **about):
    """Status and reason by check."""
    for name, *_ in ops:
        LABELS.setdefault(name, known_as("other"))
    trace, labelled = made(*ops, **about)
    found = ledgers(trace, labelled)
    whole = next(ledger for ledger in found if ledger.phase == WHOLE)
    phases = [ledger for ledger in found if ledger.device == whole.device and ledger.phase != WHOLE]
    return {one.name: (one.status, one.reason) for one in check(trace, labelled, whole, phases, given or Given())}


SOUND = [
    op
    for i in range(3)
    for op in (("gemm", i * 100, 30, i), ("attn", i * 100 + 40, 30, i), ("gate", i * 100 + 80, 10, i))
]


def test_a_sound_trace_fails_no_check():
    found = statuses(
        *SOUND, steps=decode_steps(3), scopes=("model > experts",), given=Given(layers=1, step_ms={"decode": 0.0001})
    )
    assert {name for name, (status, _) in found.items() if status == FAILED} == set()
    assert found["calls per layer"][0] == found["profiled decode step like an unprofiled one"][0] == OK
    assert "expert_gemm 1 per decode step" in found["calls per layer"][1]


def test_what_could_not_be_looked_at_is_not_called_ok():
    found = statuses(("gemm", 0, 10), ("attn", 10, 10))
    assert {name for name, (status, _) in found.items() if status == NOT_CHECKED} == {
        "communication present",
        "no graph capture",
        "attributed",
        "calls per layer",
        "sampling once a step",
        "profiled prefill step like an unprofiled one",
        "profiled decode step like an unprofiled one",
        "kernels agree with the precision",
    }
    assert all(reason for _, reason in found.values())


def test_a_trace_without_expert_gemms_or_attention_fails_by_name():
    assert statuses(("attn", 0, 10))["expert GEMM present"][0] == FAILED
    assert statuses(("gemm", 0, 10))["attention present"][0] == FAILED


def test_several_devices_that_never_send_are_pointed_out():
    found = statuses(("gemm", 0, 10), ("attn", 10, 10), ("gemm", 0, 10, None, 1))
    assert found["communication present"][0] == WARNING
    found = statuses(("gemm", 0, 10), ("attn", 10, 10), ("comm", 0, 10, None, 1), ("comm", 30, 10))
    assert found["communication present"][0] == OK


def test_unclassified_time_above_five_percent_warns_and_fails_where_it_outweighs_experts():
    assert statuses(("gemm", 0, 960), ("who", 1000, 40))["classified"][0] == OK
    assert statuses(("gemm", 0, 940), ("who", 1000, 60))["classified"][0] == WARNING
    status, reason = statuses(("gemm", 0, 40), ("who", 1000, 60))["classified"]
    assert status == FAILED and "60.0 %" in reason


@pytest.mark.parametrize("name", ["flashinfer::delayStreamKernel(long)", "AutotuneProbe"])
def test_an_autotuner_in_the_window_fails(name):
    assert statuses(("gemm", 0, 1000), (name, 2000, 1))["no autotuning"][0] == FAILED


def test_filling_memory_most_of_the_time_is_taken_for_an_autotuner():
    fill = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>"
    assert statuses(("gemm", 0, 300), (fill, 1000, 700))["no autotuning"][0] == FAILED
    assert statuses(("gemm", 0, 990), (fill, 1000, 10))["no autotuning"][0] == OK


def test_many_gemms_that_ran_hardly_ever_were_tried_out():
    tried = [f"cutlass_gemm_{index}" for index in range(30)]
    LABELS.update(dict.fromkeys(tried, known_as("dense_gemm")))
    found = statuses(*((name, index * 10, 5) for index, name in enumerate(tried)), ("gemm", 1000, 10))
    assert found["no autotuning"] == (FAILED, "31 of 31 GEMM kernels ran three times or less: they were tried out")


def test_repacking_weights_and_copies_from_the_host_are_loading():
    assert statuses(("gemm", 0, 1000), ("gptq_marlin_repack_kernel", 2000, 10))["no loading"][0] == FAILED
    for copy in ("Memcpy HtoD (Pinned -> Device)", "[CUDA memcpy Host-to-Device]"):
        assert statuses(("gemm", 0, 100), (copy, 2000, 900))["no loading"][0] == FAILED
        assert statuses(("gemm", 0, 1000), (copy, 2000, 10))["no loading"][0] == OK


def test_a_capture_of_graphs_in_the_window_fails():
    found = statuses(*SOUND, steps=decode_steps(3), scopes=("GPUModelRunner > capture_model > experts",))
    assert found["no graph capture"][0] == FAILED


def test_a_step_far_above_the_median_is_said():
    ops = [("gemm", start, 10, index) for index, start in enumerate((0, 100, 1000, 1100))]
    status, reason = statuses(*ops, steps=decode_steps(4))["decode steps alike"]
    assert status == WARNING and reason.startswith("1 of 4 take more than 2 times the median")


def test_calls_that_are_no_multiple_of_the_layers_fail_and_light_kernels_do_not_count():
    steps = decode_steps(3)
    assert statuses(*SOUND, steps=steps, given=Given(layers=2))["calls per layer"][0] == FAILED
    LABELS["prepare"] = known_as("attention")
    ops = [(name, start * 1000, duration * 1000, step) for name, start, duration, step in SOUND]
    ops += [("attn", 500_000, 30_000, 2), ("gemm", 600_000, 30_000, 2), ("gate", 700_000, 10_000, 2)]
    assert statuses(*ops, steps=steps, given=Given(layers=1))["calls per layer"][0] == OK
    light = [("prepare", i * 100_000 + 75_000, 10, i) for i in range(3)] * 1
    twice = [(name, start * 2, duration, step) for name, start, duration, step in ops[:9]]
    twice += [(name, start + 40_000, duration, step) for name, start, duration, step in twice]
    found = statuses(*twice, *light, steps=steps, given=Given(layers=2))["calls per layer"]
    assert found[0] == OK and "attention 2 per decode step" in found[1]


def test_experts_that_run_one_by_one_are_not_counted_but_attention_is():
    loop = [("gemm", i * 100 + at, 1, i) for i in range(3) for at in range(11 + i)]
    attention = [("attn", i * 100 + 40 + at * 10, 5, i) for i in range(3) for at in range(2)]
    router = [("gate", i * 100 + 80 + at, 1, i) for i in range(3) for at in range(7)]
    steps, given = decode_steps(3), Given(layers=2)
    status, reason = statuses(*loop, *attention, *router, steps=steps, given=given)["calls per layer"]
    assert status == OK and "attention 2 per decode step" in reason and "one by one in decode" in reason
    assert statuses(*loop, attention[0], *router, steps=steps, given=given)["calls per layer"][0] == FAILED
    assert statuses(*loop, *router, steps=steps, given=given)["calls per layer"][0] == NOT_CHECKED


def test_a_sampler_in_every_layer_is_a_choice_of_experts_that_was_not_recognised():
    LABELS["topk"] = known_as("sampling")
    ops = [
        (name, i * 40 + at, 9)
        for i in range(16)
        for at, name in ((0, "gemm"), (10, "attn"), (20, "gate"), (30, "topk"))
    ]
    ops = [(*op, 0) for op in ops]
    status, reason = statuses(*ops, steps=decode_steps(1), given=Given(layers=16))["sampling once a step"]
    assert status == FAILED and "16 kernels in a decode step" in reason
    assert statuses(*ops[:-1], steps=decode_steps(1), given=Given(layers=16))["sampling once a step"][0] == OK


def test_a_rotation_made_once_for_all_layers_is_no_call_of_a_layer():
    LABELS["turn"] = ROTARY
    ops = [
        op
        for i in range(3)
        for at in (20, 60)
        for op in (("gemm", i * 100 + at, 9, i), ("attn", i * 100 + at + 10, 9, i))
    ]
    turn = [("turn", i * 100, 15, i) for i in range(3)]
    assert statuses(*turn, *ops, steps=decode_steps(3), given=Given(layers=2))["calls per layer"][0] == OK


@pytest.mark.parametrize(("step_ms", "status"), [(0.0001, OK), (0.000092, OK), (0.00002, FAILED), (0.0002, WARNING)])
def test_a_profiled_step_far_from_an_unprofiled_one_is_said_and_fails_where_its_kernels_alone_take_longer(
    step_ms, status
):
    ops = [*SOUND, ("fill", 290, 10, 2)]  # three steps of 100 ns
    found = statuses(*ops, steps=decode_steps(3), given=Given(step_ms={"decode": step_ms}))
    assert found["profiled decode step like an unprofiled one"][0] == status


def test_a_step_time_of_a_phase_the_trace_lacks_is_not_compared():
    found = statuses(("gemm", 0, 10, 0), steps=[Step("p", "prefill")], given=Given(step_ms={"decode": 1}))
    assert found["profiled decode step like an unprofiled one"][0] == NOT_CHECKED


TRITON, MARLIN = "fused_moe_kernel", "marlin_moe_wna16::Marlin<...>"
TRTLLM_FP4, TRTLLM_FP8 = "bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16", "bmm_Bfloat16_E4m3E4m3_Fp32_t128x8x128"
CUTLASS_BF16 = (
    "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalINS1_17GroupProblemShapeIN10cutlass10bfloat16_tE"
)
BLOCK_FP4 = "nvjet_sm103_ootst_128x64_Avec16UE4M3_Bvec16UE4M3_TNT"
DEEPGEMM = "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u>"
QUANT = ("quant_dequant", "scaled_fp8_quant_kernel", 1)


@pytest.mark.parametrize(
    ("name", "precision", "mode", "more", "status"),
    [
        (CUTLASS_BF16, "bf16", None, [], OK),
        (CUTLASS_BF16, "fp8", "native", [], FAILED),
        (TRTLLM_FP8, "fp8", "native", [], OK),
        (DEEPGEMM, "fp8_block", "native", [], OK),
        (DEEPGEMM, "bf16", "native", [], FAILED),
        (TRTLLM_FP4, "mxfp4", "native", [], OK),
        (TRTLLM_FP4, "fp8", "native", [], FAILED),
        (BLOCK_FP4, "nvfp4", "native", [], OK),
        (BLOCK_FP4, "fp8", "native", [], FAILED),
        (MARLIN, "nvfp4", "native", [], FAILED),
        (MARLIN, "nvfp4", "weight_only", [], OK),
        (MARLIN, "nvfp4", None, [], WARNING),
        (MARLIN, "bf16", None, [], FAILED),
        (TRTLLM_FP4, "nvfp4", "weight_only", [], FAILED),
        (TRITON, "fp8", "native", [], FAILED),
        (TRITON, "fp8", "native", [QUANT], NOT_CHECKED),
        (TRITON, "fp8", None, [("activation", "silu_and_mul_quant_kernel", 1)], NOT_CHECKED),
        (TRITON, "fp8", None, [("attention", "fp8_kv_cache_quant", 1)], FAILED),
        (TRITON, "bf16", None, [], OK),
        (TRITON, "bf16", None, [QUANT], NOT_CHECKED),
        (TRITON, "nvfp4", "weight_only", [], NOT_CHECKED),
        (TRITON, "nvfp4", "emulated", [], NOT_CHECKED),
        (TRITON, "fp32", None, [], NOT_CHECKED),
        (TRITON, None, None, [], NOT_CHECKED),
    ],
)
def test_names_are_held_against_the_label_as_far_as_they_carry_a_format(name, precision, mode, more, status):
    found = kernels_agree([("expert_gemm", name, 100), *more], precision, mode)
    assert (found.status, bool(found.reason)) == (status, True)


def test_the_format_with_most_time_decides():
    found = kernels_agree([("expert_gemm", CUTLASS_BF16, 10), ("expert_gemm", TRTLLM_FP8, 90)], "fp8", "native")
    assert found.status == OK and "90 %" in found.reason


def test_without_expert_gemms_nothing_is_said_of_the_precision():
    assert kernels_agree([("dense_gemm", DEEPGEMM, 10)], "fp8", "native").status == NOT_CHECKED
