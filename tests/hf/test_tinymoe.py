"""The embedded model is what the documentation says: small, whole, trained, its experts alive, hurt by four bits."""

import json
import math

import pytest
import torch
from harness_hf.session import HfSession
from safetensors import safe_open
from tokenizers import Tokenizer

from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.precision import Support
from harness.recording.metrics import perplexities
from harness.working import inputs
from harness.working.corpus import stdlib_text

FOLDER = models.DATA / "tinymoe"
WINDOW, WINDOWS = 512, 16


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def windows() -> inputs.Inputs:
    return inputs.make(inputs.Request(str(FOLDER), "windows", WINDOWS, WINDOW, "stdlib"))


def session(precision: str, quantize: str = "experts") -> HfSession:
    setup = Setup(engine="hf", model="tinymoe", path=str(FOLDER), precision=precision, quantize=quantize)
    return HfSession(Load(setup, (Cell(setup, "ppl", {"input_len": WINDOW}, Support("native")),), "native"))


@pytest.fixture(scope="module")
def bf16() -> HfSession:
    return session("bf16")


@pytest.fixture(scope="module")
def plain(bf16, windows) -> float:
    """Perplexity in BF16."""
    return perplexity(bf16, windows)


def perplexity(session: HfSession, windows: inputs.Inputs) -> float:
    nlls = [[-value for value in scores] for scores in session.score(windows.ids)]
    return perplexities(nlls, windows.words, windows.bytes)["token_perplexity"]


def test_it_is_a_small_qwen3_moe_in_bf16_with_dimensions_every_format_divides(config):
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["head_dim"] == 64 and config["vocab_size"] <= 4096
    assert config["num_local_experts"] >= 8 and config["num_experts_per_tok"] == 2
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}
        assert {tensor.get_dtype() for tensor in tensors.values()} == {"BF16"}
        assert 2e6 <= sum(math.prod(tensor.get_shape()) for tensor in tensors.values()) <= 6e6
        products = [t.get_shape() for name, t in tensors.items() if name.endswith("_proj.weight")]
        assert products and all(size % 128 == 0 for shape in products for size in shape)


def test_it_predicts_text_it_never_saw_six_times_better_than_a_unigram_model(windows, plain, config):
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    counts = (
        torch.bincount(torch.tensor(tokenizer.encode(stdlib_text("train")).ids), minlength=config["vocab_size"]) + 1
    )
    logprobs = (counts / counts.sum()).log()
    scored = torch.tensor(windows.ids)[:, 1:].flatten()
    unigram = math.exp(-logprobs[scored].mean())
    assert unigram / plain >= 6


def test_no_expert_of_any_layer_is_idle_or_overrun_on_text_it_never_saw(bf16, windows, config):
    model = bf16._model
    with torch.inference_mode():
        ids = torch.tensor(windows.ids[:16], device=model.device)
        routes = model(input_ids=ids, output_router_logits=True).router_logits
    assert len(routes) == config["num_hidden_layers"]
    for logits in routes:
        chosen = logits.topk(config["num_experts_per_tok"]).indices.flatten()
        share = (
            torch.bincount(chosen, minlength=config["num_local_experts"]) / len(chosen) * config["num_local_experts"]
        )
        assert 0.25 <= share.min() and share.max() <= 4


def test_four_bits_cost_it_perplexity(windows, plain):
    assert perplexity(session("nvfp4", quantize="linear"), windows) >= plain * 1.005
