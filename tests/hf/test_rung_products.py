"""Fused, compiled and FP8 products: what they share with the plain ones, to the bit or within the format's rounding."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from harness_hf import fp8, grouped, support
from harness_hf.caches import fixed
from harness_hf.emulate import emulate
from harness_hf.layers import described
from harness_hf.modules import every_experts
from harness_hf.products import Widened
from harness_hf.projections import FusedLinear, fuse, fused_count
from harness_hf.regional import ByLayer, CompiledLayers
from harness_hf.rungs import LADDER, asked
from harness_hf.scoring import CompiledBody, Eager
from harness_hf.session import HfSession
from torch import nn
from transformers import PreTrainedModel

from harness import LoadFailed, provenance
from harness.cells import Cell, Load, Setup
from harness.device import Device
from harness.model import models
from harness.precision import Support

FOLDER = str(models.DATA / "tinymoe")
IDS = torch.tensor([[(row * 31 + step * 7) % 2000 + 1 for step in range(48)] for row in range(3)])
H200 = Device("cuda", "NVIDIA H200", 1, None, 90)
FIXED = "sdpa+grouped_experts+static_cache"


def open_session(rungs: str = "default", precision: str = "bf16") -> HfSession:
    setup = Setup("hf", "tinymoe", FOLDER, precision, rungs=rungs)
    parameters = {"input_len": 48, "output_len": 16}
    return HfSession(Load(setup, (Cell(setup, "perf", parameters, Support("native")),), "native"))


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS.to(model.device)).logits.float()


def test_a_fused_product_is_the_products_it_replaces_and_costs_no_second_copy():
    plain, model = open_session("none", "fp32")._model, open_session("none", "fp32")._model
    before = sum(parameter.numel() for parameter in model.parameters())
    assert fuse(model) == 4 * 2 == fused_count(model)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=1e-4)
    attention = model.model.layers[0].self_attn
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    assert len({part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.v_proj)}) == 1
    attention.k_proj.weight = nn.Parameter(attention.k_proj.weight.clone())
    assert fused_count(model) == 4 * 2 - 1, "a weight of its own is no part of the product"


def test_gate_and_up_with_biases_are_fused_too_and_two_inputs_are_refused():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 6), nn.Linear(8, 6)

    dense, input = Dense(), torch.randn(3, 8)
    expected = dense.gate_proj(input), dense.up_proj(input)
    assert fuse(dense) == 1 and isinstance(dense.up_proj, FusedLinear)
    torch.testing.assert_close((dense.gate_proj(input), dense.up_proj(input)), expected)
    dense.gate_proj(input)
    with pytest.raises(RuntimeError, match="called with two"):
        dense.up_proj(input.clone())


def test_one_compiled_layer_serves_all_and_a_batch_size_costs_one_more():
    session = open_session(FIXED + "+fused_projections")
    decoder, model = session._decoder, session._model
    plain = [decoder.generate(IDS[:rows], 6)[0] for rows in (3, 1)]
    layers = CompiledLayers(model, backend="eager")
    decoder.continued.step = ByLayer(decoder.continued.step, layers)
    for rows, expected, graphs in ((3, plain[0], 1), (3, plain[0], 1), (1, plain[1], 2)):
        assert torch.equal(decoder.generate(IDS[:rows], 6)[0], expected)
        assert layers.compiled() == graphs
    scorer = CompiledBody(layers, backend="eager")
    with torch.inference_mode():
        body = model.get_decoder()
        assert same_rows(scorer.body(body, IDS), Eager().body(body, IDS)) >= 0.95
    assert layers.compiled() == 3


def same_rows(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of the tokens; where a router all but ties, rounding sends a token elsewhere."""
    return float(((ours - theirs).abs().amax(-1) <= 0.1).float().mean())


def test_prefill_by_compiled_layers_is_compiled_once_per_shape():
    session = open_session(FIXED)
    decoder = session._decoder
    plain, layers = decoder.generate(IDS, 4)[0], CompiledLayers(session._model, backend="eager")
    decoder.caches = fixed(session._model, 64)
    decoder.prefill = ByLayer(decoder.prefill, layers)
    for _ in range(2):
        assert torch.equal(decoder.generate(IDS, 4)[0], plain)
    assert layers.compiled() == 1


def test_a_smaller_batch_is_filled_up_and_not_compiled_anew():
    session = open_session()
    body, head = session._model.get_decoder(), session._model.get_output_embeddings()
    scorer = CompiledBody(CompiledLayers(session._model, backend="eager"), backend="eager")
    plain, target_N = Eager(), IDS.flatten()
    with torch.inference_mode():
        for rows in (3, 1):
            ids = torch.tensor(IDS[:rows].tolist())
            assert same_rows(scorer.body(body, ids), plain.body(body, ids)) >= 0.95
        assert scorer.compiled() == 1
        hidden_NH = plain.body(body, IDS).flatten(0, 1)
        for count in (144, 100):
            ours, theirs = (each.logprobs(head, hidden_NH[:count], target_N[:count], 144) for each in (scorer, plain))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert scorer.compiled() == 2


