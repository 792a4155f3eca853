"""What TensorRT-LLM would make of a checkpoint, and what is refused before it loads."""

import json

import pytest
from harness_trtllm.checkpoint import Quant, check, local, prepared, read

from harness import LoadFailed, Setup, Unsupported


def setup(**named) -> Setup:
    return Setup(**{"engine": "trtllm", "model": "m", "path": "p", "precision": "bf16", **named})


def modelopt(algorithm: str, kv: str | None = None) -> dict:
    return {"hf_quant_config.json": {"quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": kv}}}


def compressed(bits: int, strategy: str, group: int | None = None) -> dict:
    weights = {"num_bits": bits, "strategy": strategy, "group_size": group}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def test_an_unquantised_checkpoint_is_bf16(folder_with):
    assert read(folder_with(), 90, False).algorithm is None


def test_modelopts_own_file_goes_before_config_json(folder_with):
    folder = folder_with(modelopt("NVFP4", "FP8"), quantization_config={"quant_method": "fp8"})
    assert read(folder, 100, False) == Quant("NVFP4", "FP8", "hf_quant_config.json")


@pytest.mark.parametrize(
    ("section", "sm", "algorithm"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 90, "FP8_BLOCK_SCALES"),
        ({"quant_method": "mxfp4"}, 90, "W4A16_MXFP4"),
        ({"quant_method": "mxfp4"}, 100, "W4A8_MXFP4_MXFP8"),
        (compressed(8, "channel"), 90, "FP8_PER_CHANNEL_PER_TOKEN"),
        (compressed(8, "block"), 90, "FP8_BLOCK_SCALES"),
    ],
)
def test_sections_of_config_json_are_read_as_the_engine_does(folder_with, section, sm, algorithm):
    assert read(folder_with(quantization_config=section), sm, False).algorithm == algorithm


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "fp8"}, "without weight_block_size.*unquantised"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "128 x 128 only"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "would ignore.*hf_quant_config.json"),
        ({"quant_method": "awq"}, "would ignore quant_method 'awq'"),
        (compressed(4, "group", 16), "does not read compressed-tensors"),
    ],
)
def test_what_would_load_unquantised_without_a_word_is_refused(folder_with, section, words):
    with pytest.raises(Unsupported, match=words):
        read(folder_with(quantization_config=section), 100, reads_inline=False)


@pytest.mark.parametrize("section", [{"quant_method": "modelopt", "quant_algo": "NVFP4"}, compressed(4, "group", 16)])
def test_versions_after_1_2_read_nvfp4_in_config_json(folder_with, section):
    assert read(folder_with(quantization_config=section), 100, reads_inline=True).algorithm == "NVFP4"


@pytest.mark.parametrize(
    ("precision", "algorithm"),
    [("fp8", "FP8_BLOCK_SCALES"), ("fp8_block", "FP8"), ("bf16", "NVFP4"), ("nvfp4", None)],
)
def test_a_checkpoint_of_another_precision_is_refused_and_named(precision, algorithm):
    with pytest.raises(Unsupported, match=algorithm or "not quantised"):
        check(setup(precision=precision), Quant(algorithm))


def test_a_checkpoint_of_mixed_precisions_has_no_one_name():
    with pytest.raises(Unsupported, match="mixes precisions"):
        check(setup(precision="nvfp4"), Quant("MIXED_PRECISION"))


def test_keys_and_values_stay_bf16_whatever_the_checkpoint_says(folder_with, tmp_path):
    folder = folder_with(modelopt("FP8", "FP8"))
    (folder / "model.safetensors").write_bytes(b"weights")
    path, quant = prepared(setup(precision="fp8"), folder, read(folder, 90, False), 90, tmp_path / "own")
    said = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
    assert (said, quant.kv_algorithm) == ({"quant_algo": "FP8", "kv_cache_quant_algo": None}, None)
    assert (path / "model.safetensors").resolve() == folder / "model.safetensors"
    assert "FP8" in json.loads((folder / "hf_quant_config.json").read_text())["quantization"].values()


@pytest.mark.parametrize("scope", ["experts", "linear"])
def test_random_weights_get_the_layout_of_the_precision_asked_for(folder_with, tmp_path, scope):
    folder = folder_with()
    asked = setup(precision="nvfp4", weights="dummy", quantize=scope)
    path, quant = prepared(asked, folder, read(folder, 100, False), 100, tmp_path / "own")
    check(asked, quant)
    said = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == "NVFP4" and ("*self_attn*" in said["exclude_modules"]) == (scope == "experts")


def test_a_folder_without_a_model_is_no_checkpoint(tmp_path):
    with pytest.raises(LoadFailed, match="no config.json"):
        local(setup(path=str(tmp_path)))
