"""Names of kernels and what they mean, the rules as a file, and names that are hostile."""

import csv
import json
import re
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernels.taxonomy import (
    CATEGORIES,
    COARSE,
    UNCLASSIFIED,
    KernelRules,
    Rule,
    built_in_rules,
    classify,
    function_of,
    read_rules,
    spelled_alike,
    with_built_in,
    words_of,
)

CORPUS = Path(__file__).parents[2] / "../shared/kernels/corpus.csv"
CUTLASS = "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<%s, cutlass::gemm::collective::Mma>>"
KINETO = "void (anonymous namespace)::quant_kernel<128, true, 4096ul>((anonymous namespace)::Params)"
NSYS = "void <unnamed>::quant_kernel<(int)128, (bool)1, (unsigned long)4096>(<unnamed>::Params)"
MOE_FINALIZE = "void moe::dev::finalize::finalizeKernel<moe::dev::finalize::KernelParams<cutlass::bfloat16_t, true>>"
SDPA = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0"
RMS_NORM = "std::enable_if<(((8)>(0)))&&vllm::_typeConvert<c10::BFloat16>::exists, void>::type vllm::fused_add_rms_norm"

# Identifiers as they stand in the sources of the engines and libraries, none of them in the corpus of development.
NAMES = {
    "expert_gemm": """_mxfp8_grouped_gemm_kernel expert_triton_kernel _fused_moe_lora_one_shot_kernel
        m_grouped_bf16_gemm_contiguous_tl_impl fused_moe_nvfp4_emulation_kernel scatter2scatter
        bmm_E2m1_E2m1E2m1_Fp32_t128x8x512_s6_swiGlu_dynB_sm100f moe_gemm1_kernel _grouped_gemm1_swiglu
        expert_gate_up_q4_kernel fused_moe_silu_down_kernel grouped_bfgemm_tma_kernel
        llama4_moe_fc13_swiglu_fp8_kernel w8a8_block_fp8_matmul_grouped_kernel q2_k_moe_kernel _moe_bwd_dW1_kernel
        fused_moe_blocked_fp8_kernel sequential_expert_kernel _routed_gate_up_kernel _grouped_wgrad_kernel""",
    "dense_gemm": """_w8a8_triton_block_scaled_mm machete::mm_kernel gemm_forward_4bit_cuda_m16nXk32
        awq_gemm_kernel kgemm_4bit_inference_naive matmul_kernel_descriptor_persistent mul_mat_q4_K
        nvjet_sm90_tst_128x128_64x6_2x1_v_bz_TNT triton_tem_fused_addmm_relu_1 _lora_shrink_kernel
        mxfp4_matvec_kernel addmv_kernel""",
    "gate_gemm": """fp32_router_gemm_kernel router_gemm_kernel_bf16_output fused_moe_router_tensorcore_kernel
        llama4_bf16_bf16_gemm_kernel_router router_gate_matvec_kernel""",
    "attention": """kernel_unified_attention_3d reshape_and_cache_flash_kernel merge_attn_states_kernel
        topKPerRowPrefill _fwd_grouped_kernel_stage1 applyMLARopeAndAssignQKVKernelGeneration
        cp_gather_indexer_k_quant_cache_kernel chunk_gated_delta_rule_fwd_kernel_h_blockdim64
        solve_tril_16x16_kernel convert_vertical_slash_indexes_kernel BatchDecodeWithPagedKVCacheKernel
        _triton_mrope_forward chunk_gsa_fwd_k_kernel_intra parallel_rebased_bwd_kernel
        fused_norm_save_compress_kernel _pad_replayed_slots_kernel _fp4_index_logits_kernel index_k_kernel
        _zero_pages_kernel inkling_kv_conv_update_kernel heuristicTopKMultiRowKernel _build_chain_tree_kernel""",
    "routing_permute": """moe_align_block_size_small_batch_expert_kernel fusedBuildExpertMapsSortFirstTokenKernel
        single_group_topk_warp_kernel get_group_gemm_starts topkGatingSoftplusSqrt deepep_permute_triton_kernel
        _expt_data_compute kimi_k2_moe_fused_gate_kernel top2_sum_gate_kernel mask_indices_by_tp_kernel
        group_count_kernel _ragged_tensor_metadata_compute _padded_copy _route_histogram_kernel
        _pack_topk_routes_prefix_kernel _fused_moe_preprocess_kernel _scatter_for_grouped_gemm_kernel
        fusedPermuteNvfp4QuantDedupKernel mask_topk_ids_padded_region""",
    "quant_dequant": """scaled_fp8_quant_kernel_strided_dynamic cvt_fp16_to_fp4_sf_major awq_dequantize_kernel
        _downcast_to_mxfp per_token_quant_fp8_small_batch_kernel dequantize_block_iq2_xs cast_back_e5m6_kernel
        _grid_search_mse_triton_kernel convertSfR8c4ToLinearKernel _triton_fp8_per_group_colwise_scales_kernel
        rotate_quantize_activation_kernel""",
    "norm": """_layer_norm_fwd_1pass_kernel rms_norm_per_block_quant_kernel QKRMSNormKernel l2norm_fwd_kernel1
        _gn_finalize_kernel""",
    "activation": """masked_swigluoai_and_mul_kernel silu_mul_fp8_quant_deep_gemm_kernel doGatedActivationKernel
        prelu_kernel""",
    "comm": """cross_device_reduce_scatter mnnvl_lamport_all_gather combine_reduce_epilogue_impl allreduceAllPairs
        reducescatter_kernel moeA2ASanitizeExpertIdsKernel nvshmemi_transfer_rma_put _dcp_a2a_unpack_combine_kernel
        wait_lse_combine_kernel nvshmemi_barrier_kernel update_mask_buffer _fp8_blockscale_2shot_kernel""",
    "sampling": """apply_repetition_penalties_kernel _gumbel_sample_kernel ChainSpeculativeSampling
        LogitsBitmaskKernel insertUnfinishedPathKernel mtpGreedySampling liger_vocab_parallel_ce_forward_kernel
        reset_vocab_mask_kernel _gather_row_bonus_kernel celoss_indices_kernel""",
    "mem": "Memset|(Device) Memcpy|PtoP|(Device|->|Device) [CUDA|Unified|Memory|memcpy|HtoD]",
    "other": "awq_marlin_repack_kernel vocab_parallel_embedding_kernel triton_poi_fused_view_1",
}


