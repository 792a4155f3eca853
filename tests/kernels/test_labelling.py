"""Labels of operations: modules before positions before names, on small traces built here and on real ones."""

from dataclasses import replace
from pathlib import Path

import polars
import pytest

from harness.kernels.labelling import label, place_of
from harness.kernels.taxonomy import Rule, built_in_rules
from harness.traces.trace import KINDS, SCHEMA, Trace

TRACES = Path(__file__).parents[2] / "../shared/traces"
GEMM = "nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT"
SPLIT = "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>"
TOPK = "void vllm::moe::topkGating<8, 128, 4, 16, 32, int, __nv_bfloat16>"
GATHER_TOPK = "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>(at::cuda::detail::TensorInfo)"
EXPERT = "fused_moe_kernel"
NORM = "void vllm::rms_norm_kernel<c10::BFloat16, 8, 2>(c10::BFloat16*)"
ATTENTION = "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64>>(flash::Flash_fwd_params)"
COPY = "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>"
MUL = "void at::native::elementwise_kernel<128, 4, at::native::BinaryFunctor<float, at::native::MulFunctor<float>>>"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctorOnSelf_add<float>>"
POW = "void at::native::vectorized_elementwise_kernel<4, at::native::pow_tensor_scalar_kernel_impl<float>>"
MEAN = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>"
RSQRT = "void at::native::vectorized_elementwise_kernel<4, at::native::rsqrt_kernel_cuda(at::TensorIteratorBase&)>"
INDEX = "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int)"
HF_NORM = (COPY, POW, MEAN, ADD, RSQRT, MUL, COPY, MUL)


def trace(*operations, kind="kernel", summary=False):
    """A trace of operations, a name or (name, scope) or (name, scope, stream) each, one after the other."""
    rows = [(one, None, 7) if isinstance(one, str) else (*one, 7)[:3] for one in operations]
    names, scopes = (tuple(dict.fromkeys(row[i] for row in rows if row[i] is not None)) for i in (0, 1))
    columns = {
        "start": [None if summary else 1000 * i for i in range(len(rows))],
        "duration": [500] * len(rows),
        "count": [1] * len(rows),
        "device": [0] * len(rows),
        "stream": [row[2] for row in rows],
        "kind": [kind] * len(rows),
        "name": [names.index(row[0]) for row in rows],
        "scope": [None if row[1] is None else scopes.index(row[1]) for row in rows],
        "step": [None] * len(rows),
    }
    assert kind in KINDS
    return Trace("a trace", "built", polars.DataFrame(columns, schema=SCHEMA), names, scopes)


def found(*operations, **how):
    labelled = label(trace(*operations, **how), built_in_rules())
    return [(labelled.labels[i].category, labelled.labels[i].found_by) for i in labelled.ops["label"]]


def categories(*operations, **how):
    return [category for category, _ in found(*operations, **how)]


def test_every_operation_has_a_label_and_nothing_else_changes():
    one = trace(GEMM, (EXPERT, "FusedMoE_3"), "xyzzy", GEMM)
    labelled = label(one, built_in_rules())
    assert labelled.ops.drop("label").equals(one.ops)
    assert labelled.ops["label"].dtype == polars.UInt16 and labelled.ops["label"].null_count() == 0
    assert len(label(trace(), built_in_rules()).ops) == 0


def test_without_scope_and_position_the_name_decides():
    assert found(GEMM, EXPERT, "xyzzy", summary=True) == [
        ("dense_gemm", "name"),
        ("expert_gemm", "name"),
        ("other", "none"),
    ]


@pytest.mark.parametrize(
    "scope, category",
    [
        (
            "Qwen3MoeForCausalLM_0 > Qwen3MoeDecoderLayer_3 > Qwen3MoeSparseMoeBlock_3 > Qwen3MoeExperts_3",
            "expert_gemm",
        ),
        ("Qwen3MoeSparseMoeBlock_3 > Qwen3MoeTopKRouter_3 > aten::mm", "gate_gemm"),
        ("TransformerBlock_3 > MLPBlock_3 > Linear_3 > aten::addmm", "gate_gemm"),
        ("TransformerBlock_3 > OAIAttention_3 > QKVParallelLinear_3 > aten::addmm", "dense_gemm"),
        ("DeepseekV2MoE_3 > SharedFusedMoE_3 > shared_experts > aten::mm", "dense_gemm"),
        ("model.layers.0.mlp.experts.17.down_proj", "expert_gemm"),
        ("model.layers.0.mlp.gate", "gate_gemm"),
        ("model.layers.0.mlp.shared_expert.up_proj", "dense_gemm"),
        ("model.layers.0.mlp.gate_up_proj", "dense_gemm"),
        ("model.layers.0.self_attn.q_proj", "dense_gemm"),
        ("{'Module': 'model.layers.0.mlp.experts', 'TrainableParams': 3}", "expert_gemm"),
        ("{'Module': 'model.layers.0.block_sparse_moe.gate', 'Inputs': [[1, 2]]}", "gate_gemm"),
        ("MixtralSparseMoeBlock_0 > MixtralBlockSparseTop2MLP_7 > Linear_30", "expert_gemm"),
    ],
)
def test_the_module_that_launched_a_gemm_says_whose_it_is(scope, category):
    assert found((GEMM, scope))[0][0] == category


