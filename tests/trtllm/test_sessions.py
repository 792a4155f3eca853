"""Sessions on the double: what is said of a loaded engine is what its layers, arguments and warnings say."""

import pytest

DUMMY = {"weights": "dummy", "workload": "validate"}  # in this process: no probe, so half the time


@pytest.mark.parametrize("era", ["1_2", "1_4"])
def test_a_backend_that_cannot_serve_is_downgraded_and_the_record_says_so(loaded, era):
    facts = loaded(era, moe_backend="trtllm", env={"TLLM_WORKER_USE_SINGLE_PROCESS": "1"})
    assert (facts["moe_backend_requested"], facts["moe_backend_given"]) == ("trtllm", "TRTLLM")
    assert (facts["moe_backend"], facts["moe_kernel"]) == ("CUTLASS", "CutlassFusedMoE")
    assert facts["layers_read_from"] == "the loaded model, 4 of 4 layers" and facts["model_in_this_process"]
    assert facts["unread"]["downgrades"].startswith("stdout and stderr")  # pipes here; in a run a file: test_runs
    if era == "1_4":
        assert facts["moe_resolution"]["winner"] == "CutlassFusedMoE"
        assert facts["moe_resolution"]["degraded_from"] == "TRTLLMGenFusedMoE"
    else:
        assert "no resolver" in facts["unread"]["moe_resolution"]


def test_random_weights_in_nvfp4_are_nvfp4_in_the_experts_only(loaded):
    facts = loaded("1_4", precision="nvfp4", **DUMMY)
    assert (facts["precision"], facts["quant_algo"], facts["quantize"]) == ("nvfp4", "NVFP4", "experts")
    assert facts["formats"]["experts"] == "nvfp4" and facts["formats"]["attention"] == "bf16"
    assert facts["kv_dtype"] == "bfloat16" and facts["compute_mode"] == "native"


def test_marlin_multiplies_in_bf16_and_is_called_weight_only(loaded):
    facts = loaded("1_4", precision="nvfp4", moe_backend="marlin", **DUMMY)
    assert (facts["moe_backend"], facts["compute_mode"]) == ("MARLIN", "weight_only")


def test_over_two_ranks_the_probe_looks_at_a_few_layers_on_one(loaded):
    facts = loaded("1_2", tp=2, ep=2)
    assert facts["layers_read_from"].startswith("a probe") and not facts["model_in_this_process"]
    assert (facts["executor"], facts["moe_backend"]) == ("GenerationExecutorProxy", "CUTLASS")
    assert "processes of the engine's own, no CUDA events" in facts["clock"]


@pytest.mark.parametrize(("fault", "words"), [("reuse", "came from the KV cache"), ("untold", "16 rows for 80 tokens")])
def test_rows_that_reused_blocks_took_away_are_bad_output(loaded, fault, words):
    found = loaded("1_2", "scores", workload="validate", env={"TRTLLM_DOUBLE_FAULT": fault})
    assert found["failure_class"] == "bad_output" and words in found["message"]


def test_out_of_memory_in_the_engines_own_process_keeps_its_words(loaded):
    found = loaded("1_2", env={"TRTLLM_DOUBLE_FAULT": "oom"})
    assert found["failure_class"] == "out_of_memory" and "60.00 GiB" in found["message"]