@pytest.mark.parametrize("category", NAMES)
def test_names_from_sources_of_engines_mean_what_their_sources_do(category):
    names = [name.replace("|", " ") for name in NAMES[category].split()]
    assert {name: classify(name, built_in_rules()).category for name in names} == dict.fromkeys(names, category)


@pytest.mark.skipif(not CORPUS.exists(), reason="the corpus is not here")
def test_the_corpus_of_names_is_labelled_and_expert_gemms_above_all():
    rows = list(csv.DictReader(CORPUS.open(encoding="utf-8")))
    found = [classify(row["name"], built_in_rules()).category for row in rows]

    def right(which):
        return sum(one == row["category"] for one, row in which) / len(which)

    both = list(zip(found, rows))
    assert right(both) > 0.985
    assert right([(one, row) for one, row in both if row["ambiguous"] == "0"]) > 0.99
    assert right([(one, row) for one, row in both if row["category"] == "expert_gemm"]) == 1.0  # all are found
    assert right([(one, row) for one, row in both if one == "expert_gemm"]) == 1.0  # all that are found are


@pytest.mark.parametrize(
    "name, category",
    [
        (CUTLASS % "cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int> >", "expert_gemm"),
        (CUTLASS % "cute::tuple<int, int, int, int>", "dense_gemm"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2>>>", "attention"),
        ("void deep_gemm::sm100_fp8_gemm_1d1d_impl<4096u, 7168u, (deep_gemm::GemmType)2, true>", "expert_gemm"),
        ("void deep_gemm::sm100_fp8_gemm_1d1d_impl<4096u, 7168u, (deep_gemm::GemmType)0, true>", "dense_gemm"),
        ("marlin_moe_wna16::Marlin<1, 2>", "expert_gemm"),
        ("marlin::Marlin<1, 2>", "dense_gemm"),
        (MOE_FINALIZE, "routing_permute"),
        ("ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "comm"),
        ("triton_red_fused_add_fused_add_rms_norm_moe_forward_scaled_mm_all_reduce_3", "norm"),
        ("void at::native::elementwise_kernel<4, at::native::direct_copy_kernel_cuda(at::LoadWithCast<1>)>", "other"),
        ("_p_matmul_ogs_NNT_bf16xbf16xmxfp4_64x256x64x1_dequantize_mxfp8", "expert_gemm"),
        (SDPA, "attention"),
        (RMS_NORM + "_kernel<c10::BFloat16, 8>(c10::BFloat16*)", "norm"),
        # namespaces that name a library and not the work
        ("void tensorrt_llm::kernels::fp8_blockscale_gemm::scale_1x64_kernel<__nv_bfloat16>(float*)", "quant_dequant"),
        ("void tensorrt_llm::kernels::fp8_blockscale_gemm::convert_kernel<float, __nv_bfloat16>(float*)", "other"),
        ("void tensorrt_llm::kernels::fp8_blockscale_gemm::blocked_fp8_gemm_kernel<float>(float*)", "dense_gemm"),
        ("void flashinfer::sampling::fast_topk_clusters_exact_page_table_transform_kernel<float>(float*)", "attention"),
    ],
)
def test_the_function_decides_and_its_arguments_only_where_the_function_is_a_carrier(name, category):
    assert classify(name, built_in_rules()).category == category


# As CuTe DSL names a kernel: the path of its module without dots, its class, and the layouts of its arguments.
CUTE_DSL = {
    "flashinferfused_moecute_dslblackwellmoe_w4a16_kernelSm100W4A16GroupedGemmKernel": "expert_gemm",
    "flashinferfused_moecute_dslblackwell_sm12xmoe_static_kernelMoEStaticKernel": "expert_gemm",
    "flashinfermoe_epkernel_srcmoe_bf16_glukernel_bf16_glu_fc12Sm100SwigluBf16Fc12Kernel": "expert_gemm",
    "flashinferfused_moecute_dslblackwell_sm12xmoe_w4a16_kernelW4A16TopKSumKernel": "routing_permute",
    "flashinfergemmkernelsdense_blockscaled_gemm_sm100Sm100BlockScaledPersistentDenseGemmKernel": "dense_gemm",
    "flashinfergemmkernelsgrouped_gemm_masked_blackwellSm100BlockScaledPersistentDenseGemmKernel": "expert_gemm",
    "vllmmodel_executorlayersfused_moerouterbf16x3_router_gemm_cutedslSm100BF16x3RouterGemm": "gate_gemm",
    "flash_attncuteflash_bwd_mla_dk_sm100dKGemmKernel": "attention",
    "vllmmodel_executorlayersmambaopsgdn_chunk_cutedslkernel_hSm100ChunkHKernel": "attention",
    "flashinfercommmnnvl_cutedslkernel_lldevice_kernels_QuadFinalizePublishDeviceKernel": "comm",
    "quackrmsnormRMSNorm": "norm",
}


@pytest.mark.parametrize("module", CUTE_DSL)
def test_a_cute_dsl_kernel_is_known_by_its_module_and_class(module):
    name = f"kernel_cutlass_kernel_{module}_object_at__tensorptrbf16gmemalign16o71687168"
    assert classify(name, built_in_rules()).category == CUTE_DSL[module]


FORMS = (
    "void tensorrt_llm::kernels::%s<__nv_bfloat16, 128, true, 4096ul>(__nv_bfloat16 const*, float*, int)",
    "void <unnamed>::%s<(int)128, (bool)1, (unsigned long)4096, __nv_fp8_e4m3>(T1 *, const T2 *, int)",
    "void vllm::%s<unsigned char, std::integral_constant<int, 3>, vllm::Fp8KVCacheDa",
    "%s_0d1d2d3de",
)


@pytest.mark.parametrize("form", [*FORMS, "mangled"])
def test_a_name_means_the_same_with_what_a_trace_writes_around_it(form):
    names = [name for category in NAMES for name in NAMES[category].split() if re.fullmatch(r"[A-Za-z_]\w+", name)]
    names = [name for name in names if not name.startswith(("nvjet", "bmm", "triton"))]  # always bare
    assert len(names) > 80
    for name in names:
        written = f"_ZN4vllm{len(name)}{name}I13__nv_bfloat16Li128ELb1EEEvPKT_i" if form == "mangled" else form % name
        assert classify(written, built_in_rules()).category == classify(name, built_in_rules()).category, written


def test_nsys_and_kineto_spell_one_kernel_differently_and_it_is_one():
    assert (
        spelled_alike(NSYS)
        == "void (anonymous namespace)::quant_kernel<128, true, 4096>((anonymous namespace)::Params)"
    )
    assert spelled_alike(KINETO) == spelled_alike(NSYS)


def test_a_mangled_name_says_as_much_as_an_open_one():
    grouped = "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalINS1_17GroupProblemShapeIN4cute5tupleIJiiiEEEEE"
    assert spelled_alike(grouped).startswith("cutlass::device_kernel<gemm kernel GemmUniversal GroupProblemShape")
    assert classify(grouped, built_in_rules()).category == "expert_gemm"
    typed = "_ZN9deep_gemm20sm90_fp8_gemm_1d2d_implILj4096ELNS_8GemmTypeE1ELb1EEvPi"
    assert classify(typed, built_in_rules()).category == "expert_gemm"
    assert classify(typed.replace("E1E", "E0E"), built_in_rules()).category == "dense_gemm"


def test_names_become_words():
    assert words_of("FusedAddRMSNormKernel") == "fused add rms norm kernel"
    assert words_of("moeA2ACombineKernel topKPerRow MoEFCGemm") == "moe a2a combine kernel topk per row moe fc gemm"
    assert (
        function_of("std::enable_if<!T7, void>::type internal::gemvx::kernel<int, 4>(T13)") == "internal::gemvx::kernel"
    )


def test_a_name_that_nothing_knows_is_other_and_says_so():
    assert classify("xyzzy", built_in_rules()) == UNCLASSIFIED
    assert UNCLASSIFIED.category == "other" and UNCLASSIFIED.found_by == "none"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\0" * 9,
        "_Z",
        "_ZN" + "9" * 200,
        "(((",
        "a<" * 60_000,
        ">" * 100,
        "get_" * 25_000,
        "<b>&amp;",
        "é\ud800",
    ],
)
def test_any_text_is_a_name(name):
    assert classify(name, built_in_rules()).category in CATEGORIES