@pytest.mark.parametrize(
    "name, scope, category",
    [
        (COPY, "LlamaAttention_0 > LlamaRotaryEmbedding_0 > aten::mul", "attention"),
        (COPY, "Qwen3MoeAttention_3 > aten::copy_", "attention"),
        (COPY, "Qwen3MoeAttention_3 > Qwen3MoeRMSNorm_7 > aten::copy_", "norm"),
        (COPY, "model.layers.0.post_attention_layernorm", "norm"),
        (INDEX, "Qwen3MoeSparseMoeBlock_3 > Qwen3MoeExperts_3 > aten::index", "routing_permute"),
        (MUL, "Qwen3MoeSparseMoeBlock_3 > Qwen3MoeExperts_3 > aten::mul", "activation"),
        (GATHER_TOPK, "Qwen3MoeSparseMoeBlock_3 > Qwen3MoeTopKRouter_3 > aten::topk", "routing_permute"),
        (GATHER_TOPK, "Sampler_0 > aten::topk", "sampling"),
        (MEAN, "vllm::moe_forward > _moe_C::moe_sum > aten::sum", "routing_permute"),
        (COPY, "vllm::unified_attention_with_output > _vllm_fa3_C::fwd > aten::fill_", "attention"),
        ("xyzzy", "MLP_0 > aten::mm", "dense_gemm"),
        ("xyzzy", "_C::rms_norm", "norm"),
        ("Memcpy DtoD (Device -> Device)", "FusedMoE_1 > vllm::all_reduce > aten::copy_", "mem"),
        ("void per_token_group_quant_8bit_kernel<x>", "FusedMoE_1", "quant_dequant"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "OAIAttention_3 > RowParallelLinear_3", "comm"),
        (COPY, "LlamaMLP_0 > aten::copy_", "other"),
    ],
)
def test_the_module_refines_what_a_vague_name_says_and_leaves_a_firm_one(name, scope, category):
    assert categories((name, scope)) == [category]


def test_the_parts_of_a_model_are_read_from_classes_and_from_paths():
    scopes = {
        "Qwen3MoeForCausalLM_0 > Qwen3MoeModel_0 > Qwen3MoeDecoderLayer_1": None,
        "Qwen3MoeDecoderLayer_1 > Qwen3MoeMLP_1 > Linear_3": "dense_mlp",
        "Qwen3MoeDecoderLayer_1 > Qwen3MoeRMSNorm_3": "norm",
        "model.layers.3.self_attn.rotary_emb": "rotary",
        "LogitsProcessor_0 > aten::mm": None,
    }
    assert {scope: place_of(scope).part for scope in scopes} == scopes


def test_operations_of_a_cpu_are_labelled_by_their_module():
    block = "Qwen3MoeSparseMoeBlock_3"
    assert categories(
        ("aten::mm", f"{block} > Qwen3MoeExperts_3"),
        ("aten::_grouped_mm", f"{block} > Qwen3MoeExperts_3"),
        ("aten::mm", "Qwen3MoeAttention_3 > Linear_1"),
        ("aten::mm", f"{block} > Qwen3MoeTopKRouter_3"),
        ("aten::silu", f"{block} > Qwen3MoeExperts_3"),
        ("aten::scaled_dot_product_attention", "Qwen3MoeAttention_3"),
        ("aten::rsqrt", "Qwen3MoeRMSNorm_1"),
        ("aten::index_add_", f"{block} > Qwen3MoeExperts_3"),
        kind="op",
    ) == [
        *("expert_gemm", "expert_gemm", "dense_gemm", "gate_gemm"),
        *("activation", "attention", "norm", "routing_permute"),
    ]


def test_what_a_cpu_multiplies_inside_the_grouped_product_is_the_experts_where_no_module_says_it():
    assert categories(("aten::mm", "aten::_grouped_mm"), "aten::mm", kind="op") == ["expert_gemm", "dense_gemm"]


def test_an_operation_of_a_cpu_that_goes_on_after_what_it_called_stays_what_it_is():
    once = ("aten::mm", "aten::empty", "aten::mm", "aten::topk", "aten::_grouped_mm", "aten::rsqrt")
    one = trace(*once, kind="op")
    one = replace(one, ops=one.ops.with_columns(count=polars.Series([1, 1, 0, 1, 1, 1], dtype=SCHEMA["count"])))
    labelled = label(one, built_in_rules())
    found = [labelled.labels[i].category for i in labelled.ops["label"]]
    assert found[:5] == ["gate_gemm", "other", "gate_gemm", "routing_permute", "expert_gemm"]


