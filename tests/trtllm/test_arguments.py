"""The arguments of the engine: only those the installed version has, the same work for every precision."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from harness_trtllm import arguments
from trtllm_double.args import arguments_class
from trtllm_double.sampling import SamplingParams

from harness import LoadFailed, Setup, Unsupported
from harness.cells import Cell, Load
from harness.precision import NATIVE, Support

OLD = arguments_class(("AUTO", "CUTLASS", "TRTLLM"), is_main=False)
NEW = arguments_class(("AUTO", "CUTLASS", "TRTLLM", "MARLIN"), is_main=True)
CONTRACT = Path(__file__).parents[3] / "shared" / "contracts" / "tensorrt_llm.json"


def load_of(*workloads: str, batch: int = 1, profiler: str | None = None, **named) -> Load:
    setup = Setup(**{"engine": "trtllm", "model": "m", "path": "p", "precision": "bf16", **named})
    parameters = {"batch_size": batch, "input_len": 512, "output_len": 256}
    cells = tuple(Cell(setup, workload, parameters, Support(NATIVE)) for workload in workloads)
    return Load(setup, cells, NATIVE, profiler=profiler)


def chosen(kind, load: Load, sm: int | None = 90) -> dict:
    return arguments.arguments(load, "folder", kind.model_fields, sm)[0]


@pytest.mark.parametrize("kind", [OLD, NEW])
@pytest.mark.parametrize("load", [load_of("perf", "ppl"), load_of("validate"), load_of("perf", profiler="nsys")])
def test_the_strict_classes_of_both_versions_take_what_is_chosen(kind, load):
    assert kind(**chosen(kind, load)).skip_tokenizer_init is True


@pytest.mark.parametrize("kind", [OLD, NEW])
def test_an_argument_the_version_lacks_is_not_passed_and_said_so(kind):
    fields = {name: field for name, field in kind.model_fields.items() if name != "return_perf_metrics"}
    passed, lacking = arguments.arguments(load_of("perf"), "folder", fields, 90)
    assert "return_perf_metrics" not in passed and lacking == ["return_perf_metrics"]


def test_without_an_argument_that_fairness_needs_nothing_is_loaded():
    fields = {name: field for name, field in OLD.model_fields.items() if name != "kv_cache_config"}
    with pytest.raises(Unsupported, match="has no argument kv_cache_config"):
        arguments.arguments(load_of("perf"), "folder", fields, 90)


def test_limits_are_the_same_for_every_precision():
    low, high = (chosen(OLD, load_of("perf", precision=name)) for name in ("nvfp4", "bf16"))
    assert low == high
    assert low["kv_cache_config"]["enable_block_reuse"] is False and low["max_seq_len"] == 769


@pytest.mark.parametrize("batch", [1, 40, 128, 300])
def test_the_tested_batch_runs_in_a_graph_of_its_own_size(batch):
    passed = chosen(OLD, load_of("perf", batch=batch))
    assert max(passed["cuda_graph_config"]["batch_sizes"]) == batch <= passed["max_batch_size"]


def test_a_long_prompt_is_never_cut():
    load = load_of("perf")
    cell = dataclasses.replace(load.cells[0], parameters={"input_len": 20000, "output_len": 8})
    assert chosen(OLD, dataclasses.replace(load, cells=(cell,)))["max_num_tokens"] > 20000


def test_only_loads_without_a_timed_cell_give_up_fused_sums_and_the_process_of_their_own():
    timed, scored, whole = (chosen(OLD, load_of(*names)) for names in (["perf", "ppl"], ["ppl"], ["validate"]))
    assert "moe_config" not in timed or "disable_finalize_fusion" not in timed["moe_config"]
    assert scored["moe_config"]["disable_finalize_fusion"] is True and "gather_generation_logits" not in scored
    assert whole["gather_generation_logits"] is True


def test_a_moe_backend_the_version_does_not_name_is_refused_with_those_it_names():
    with pytest.raises(Unsupported, match="no MoE backend MARLIN; it has AUTO, CUTLASS, TRTLLM"):
        chosen(OLD, load_of("perf", moe_backend="marlin"))


@pytest.mark.parametrize(
    ("kind", "precision", "sm", "backend"),
    [
        (OLD, "fp8_block", 100, "TRTLLM"),
        (OLD, "fp8_block", 90, None),
        (NEW, "nvfp4", 90, "MARLIN"),
        (NEW, "nvfp4", 100, None),
    ],
)
def test_where_the_engines_own_choice_has_no_kernels_another_is_named(kind, precision, sm, backend):
    assert chosen(kind, load_of("perf", precision=precision), sm).get("moe_config", {}).get("backend") == backend


@pytest.mark.parametrize(
    ("tp", "architecture", "words"),
    [
        (1, "Qwen3MoeForCausalLM", "no effect: .* one GPU"),
        (2, "DeepseekV3ForCausalLM", "no effect: only Qwen3"),
        (2, "Qwen3MoeForCausalLM", "disabled"),
    ],
)
def test_disabling_fusion_says_where_it_has_no_effect(tp, architecture, words):
    load = load_of("perf", disable_fusion=True, tp=tp)
    assert arguments.variables(load)["TRTLLM_QWEN3_EAGER_FUSION_DISABLED"] == "1"
    assert re.match(words, arguments.fusion(load.setup, architecture))


def test_only_the_process_that_nsys_looks_into_gives_up_graphs_and_the_process_of_the_engine(monkeypatch):
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
    for profiler in ("nsys", None):
        load = load_of("perf", profiler=profiler)
        assert arguments.variables(load) == {} and chosen(OLD, load) == chosen(OLD, load_of("perf"))
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    alone, several = (arguments.variables(load_of("perf", profiler="nsys", tp=tp)) for tp in (1, 2))
    assert alone["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1" and "TLLM_PROFILE_START_STOP" not in alone
    assert several["TLLM_PROFILE_START_STOP"] == "20-29"  # two passes of a prefill, 8 decode steps and a turn before it
    passed = chosen(OLD, load_of("perf", profiler="nsys"))
    assert passed["cuda_graph_config"] is None and passed["enable_layerwise_nvtx_marker"] is True


def test_the_window_counts_the_turns_that_whole_prompts_need():
    load = load_of("perf", batch=40, tp=2)  # 512 tokens each, 8192 a turn: 16, 16 and 8 of them
    assert arguments.profile_window(load) == "24-35"


def test_under_pytorchs_profiler_only_the_place_of_the_model_differs():
    load = load_of("perf", profiler="torch")
    assert arguments.variables(load) == {"TLLM_WORKER_USE_SINGLE_PROCESS": "1"}
    assert chosen(OLD, load) == chosen(OLD, load_of("perf"))


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_below_a_launcher_with_several_tasks_nothing_is_started(monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(LoadFailed, match=f"4 tasks .{variable}"):
        arguments.refuse_launchers()
    monkeypatch.setenv(variable, "1")
    arguments.refuse_launchers()


@pytest.mark.skipif(not CONTRACT.exists(), reason="the published contract is not beside this checkout")
def test_the_doubles_names_are_those_of_the_contract():
    contract = json.loads(CONTRACT.read_text())
    rows = {name: row for name, row in contract["LLM_kwargs"].items() if not name.startswith("_")}
    removed = {"sampler_type", "build_config", "fail_fast_on_attention_window_too_large"}
    assert OLD.model_fields.keys() == {name for name, row in rows.items() if row["in_1_2_1"] != "no"}
    assert NEW.model_fields.keys() == rows.keys() - removed
    for name in ("KvCacheConfig", "CudaGraphConfig", "MoeConfig", "TorchCompileConfig"):
        field = {"KvCacheConfig": "kv_cache_config", "CudaGraphConfig": "cuda_graph_config"}.get(name)
        field = field or {"MoeConfig": "moe_config", "TorchCompileConfig": "torch_compile_config"}[name]
        known = {key for key, row in contract[name].items() if isinstance(row, dict)}
        known -= {"generated_batch_sizes"}
        assert arguments.nested(NEW.model_fields, field).keys() == known
    known = {name for name, row in contract["SamplingParams"].items() if "type" in row}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == known