def test_every_category_has_a_coarser_one_and_every_rule_a_reason():
    assert set(COARSE.values()) == {
        *("expert_gemm", "attention", "routing", "quant_dequant", "norm", "gate_gemm", "comm", "other"),
    }
    assert {rule.category for rule in built_in_rules()} == set(CATEGORIES)
    assert all(rule.reason for rule in built_in_rules())


def test_own_rules_are_asked_first(tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps([{"category": "attention", "match": "^xyzzy", "reason": "ours", "confidence": "low"}]))
    plugin = KernelRules("theirs", (Rule("norm", match="xyzzy|plugh", reason="theirs"),))
    rules = with_built_in(read_rules(file), plugin.rules)
    assert classify("xyzzy_fused_moe_kernel", rules).reason == "ours"
    assert classify("plugh", rules).category == "norm"
    assert classify("fused_moe_kernel", rules).category == "expert_gemm"


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "no kernel rules"),
        ("{}", "a list of objects"),
        ("[]", "a list of objects"),
        ("[1]", "rule 1: not an object"),
        ('[{"category": "norm", "match": "a", "reason": "b", "regex": "c"}]', "unknown key 'regex'"),
        ('[{"match": "a", "reason": "b"}]', "no category"),
        ('[{"category": "moe", "match": "a", "reason": "b"}]', "unknown category 'moe'"),
        ('[{"category": "norm", "match": "a", "reason": "b", "confidence": "sure"}]', "unknown confidence 'sure'"),
        ('[{"category": "norm", "match": "a"}]', "no reason"),
        ('[{"category": "norm", "reason": "b"}]', "nothing to match"),
        ('[{"category": "norm", "match": 3, "reason": "b"}]', "must be a text"),
        ('[{"category": ["norm"], "match": "a", "reason": "b"}]', "must be a text"),
        ('[{"category": "norm", "match": "(", "reason": "b"}]', "no regular expression"),
        ('[{"category": "norm", "match": "(a+)+b", "reason": "b"}]', "repeats a repetition"),
        ('[{"category": "norm", "match": "%s", "reason": "b"}]' % ("a" * 2000), "2000 characters"),
        ('[{"category": "norm", "match": "a", "reason": "b"}, {"category": "norm"}]', "rule 2"),
    ],
)
def test_a_wrong_rule_is_named_with_its_file_and_its_number(tmp_path, content, words):
    file = tmp_path / "rules.json"
    file.write_text(content)
    with pytest.raises(UsageError) as e:
        read_rules(file)
    assert words in str(e.value) and str(file) in str(e.value) and "\n" not in str(e.value)


def test_a_file_of_rules_that_is_not_there_or_a_folder_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(UsageError, match="no kernel rules"):
            read_rules(path)
