"""What cannot work by arithmetic alone is said before anything is loaded, in the words of the broken rule."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from harness_vllm import resolves

from harness.cells import Cell, Setup
from harness.device import Device
from harness.model.models import known
from harness.planning.preflight import broken_rule, duplicates, memory, tight
from harness.precision import EMULATED, NATIVE, Support

SWEEP = Path(__file__).parents[1] / "sweeps/neurips_traces.yaml"
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", 8, 81559 << 20, 90)
H200 = Device("cuda", "NVIDIA H200", 8, 150754820096, 90)
TRACE = {"batch_size": 1, "input_len": 4096, "output_len": 512}
QWEN3_30B = {  # by its config.json
    **{"model_type": "qwen3_moe", "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128},
    **{"moe_intermediate_size": 768, "max_position_embeddings": 40960},
}
GPT_OSS = {
    **{"model_type": "gpt_oss", "num_attention_heads": 64, "num_key_value_heads": 8, "num_local_experts": 32},
    **{"intermediate_size": 2880, "max_position_embeddings": 131072},
}


def broken(folder, config, parameters={}, mode=NATIVE, precision="bf16", **setup) -> str | None:
    (folder / "config.json").write_text(json.dumps(config))
    return broken_rule(Setup("an-engine", "a-model", str(folder), precision, **setup), parameters, mode)


@pytest.mark.parametrize(
    ("config", "setup", "words"),
    [
        (QWEN3_30B, {"tp": 3}, "--tp 3 does not divide the 32 attention heads"),
        (QWEN3_30B, {"tp": 2, "ep": 4}, "--ep 4 does not divide --tp 2"),
        (QWEN3_30B | {"num_experts": 6}, {"tp": 4, "ep": 4}, "--ep 4 does not divide the 6 experts"),
        (QWEN3_30B | {"num_key_value_heads": 3}, {"tp": 4}, "3 key/value heads"),
        (QWEN3_30B | {"moe_intermediate_size": 770}, {"tp": 4}, "does not divide an expert's width of 770"),
        (QWEN3_30B, {"tp": 4, "precision": "fp8_block"}, "768 / (4 / 1) = 192 is no multiple of 128"),
        (GPT_OSS, {"precision": "fp8_block"}, "2880 is no multiple of 128"),
        ({"text_config": QWEN3_30B}, {"tp": 3}, "--tp 3 does not divide the 32 attention heads"),
    ],
)
def test_a_split_that_does_not_work_out_is_told_by_its_rule(tmp_path, config, setup, words):
    assert words in broken(tmp_path, config, **setup)


@pytest.mark.parametrize(
    ("config", "setup"),
    [
        (QWEN3_30B, {"tp": 8}),  # 4 key/value heads are copied, 2 ranks each
        (QWEN3_30B, {"tp": 4, "precision": "fp8"}),
        (QWEN3_30B, {"tp": 2, "precision": "fp8_block"}),
        (QWEN3_30B, {"tp": 4, "ep": 4, "precision": "fp8_block"}),  # whole experts
        (QWEN3_30B, {"tp": 4, "precision": "fp8_block", "mode": EMULATED}),  # values, not kernels
        ({}, {"tp": 3}),  # of a model that says nothing, nothing is said
        ({"num_attention_heads": "many", "num_experts": -1, "moe_intermediate_size": None}, {"tp": 3}),
    ],
)
def test_what_may_work_is_not_refused(tmp_path, config, setup):
    assert broken(tmp_path, config, **setup) is None


def test_more_tokens_than_positions_are_refused(tmp_path):
    sizes = {"input_len": 40000, "output_len": 960}
    assert broken(tmp_path, QWEN3_30B, sizes) is None
    words = broken(tmp_path, QWEN3_30B, sizes | {"output_len": 961})
    assert words == "40961 tokens are more than the model's 40960 positions (max_position_embeddings)"


@pytest.mark.parametrize("file", ["rank0.engine", "model-q4.gguf", "weights.npz"])
def test_another_programs_weights_are_named_as_such(tmp_path, file):
    (tmp_path / file).touch()
    assert f"{tmp_path} holds" in broken(tmp_path, QWEN3_30B)
    (tmp_path / "model.safetensors").touch()  # beside these, what other programs keep does no harm
    assert broken(tmp_path, QWEN3_30B) is None


def test_a_cell_that_breaks_a_rule_is_skipped_and_the_others_are_measured(harness):
    done = harness("run", "--engine", "echo", "--workload", "perf", "--output-dir", "out", "--precision", "bf16",
                   "--output-len", 4, "--input-len", "8,4096")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {record["input_len"]: (record["status"], record["reason"]) for record in harness.records()}
    assert found[8][0] == "ok" and found[4096][0] == "skipped"
    assert found[4096][1] == "4100 tokens are more than the model's 2048 positions (max_position_embeddings)"
    assert found[4096][1] in done.stdout + done.stderr


def setup(model, precision="bf16", **more) -> Setup:
    return Setup("an-engine", model, known()[model].path, precision, **more)


def too_large(model, precision="bf16", device=H100, mode=NATIVE, **more) -> str | None:
    return broken_rule(setup(model, precision, **more), TRACE, mode, device)


@pytest.mark.parametrize(
    ("model", "precision", "split", "words"),
    [
        (
            *("qwen3-235b-a22b", "bf16", {"tp": 2}),
            "weights 219.0 GiB on each of 2 GPUs (bf16, tp 2), 79.6 GiB there; --tp 8 would need 54.9",
        ),
        (
            *("minimax-m2", "fp8_block", {"tp": 2, "ep": 2}),
            "weights 107.2 GiB on each of 2 GPUs (fp8_block, tp 2, ep 2), 79.6 GiB there;"
            " --tp 4 --ep 4 would need 53.6",
        ),
        (
            *("qwen3-coder-480b-a35b", "fp8_block", {}),  # tp 8 alone would break the block rule
            "weights 458.5 GiB on one GPU (fp8_block, tp 1), 79.6 GiB there; --tp 8 --ep 8 would need 57.4",
        ),
        (
            *("kimi-k2-thinking", "nvfp4", {"checkpoint": "nobody/has-read-it", "tp": 4}),
            "weights 135.6 GiB on each of 4 GPUs (nvfp4, tp 4), 79.6 GiB there; --tp 8 would need 68.0",
        ),
    ],
)
def test_weights_that_cannot_fit_are_told_by_their_arithmetic(model, precision, split, words):
    assert too_large(model, precision, **split) == words


def test_what_fits_or_cannot_be_known_is_not_refused():
    assert too_large("qwen3-235b-a22b", tp=8) is None
    assert too_large("qwen3-235b-a22b", device=None) is None
    assert too_large("qwen3-235b-a22b", device=Device("neuron", "trn2", 1, None)) is None
    assert too_large("deepseek-v3.1") is None, "stored in FP8: whether an engine widens it to BF16 is for it to say"
    assert too_large("kimi-k2-thinking", "fp8") is None, "stored in INT4, which is no FP8"


@pytest.mark.parametrize(
    "wrong", [{"num_hidden_layers": 10**12}, {"hidden_size": "wide"}, {"quantization_config": 8}, {"text_config": []}]
)
def test_a_config_that_says_nonsense_is_not_counted_and_harms_nobody(tmp_path, wrong):
    (tmp_path / "config.json").write_text(json.dumps(known()["qwen3-30b-a3b"].config | wrong))
    asked = Setup("an-engine", "a-model", str(tmp_path), "bf16")
    is_harmless = not {"num_hidden_layers", "hidden_size"} & wrong.keys()
    assert (memory(asked, TRACE, NATIVE) is not None) == is_harmless
    assert broken_rule(asked, TRACE, NATIVE, H100) is None


def test_emulation_takes_the_room_of_16_bits():
    words = "weights 109.5 GiB on each of 4 GPUs (nvfp4 emulated in bf16, tp 4), 79.6 GiB there; --tp 8 would need 54.9"
    assert too_large("qwen3-235b-a22b", "nvfp4", mode=EMULATED, tp=4) == words
    assert too_large("qwen3-235b-a22b", "nvfp4", tp=4) is None


def test_random_weights_take_the_same_room():
    assert too_large("glm-4.6", weights="dummy") == too_large("glm-4.6")


def test_on_a_cpu_the_memory_of_the_host_holds_all_ranks():
    host = Device("cpu", "a CPU", 32, 64 << 30)
    assert too_large("qwen3-30b-a3b", device=host) is None
    small = Device("cpu", "a CPU", 32, 50 << 30)
    assert too_large("qwen3-30b-a3b", device=small) == "weights 56.9 GiB of memory (bf16, tp 1), 50.0 GiB there"
    words = "weights 28.4 GiB for each of 2 ranks (bf16, tp 2), 50.0 GiB there"
    assert too_large("qwen3-30b-a3b", device=small, tp=2) == words


def test_no_split_is_proposed_where_none_helps():
    tiny = Device("cuda", "a GPU", 1, 1 << 30, 90)
    assert too_large("kimi-k2-thinking", "nvfp4", tiny, checkpoint="nobody/has-read-it").endswith(
        "(nvfp4, tp 1), 1.0 GiB there; no --tp up to 64 helps"
    )


def test_a_cell_that_fits_with_next_to_nothing_left_is_called_tight():
    deepseek = setup("deepseek-v3.1", "fp8_block", tp=8)
    words = "tight: weights 78.7 + KV cache 0.3 + activations 0.1 = 79.1 GiB on each of 8 GPUs, 79.6 GiB there"
    assert tight(deepseek, TRACE, NATIVE, H100) == words
    assert tight(deepseek, TRACE, NATIVE, H200) is None
    assert tight(setup("glm-4.6", tp=8), TRACE, NATIVE, H100) is None, "too large is said elsewhere"
    assert tight(setup("qwen3-30b-a3b"), TRACE, NATIVE, H100) is None
    many = TRACE | {"batch_size": 64}
    assert "KV cache 27.0" in tight(setup("qwen3-30b-a3b"), many, NATIVE, H100)
    assert tight(setup("qwen3-30b-a3b"), many, NATIVE, Device("cuda", "a GPU", 1, None, 90)) is None


def test_a_checkpoints_own_scope_is_counted_where_it_says_one(tmp_path):
    base = known()["qwen3-30b-a3b"].config
    sizes = {}
    for name, stored in {
        "all": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "experts": {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.self_attn", "lm_head"]},
        "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*self_attn*"]},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(base | {"quantization_config": stored}))
        given = setup("qwen3-30b-a3b", "fp8", checkpoint=str(tmp_path / name))
        sizes[name] = memory(given, TRACE, NATIVE).weights
    assert sizes["modelopt"] == sizes["experts"] == memory(setup("qwen3-30b-a3b", "fp8"), TRACE, NATIVE).weights
    assert sizes["all"] == memory(setup("qwen3-30b-a3b", "fp8", quantize="linear"), TRACE, NATIVE).weights


def test_a_config_that_changed_is_read_again(tmp_path):
    assert "32 attention heads" in broken(tmp_path, QWEN3_30B, tp=3)
    assert "64 attention heads" in broken(tmp_path, GPT_OSS | {"num_key_value_heads": 3}, tp=3)


def cell(moe_backend, precision="bf16", skip=None, parameters=TRACE, **more) -> Cell:
    asked = setup("qwen3-30b-a3b", precision, moe_backend=moe_backend, **more)
    return Cell(asked, "perf", dict(parameters), Support(NATIVE), skip)


def backends(pairs) -> list[tuple[str, str, str]]:
    return [(kept.setup.moe_backend, other.setup.moe_backend, why) for kept, other, why in pairs]


def test_a_cell_whose_backend_is_asked_for_by_name_as_well_is_named_a_duplicate():
    on_vllm = lambda asked: resolves(asked, H200, "0.24.0")  # noqa: E731
    why = "--moe-backend auto and triton: both run triton"
    assert backends(duplicates([cell("auto"), cell("triton")], on_vllm)) == [("auto", "triton", why)]
    marlin = [cell("marlin", "nvfp4"), cell("auto", "nvfp4")]
    assert backends(duplicates(marlin, on_vllm)) == [
        ("marlin", "auto", "--moe-backend marlin and auto: both run marlin")
    ]


def test_cells_that_differ_in_anything_else_are_no_duplicates():
    on_vllm = lambda asked: resolves(asked, H200, "0.24.0")  # noqa: E731
    others = [cell("triton", "fp8_block"), cell("triton", tp=2), cell("triton", parameters=TRACE | {"batch_size": 2})]
    others += [cell("triton", skip="too large"), cell("marlin"), cell("triton", weights="dummy")]
    assert duplicates([cell("auto"), *others], on_vllm) == []


@pytest.mark.parametrize(
    ("precision", "device", "version", "more"),
    [
        ("fp8", H200, "0.24.0", {}),  # FlashInfer's kernels may be there or not
        ("bf16", H200, "0.24.0", {"tp": 2, "ep": 2}),
        ("bf16", H200, None, {}),
        ("bf16", H200, "0.40.1", {}),
        ("bf16", Device("cuda", "a GPU", 1, None, 100), "0.24.0", {}),
        ("bf16", Device("cpu", "a CPU", 2, None), "0.32.0", {}),
    ],
)
def test_of_a_backend_that_is_not_known_nothing_is_said(precision, device, version, more):
    runs = lambda asked: resolves(asked, device, version)  # noqa: E731
    assert duplicates([cell("auto", precision, **more), cell("triton", precision, **more)], runs) == []


def test_records_of_a_gpu_ran_the_backend_that_auto_is_said_to_be():
    folder = Path(__file__).parents[1] / "docs/h200/records"
    seen = set()
    for record in map(json.loads, (path.read_text() for path in folder.glob("*.json"))):
        asked = setup("qwen3-30b-a3b", record["precision"])
        if record["engine"] == "vllm" and (said := resolves(asked, H200, record["engine_version"])):
            assert said.upper() == record["effective"]["moe_backend"]
            seen.add(record["precision"])
    assert seen == {"bf16", "fp8_block", "nvfp4"}


def sweep_cells(device: Device) -> list[Cell]:
    """Every cell of the trace sweep, as its file reads."""
    import yaml

    sweep = yaml.safe_load(SWEEP.read_text())
    made = {}
    for part in ({}, *sweep["include"]):
        axes = {axis: value if isinstance(value, list) else [value] for axis, value in (sweep["matrix"] | part).items()}
        for row in itertools.product(*axes.values()):
            made[row] = dict(zip(axes, row))
    cells = []
    for row in made.values():
        if any(all(row[axis] in (value if isinstance(value, list) else [value]) for axis, value in rule.items())
               for rule in sweep["exclude"]):  # fmt: skip
            continue
        checkpoint = sweep["models"].get(row["model"], {}).get("checkpoints", {}).get(row["precision"])
        split = {name: row[name] for name in ("tp", "ep", "moe_backend")}
        asked = setup(row["model"], row["precision"], checkpoint=checkpoint, **split)
        sizes = {name: row[name] for name in TRACE}
        skip = broken_rule(asked, sizes, NATIVE, device)
        cells.append(Cell(asked, row["workload"], sizes, Support(NATIVE), skip))
    return cells


def test_the_trace_sweep_says_which_of_its_cells_cannot_work_and_why():
    cells = sweep_cells(H100)
    assert len(cells) == 280 == len({c.setup for c in cells})
    assert {c.setup.moe_backend for c in cells} == {"auto", "triton", "triton_kernel", "deep_gemm"}
    assert all(c.parameters == TRACE for c in cells)
    table = [line.split() for line in SWEEP.read_text().splitlines() if re.match(r"#   \S+ +\S+ +\d", line)]
    assert {(model, precision) for _, model, precision, *_ in table} == {
        (c.setup.model, c.setup.precision) for c in cells
    }
    for _, model, precision, *sizes, left in ([*row[:7], row[7:]] for row in table):
        own = [c for c in cells if (c.setup.model, c.setup.precision) == (model, precision)]
        weights = {c.setup.tp: memory(c.setup, TRACE, NATIVE).weights / 2**30 for c in own if c.setup.ep == 1}
        assert [f"{weights[tp]:.1f}" for tp in (1, 2, 4, 8)] == sizes, model
        works = dict.fromkeys(f"{c.setup.tp}/{c.setup.ep}" for c in own if c.skip is None)
        assert (list(works) or ["none"]) == left, model
        for c in own:
            assert c.skip is None or c.skip.startswith(("weights ", "FP8 blocks: ")), c.skip


def test_the_trace_sweep_is_tight_for_one_model_and_fits_a_larger_gpu():
    assert {c.setup.model for c in sweep_cells(H100) if c.skip is None and tight(c.setup, TRACE, NATIVE, H100)} == {
        "deepseek-v3.1"
    }
    on_h200 = sweep_cells(H200)
    assert {c.setup.model for c in on_h200 if c.skip is None and c.setup.tp == 8} == {c.setup.model for c in on_h200}


def test_the_trace_sweep_measures_auto_and_triton_twice():
    auto = {"bf16": "triton", "fp8_block": "triton", "nvfp4": "marlin"}  # SGLang on SM 90
    runs = lambda asked: auto[asked.precision] if asked.moe_backend == "auto" else asked.moe_backend  # noqa: E731
    found = duplicates(sweep_cells(H100), runs)
    assert {pair[:2] for pair in backends(found)} == {("auto", "triton")}
    assert len(found) == 23


def test_a_model_too_large_for_the_machine_is_skipped_with_its_arithmetic(harness):
    folder = harness.folder / "huge"
    folder.mkdir()
    config = known()["qwen3-30b-a3b"].config | {"num_experts": 10**9}
    (folder / "config.json").write_text(json.dumps(config))
    done = harness("run", "--engine", "echo", "--workload", "perf", "--output-dir", "out", "--precision", "bf16",
                   "--output-len", 4, "--input-len", 8, "--model", "./huge")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = harness.records()
    assert record["status"] == "skipped"
    assert record["reason"].startswith("weights 422058108.3 GiB ") and "GiB there" in record["reason"]
