"""kernel_flop_ratio of a trace: whole categories count, split ones are refused, and what is not told is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars
import pytest
from shapes import QWEN3_30B

from harness.errors import UsageError
from harness.evaluation.traced import KernelSet, count, of_trace, read_set
from harness.kernels.labelling import Labelled
from harness.kernels.taxonomy import Label
from harness.traces.trace import SCHEMA, Step, Trace

SHARED = Path(__file__).parents[1] / "../shared"
EXPERTS = 48 * 8 * 3 * 2048 * 768  # MACs of one token
ROUTER = 48 * 2048 * 128
DENSE = 48 * 2 * 2048 * (32 + 4) * 128 + 2048 * 151936
SCORES = 48 * 2 * 32 * 128 * 576  # of a token that sees 575 others and itself
PLAIN = [  # category, name, calls
    ("expert_gemm", "fused_moe_kernel", 96),
    ("dense_gemm", "nvjet_tst_64x8", 97),
    ("gate_gemm", "router_gemm", 48),
    ("attention", "flash_fwd_splitkv", 48),
    ("attention", "reshape_and_cache_flash", 48),
    ("norm", "fused_add_rms_norm", 96),
    ("routing_permute", "moe_align_block_size", 48),
]


def traced(rows, steps=(), found_by="name", in_step=None) -> tuple[Trace, Labelled]:
    labels = tuple(Label(category, found_by, "high", "by hand") for category, *_ in rows)
    columns = {
        "start": [None] * len(rows),
        "duration": [1000 * calls for _, _, calls in rows],
        "count": [calls for _, _, calls in rows],
        "device": [0] * len(rows),
        "stream": [7] * len(rows),
        "kind": ["kernel"] * len(rows),
        "name": list(range(len(rows))),
        "scope": [None] * len(rows),
        "step": [in_step] * len(rows),
    }
    ops = polars.DataFrame(columns, schema=SCHEMA)
    label = polars.Series("label", range(len(rows)), dtype=polars.UInt16)
    trace = Trace("t.json", "by hand", ops, tuple(name for _, name, _ in rows), steps=tuple(steps))
    return trace, Labelled(ops.with_columns(label), labels)


def a_set(*kernels, phase="decode", **more) -> KernelSet:
    return KernelSet(Path("t.json"), QWEN3_30B, phase, 1, 512, 128, kernels, **more)


def test_a_category_whose_kernels_are_all_named_counts_whole():
    flops = of_trace(*traced(PLAIN), a_set("fused_moe"))
    assert (flops.kernel_macs, flops.total_macs) == (EXPERTS, EXPERTS + ROUTER + DENSE + SCORES)
    assert flops.ratio == pytest.approx(0.5545, abs=0.001)
    assert any("marks no phases" in note for note in flops.notes)


def test_all_kernels_make_the_whole():
    flops = of_trace(*traced(PLAIN), a_set("."))
    assert flops.ratio == 1
    assert "kernels of the set in norm, routing_permute do no products that are counted" in flops.notes


def test_kernels_that_multiply_nothing_do_no_share_of_the_products():
    flops = of_trace(*traced(PLAIN), a_set("fused_add_rms_norm"))
    assert flops.kernel_macs == 0 and flops.total_macs > 0


def test_a_split_category_gives_no_ratio_until_the_user_says_how_it_is_split():
    with pytest.raises(UsageError) as error:
        of_trace(*traced(PLAIN), a_set("flash_fwd"))
    assert "of attention the set has 'flash_fwd_splitkv' and not 'reshape_and_cache_flash'" in str(error.value)
    assert "no_products" in str(error.value) and "\n" not in str(error.value)
    flops = of_trace(*traced(PLAIN), a_set("flash_fwd", no_products=("reshape_and_cache",)))
    assert flops.kernel_macs == SCORES


def test_calls_of_equal_work_share_their_category_by_number():
    rows = [("expert_gemm", "mine", 24), ("expert_gemm", "theirs", 72), *PLAIN[1:]]
    flops = of_trace(*traced(rows), a_set("mine", split_by_calls=("expert_gemm",)))
    assert flops.kernel_macs == round(EXPERTS / 4)
    assert "0.2500 of expert_gemm by calls, said to be equal work" in flops.notes


def test_a_router_that_no_name_tells_is_counted_with_the_dense_products():
    rows = [row for row in PLAIN if row[0] != "gate_gemm"]
    flops = of_trace(*traced(rows), a_set("nvjet"))
    assert flops.kernel_macs == DENSE + ROUTER
    assert any("no kernel is labelled as the router's" in note for note in flops.notes)


def test_products_that_no_kernel_is_known_to_do_are_not_guessed():
    rows = [row for row in PLAIN if row[0] != "expert_gemm"]
    with pytest.raises(UsageError, match="no kernel of decode is labelled expert_gemm"):
        of_trace(*traced(rows), a_set("nvjet"))


def test_a_pattern_that_matches_nothing_is_a_mistake_and_not_a_ratio_of_zero():
    with pytest.raises(UsageError, match="t.json: no kernel of decode matches 'fused_mole'"):
        of_trace(*traced(PLAIN), a_set("fused_moe", "fused_mole"))
    with pytest.raises(UsageError, match="is no regular expression"):
        of_trace(*traced(PLAIN), a_set("(", "x"))


def test_only_steps_of_the_phase_are_counted():
    steps = [Step("p", "prefill"), Step("d", "decode")]
    prefill = of_trace(*traced(PLAIN, steps, in_step=0), a_set("fused_moe", phase="prefill"))
    assert prefill.kernel_macs == 512 * EXPERTS and prefill.notes == ()
    assert prefill.total_macs == 512 * (EXPERTS + ROUTER + DENSE - 2048 * 151936) + 2048 * 151936 + round(
        48 * 2 * 32 * 128 * 512 * 513 / 2
    ), "the head gives one row of logits"
    with pytest.raises(UsageError, match="has no step of decode"):
        of_trace(*traced(PLAIN, steps[:1], in_step=0), a_set("fused_moe"))
    with pytest.raises(UsageError, match="holds no kernel of decode"):
        of_trace(*traced(PLAIN, steps, in_step=0), a_set("fused_moe"))


def test_much_time_that_no_rule_knows_is_said():
    trace, labelled = traced([*PLAIN, ("other", "mystery", 600)])
    unknown = Label("other", "none", "low", "no rule knows it")
    flops = of_trace(trace, Labelled(labelled.ops, (*labelled.labels[:-1], unknown)), a_set("fused_moe"))
    assert any("55.5% of kernel time is of kernels no rule knows" in note for note in flops.notes)


GIVEN = {
    "trace": "t.json",
    "config": "config.json",
    "phase": "decode",
    "batch_size": 1,
    "input_len": 512,
    "output_len": 128,
    "kernels": ["fused_moe_kernel"],
}


def written(folder: Path, **changes) -> Path:
    given = {name: value for name, value in {**GIVEN, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(QWEN3_30B))
    (folder / "kernel_set.json").write_text(json.dumps(given))
    return folder


def test_a_description_is_read_from_its_file_or_its_folder(tmp_path):
    found = read_set(written(tmp_path))
    assert found == read_set(tmp_path / "kernel_set.json")
    assert (found.trace, found.config, found.kernels) == (tmp_path / "t.json", QWEN3_30B, ("fused_moe_kernel",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trace": None}, r"\$.trace: missing"),
        ({"kernels": None}, r"\$.kernels: missing"),
        ({"kernels": []}, "at least one pattern"),
        ({"kernels": [1]}, r"kernels\[0\]: expected one line of text"),
        ({"kernels": "fused"}, "expected a list"),
        ({"kernel": ["x"]}, "'kernel' is not a key here"),
        ({"phase": "both"}, "expected prefill or decode, got 'both'"),
        ({"output_len": None}, "decode needs at least 2 output tokens"),
        ({"output_len": 1}, "decode needs at least 2 output tokens"),
        ({"batch_size": 0}, "expected a whole number from 1 on"),
        ({"input_len": 1.5}, "expected a whole number"),
        ({"split_by_calls": ["norm"]}, "'norm' is none of expert_gemm"),
        ({"config": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_a_wrong_description_costs_one_line_that_names_the_place(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words) as error:
        read_set(written(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{} {}", "\x00", "3"])
def test_a_file_that_is_no_description_is_refused(tmp_path, content):
    (tmp_path / "kernel_set.json").write_text(content)
    with pytest.raises(UsageError, match="kernel_set.json"):
        count(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        count(tmp_path / "nowhere")


def test_a_trace_file_is_read_labelled_and_counted(tmp_path):
    """One prefill step of a small Kineto trace, from the file to the ratio."""
    events = [
        {"ph": "X", "cat": "user_annotation", "name": "execute_context_1(512)_generation_0(0)", "ts": 0, "dur": 5000}
        | {"pid": 1, "tid": 1}
    ]
    for index, name in enumerate(["fused_moe_kernel", "nvjet_tst_64x8_v_bz_TNT", "void flash_fwd_kernel<1>"], 1):
        launch = {"ph": "X", "pid": 1, "tid": 1, "ts": 10 + index, "dur": 1, "args": {"correlation": index}}
        events.append({**launch, "cat": "cuda_runtime", "name": "cudaLaunchKernel"})
        args = {"correlation": index, "device": 0, "stream": 7}
        kernel = {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 100 * index + 50, "dur": 90}
        events.append({**kernel, "args": args})
    with gzip.open(tmp_path / "t.json.gz", "wt") as file:
        json.dump({"schemaVersion": 1, "deviceProperties": [{"name": "NVIDIA H200"}], "traceEvents": events}, file)
    flops = count(written(tmp_path, trace="t.json.gz", phase="prefill", output_len=None))
    assert flops.kernel_macs == 512 * EXPERTS and 0 < flops.ratio < 1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_real_trace_has_its_experts_in_one_kernel(tmp_path, phase):
    trace = SHARED / "traces/vllm0.24_qwen3-30b-a3b_bf16_h200.kineto.json.gz"
    if not trace.exists():
        pytest.skip("no recorded traces at hand")
    flops = count(written(tmp_path, trace=str(trace.resolve()), phase=phase, output_len=4))
    assert flops.kernel_macs == (512 if phase == "prefill" else 1) * EXPERTS
    assert 0.4 < flops.ratio < 0.9
