"""Sessions on the double: what is said of a loaded engine is what its layers, arguments and warnings say."""

import pytest

DOWNGRADED = {"moe_backend": "trtllm"}
NVFP4 = {"precision": "nvfp4", "weights": "dummy", "workload": "validate"}
SCORED = {"what": "scores", "workload": "validate"}
SESSIONS = {  # of a version, all in one process, with the model in it: no probe
    "1_2": [DOWNGRADED, {**SCORED, "fault": "reuse"}, {**SCORED, "fault": "untold"}],
    "1_4": [DOWNGRADED, NVFP4, {**NVFP4, "moe_backend": "marlin"}],
}


@pytest.fixture(scope="module")
def here(sessions):
    return {
        era: sessions(era, *asked, env={"TLLM_WORKER_USE_SINGLE_PROCESS": "1"})[0] for era, asked in SESSIONS.items()
    }


@pytest.mark.parametrize("era", ["1_2", "1_4"])
def test_a_backend_that_cannot_serve_is_downgraded_and_the_record_says_so(here, era):
    facts = here[era][0]
    assert (facts["moe_backend_requested"], facts["moe_backend_given"]) == ("trtllm", "TRTLLM")
    assert (facts["moe_backend"], facts["moe_kernel"]) == ("CUTLASS", "CutlassFusedMoE")
    assert facts["layers_read_from"] == "the loaded model, 4 of 4 layers" and facts["model_in_this_process"]
    assert facts["unread"]["downgrades"].startswith("stdout and stderr")  # pipes here; in a run a file: test_runs
    if era == "1_4":
        assert facts["moe_resolution"]["winner"] == "CutlassFusedMoE"
        assert facts["moe_resolution"]["degraded_from"] == "TRTLLMGenFusedMoE"
    else:
        assert "no resolver" in facts["unread"]["moe_resolution"]


def test_random_weights_in_nvfp4_are_nvfp4_in_the_experts_only(here):
    facts = here["1_4"][1]
    assert (facts["precision"], facts["quant_algo"], facts["quantize"]) == ("nvfp4", "NVFP4", "experts")
    assert facts["formats"]["experts"] == "nvfp4" and facts["formats"]["attention"] == "bf16"
    assert facts["kv_dtype"] == "bfloat16" and facts["compute_mode"] == "native"


def test_marlin_multiplies_in_bf16_and_is_called_weight_only(here):
    facts = here["1_4"][2]
    assert (facts["moe_backend"], facts["compute_mode"]) == ("MARLIN", "weight_only")


@pytest.mark.parametrize(("index", "words"), [(1, "came from the KV cache"), (2, "16 rows for 80 tokens")])
def test_rows_that_reused_blocks_took_away_are_bad_output(here, index, words):
    found = here["1_2"][index]
    assert found["failure_class"] == "bad_output" and words in found["message"]


def test_over_two_ranks_the_probe_looks_at_a_few_layers_and_the_window_holds_the_pass_after_the_warm_up(sessions):
    below_nsys = {"NSYS_PROFILING_SESSION_ID": "1"}
    (facts,), log = sessions("1_2", {"what": "passes", "profiler": "nsys", "tp": 2, "ep": 2}, env=below_nsys)
    assert facts["layers_read_from"].startswith("a probe") and not facts["model_in_this_process"]
    assert (facts["executor"], facts["moe_backend"]) == ("GenerationExecutorProxy", "CUTLASS")
    assert "processes of the engine's own, no CUDA events" in facts["clock"] and not facts["cuda_graphs"]
    assert facts["refused"].endswith("with several take --profile nsys")
    assert facts["environment"]["variables"]["TLLM_PROFILE_START_STOP"] == "10-14"
    steps = ["1 ctx 0 gen of [3]", *["0 ctx 1 gen of [3]"] * 3, "0 ctx 0 gen of []"]  # request 3, and all of it
    assert f"turns 10 to 14 in the capture range: {'; '.join(steps)}\n" in log and log.count("capture range") == 1