LAYER = (NORM, GEMM, ATTENTION, GEMM, NORM, GEMM, TOPK, COPY, EXPERT, EXPERT, MEAN)


def test_the_gemm_right_before_experts_are_chosen_is_the_routers():
    once = ["norm", "dense_gemm", "attention", "dense_gemm", "norm", "gate_gemm", "routing_permute"]
    assert categories(*LAYER * 3) == [*once, "routing_permute", "expert_gemm", "expert_gemm", "routing_permute"] * 3
    assert found(*LAYER)[5] == ("gate_gemm", "position")


def test_a_routers_gemm_in_two_kernels_is_two_kernels_of_the_router():
    assert categories(NORM, GEMM, SPLIT, TOPK, EXPERT, NORM)[1:3] == ["gate_gemm", "gate_gemm"]


def test_where_a_kernel_is_the_routers_by_name_the_gemm_before_it_is_not():
    layer = ("_dense_linear", "_attention_split", "_dense_linear", "_router_linear", "_router_topk", "_experts_gate_up")
    once = ["dense_gemm", "attention", "dense_gemm", "gate_gemm", "routing_permute", "expert_gemm"]
    assert categories(*layer * 3) == once * 3
    assert found(*layer)[3] == ("gate_gemm", "name")
    softmax = (
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 5, false, false>(float*, float const*)"
    )
    assert categories(*layer[:4], softmax, *layer[4:])[3:5] == ["gate_gemm", "routing_permute"]


def test_sglangs_router_is_told_from_its_dense_layers_though_its_logits_are_cast_first():
    cast = "void at::native::vectorized_elementwise_kernel<4, at::native::float32_copy_kernel_cuda(at::TensorIteratorBase&)>"
    layer = (
        NORM,
        GEMM,
        cast,
        "_router_triton_kernel",
        "moe_align_block_size_kernel",
        EXPERT,
        "act_and_mul_kernel",
        EXPERT,
    )
    assert [found(*layer * 2)[at][0] for at in (1, 9)] == ["gate_gemm"] * 2
    assert found(*layer * 2)[3][0] == "routing_permute"


def test_the_head_before_the_samplers_top_k_is_not_a_router():
    step = (*LAYER, *LAYER, NORM, GEMM, GATHER_TOPK)
    assert categories(*step * 2)[-2:] == ["dense_gemm", "sampling"]
    assert categories(*step * 2)[len(step) - 2 : len(step)] == ["dense_gemm", "sampling"]


def test_a_gemm_that_precedes_few_of_the_choices_is_not_a_router():
    assert "gate_gemm" not in categories(*(NORM, GEMM, TOPK, EXPERT), *(NORM, TOPK, EXPERT) * 3)


def test_another_stream_says_nothing_of_this_one():
    assert categories((GEMM, None, 7), (TOPK, None, 8), (EXPERT, None, 8)) == [
        *("dense_gemm", "routing_permute", "expert_gemm"),
    ]


def test_a_batched_product_between_the_choice_and_the_next_norm_is_the_experts():
    bmm, mm = (GEMM, "aten::bmm"), (GEMM, "aten::mm")
    assert categories(NORM, mm, TOPK, INDEX, bmm, MUL, bmm, MUL, NORM, mm) == [
        *("norm", "gate_gemm", "routing_permute", "routing_permute", "expert_gemm", "activation", "expert_gemm"),
        *("routing_permute", "norm", "dense_gemm"),
    ]
    assert categories(NORM, mm, TOPK, bmm, mm, bmm, NORM)[3:6] == ["expert_gemm", "dense_gemm", "expert_gemm"]


def test_experts_without_a_name_of_their_own_are_what_follows_the_choice():
    layer = (NORM, GEMM, TOPK, *(GEMM,) * 6, NORM, GEMM, ATTENTION, GEMM)
    assert categories(*layer)[3:9] == ["expert_gemm"] * 6
    assert categories(*layer)[10:] == ["dense_gemm", "attention", "dense_gemm"]
    shared = (NORM, GEMM, TOPK, EXPERT, GEMM, GEMM, EXPERT, NORM)
    assert categories(*shared)[4:6] == ["dense_gemm"] * 2  # the experts are the named ones
    unknown = (NORM, GEMM, TOPK, GEMM, "xyzzy", GEMM, NORM)
    assert categories(*unknown)[3:6] == ["dense_gemm", "other", "dense_gemm"]  # it may be theirs: not told