def test_experts_in_few_kernels_are_the_experts_and_only_inside_and_where_they_can_be():
    model, biased = open_session()._model, Biased()
    experts, run = model.model.layers[0].mlp.experts, torch.compile(grouped.experts_forward, backend="eager")
    torch.manual_seed(0)
    given = torch.randn(64, 256).bfloat16(), torch.randint(0, 4, (64, 2)) * 2 + torch.tensor([0, 1]), torch.rand(64, 2)
    with torch.inference_mode(), Widened():
        expected = experts(*given)
        with grouped.in_few_kernels(model):
            assert model.config._experts_implementation == grouped.NAME
            found = experts(*given)
        for ours in (found, run(experts, *given)):
            torch.testing.assert_close(ours, expected, rtol=2**-7, atol=1e-3)
    assert model.config._experts_implementation == "grouped_mm"
    with grouped.in_few_kernels(biased):
        assert biased.experts.config._experts_implementation == "grouped_mm"


class Biased(nn.Module):
    """gpt-oss's layout of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.down_proj = nn.Parameter(torch.zeros(2, 4, 4))
        self.experts.has_gate = self.experts.has_bias = self.experts.is_transposed = True
        self.experts.config = SimpleNamespace(_experts_implementation="grouped_mm")


@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
def test_fp8_experts_are_those_of_the_emulation_up_to_where_they_round(precision):
    native, emulated, plain = (open_session()._model for _ in range(3))
    assert fp8.convert(native, precision, "experts", fp8.REFERENCE) == {"experts": 4 * 8 * 2, "linear": 0}
    emulate(emulated, precision, "experts")
    torch.manual_seed(0)
    given = torch.randn(64, 256).bfloat16(), torch.randint(0, 4, (64, 2)) * 2 + torch.tensor([0, 1]), torch.rand(64, 2)
    with torch.inference_mode():
        found, expected, exact = (m.model.layers[0].mlp.experts(*given).float() for m in (native, emulated, plain))
    apart, cost = ((found - other).norm() / exact.norm() for other in (expected, exact))
    assert apart < cost / 4, (apart, cost)
    for (_, ours), (_, theirs) in zip(every_experts(native), every_experts(emulated)):
        back = torch.stack([fp8.back(*each) for each in zip(ours.down_proj, ours.down_proj_scale)])
        torch.testing.assert_close(back, theirs.down_proj.float(), rtol=2**-8, atol=0)
        assert ours.multiplied_by == fp8.REFERENCE.experts.name
    facts = provenance.summary(provenance.group(described(native)))
    assert (facts["precision"], facts["compute_mode"]) == (precision, "native")
    assert facts["weight_dtypes"]["experts"] == "float8_e4m3fn"
    assert facts["moe_kernel"] == fp8.REFERENCE.experts.name


@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
def test_fp8_linear_layers_multiply_in_fp8(precision):
    """Per tensor by PyTorch, blocks here by their reference."""
    model, plain = open_session()._model, open_session()._model
    products = fp8.REFERENCE if precision == "fp8_block" else replace(fp8.REFERENCE, linear=fp8.TORCH.linear)
    assert fp8.convert(model, precision, "linear", products)["linear"] == 4 * 4
    linear, input = model.model.layers[0].self_attn.q_proj, torch.randn(1, 5, 256).bfloat16()
    linear.bias = nn.Parameter(torch.randn(len(linear.weight)).bfloat16())
    with torch.inference_mode():
        rows = fp8.back(*fp8.quantiser(precision, on_gpu=False)(input[0]))
        expected = rows @ fp8.back(linear.weight, linear.weight_scale).T + linear.bias
        torch.testing.assert_close(linear(input)[0].float(), expected.float(), rtol=2**-7, atol=2e-2)
        linear.bias = None
    assert linear.multiplied_by == products.linear.name and not isinstance(model.lm_head, fp8.Fp8Linear)
    assert (logits(model).log_softmax(-1) - logits(plain).log_softmax(-1)).abs().mean() < 0.5


def test_what_blocks_do_not_divide_is_refused():
    model = open_session()._model
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(torch.zeros(8, 256, 96).bfloat16())
    with pytest.raises(LoadFailed, match="multiples of 128"):
        fp8.convert(model, "fp8_block", "experts", fp8.REFERENCE)


def test_fp8_is_native_where_the_rung_is_asked_for_and_can_be_and_emulated_elsewhere():
    wanted = "grouped_experts+fp8"
    for precision in ("fp8", "fp8_block"):
        for sm in (89, 90, 100, 103, 120):
            assert support(precision, replace(H200, sm=sm), None, wanted).mode == "native"
        for device, rungs in ((H200, "default"), (H200, "none"), (replace(H200, sm=80), wanted)):
            assert support(precision, device, None, rungs).mode == "emulated"
    assert [rung.name for rung in LADDER if rung.changes_output] == ["fp8", "fp8_kv"]


@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
def test_the_fused_step_reads_experts_that_are_fp8_and_none_that_are_emulated(precision):
    assert "fused_step" in asked("grouped_experts+fp8+fused_step", precision, H200).on
    assert "not emulated" in asked("grouped_experts+fused_step", precision, H200).off["fused_step"]