def test_a_norm_in_pieces_is_a_norm():
    assert categories(GEMM, *HF_NORM, GEMM) == ["dense_gemm", *["norm"] * 8, "dense_gemm"]
    assert categories(GEMM, POW, MEAN, ADD, RSQRT, MUL, MUL, COPY) == ["dense_gemm", *["norm"] * 6, "other"]
    assert categories(MEAN, RSQRT, POW, ADD) == ["other"] * 4


def test_a_norm_fused_with_what_fp8_is_scaled_by_does_not_part_experts_from_their_choice():
    # kernels of a prefill layer that inductor compiled, in its order; in FP8 the tokens' largest value is found in two
    norm = "triton_red_fused__to_copy__unsafe_view_abs_add_amax_mean_mul_pow_rsqrt_view_3"
    largest = "triton_per_fused__to_copy__unsafe_view_abs_add_amax_mean_mul_pow_rsqrt_view_5"
    softmax, small = "triton_per_fused__softmax__to_copy_prepare_softmax_online_4", "triton_poi_fused__to_copy_6"
    added = "triton_poi_fused__to_copy__unsafe_view_add_div_index_mul_permute_select_unsqueeze_view_17"
    layer = (GEMM, ATTENTION, GEMM, norm, GEMM, softmax, GATHER_TOPK, largest, small, EXPERT, EXPERT, added)
    once = ["dense_gemm", "attention", "dense_gemm", "norm", "gate_gemm", "routing_permute", "routing_permute", "norm"]
    once += ["routing_permute", "expert_gemm", "expert_gemm", "routing_permute"]
    assert categories(*layer, NORM, *layer, NORM) == [*once, "norm"] * 2


def test_pieces_beside_attention_are_its_own_and_what_prepares_a_step_has_none():
    add = "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>"
    prepared = (COPY, "_compute_slot_mapping_kernel", add, NORM, GEMM)
    assert categories(*prepared, MUL, add, ATTENTION, COPY, GEMM, add, NORM, GEMM) == [
        *("other", "attention", "other", "norm", "dense_gemm", "attention", "attention", "attention", "attention"),
        *("dense_gemm", "other", "norm", "dense_gemm"),
    ]
    assert categories((GEMM, None, 7), (COPY, None, 8), (ATTENTION, None, 7))[1] == "other"


def test_what_a_module_says_is_not_overruled_by_position():
    scope = "Qwen3MoeAttention_3 > Linear_1"
    assert found(NORM, (GEMM, scope), TOPK, EXPERT)[1] == ("dense_gemm", "module")


def test_own_rules_decide_names_in_a_trace():
    ours = (Rule("comm", match="^fused_moe_kernel$", reason="ours"), *built_in_rules())
    labelled = label(trace(EXPERT), ours)
    assert labelled.labels[labelled.ops["label"][0]].reason == "ours"


def calls_and_names(name):
    from harness.traces.read import read

    file = TRACES / name
    if not file.exists():
        pytest.skip("the trace is not here")
    one = read(file)
    labelled = label(one, built_in_rules())
    category = [found.category for found in labelled.labels]
    calls = {}
    for index, operator in labelled.ops.select("label", "name").iter_rows():
        calls.setdefault(category[index], []).append(one.names[operator])
    return calls


def test_vllm_under_cuda_graphs_48_layers_one_prefill_three_steps():
    calls = calls_and_names("vllm0.24_qwen3-30b-a3b_bf16_h200.kineto.json.gz")
    assert len(calls["gate_gemm"]) == 48 * 4  # one router a layer and step, though no name says so
    assert len(calls["expert_gemm"]) == 2 * 48 * 4 and set(calls["expert_gemm"]) == {"fused_moe_kernel"}
    # the norms and the rotation of queries and keys, which inductor gives no names
    assert sum(name.startswith("triton_") for name in calls["attention"]) == 2 * 48 * 4


def test_transformers_without_names_for_its_experts_48_layers_three_steps():
    calls = calls_and_names("hf5.17_qwen3-30b-a3b_bf16_eager_h200.kineto.json.gz")
    assert len(calls["gate_gemm"]) == 48 * 3 and len(calls["expert_gemm"]) == 2 * 48 * 3
    assert sum("rsqrt" in name for name in calls["norm"]) == (4 * 48 + 1) * 3
    assert len(calls["attention"]) == (2 * (5 + 1) * 48) * 3 + 240  # rotated and added to the cache, queries and keys


def test_gpt_oss_on_b200_as_its_modules_say():
    calls = calls_and_names("tracelens_b200_vllm_gptoss120b_eager.json.gz")
    assert set(calls["gate_gemm"]) == {"nvjet_tst_64x16_64x16_2x4_2cta_h_bz_bias_TNT"}
    assert len(calls["gate_gemm"]) == 36 and len(calls["expert_gemm"]) == 72
    assert all(name.startswith("bmm_") for name in calls["expert_gemm"])
