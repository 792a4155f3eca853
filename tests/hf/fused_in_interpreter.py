"""The fused decode step computes what transformers computes: kernel by kernel and whole, in Triton's interpreter.

Triton decides when it is imported whether it interprets, so test_fused_step.py runs these in a process of their own.
"""

import pytest
import torch
from harness_hf.fused import supports
from harness_hf.projections import fuse, fused_count
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from harness.model.models import DATA

GPT_OSS = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def test_it_says_what_it_cannot_decode():
    tiny = AutoConfig.from_pretrained(DATA / "tinymoe")
    assert supports(tiny, "bf16") is None and supports(AutoConfig.for_model("gpt_oss"), "bf16") is None
    assert "nvfp4" in supports(tiny, "nvfp4")
    assert "llama" in supports(AutoConfig.for_model("llama"), "bf16")
    assert "2880" in supports(AutoConfig.for_model("gpt_oss"), "fp8_block")
    assert "no experts" in supports(AutoConfig.for_model("qwen3_moe", mlp_only_layers=[0]), "bf16")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """What the interpreter gets wrong (BF16 products; rounding to BF16 and E4M3; since NumPy 2.4 numbers out of arrays
    of one), put right; and fewer, larger tiles, for it takes programs one after another."""
    import numpy
    from harness_hf.fused import attention, dense
    from triton import language
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def exact(handle):
        if handle.dtype.scalar != language.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(numpy.uint32) << 16).view(numpy.float32), language.float32)

    words = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

    def rounded(value, source, target, mode):
        known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8e4nv": torch.float8_e4m3fn}
        whole = torch.from_numpy(value.copy()).view(known[source.name]).to(known[target.name])
        return whole.view(words.get(whole.dtype, torch.uint8)).numpy().view(f"uint{target.primitive_bitwidth}")

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, exact(a), exact(b), *rest),
    )
    monkeypatch.setattr(dense, "PROGRAMS", 4)
    monkeypatch.setattr(attention, "PROGRAMS", 8)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def close(found, wanted, dtype):
    torch.testing.assert_close(
        found.float(),
        wanted.float(),
        atol=1e-4 if dtype == torch.float32 else 0.06,
        rtol=1e-4 if dtype == torch.float32 else 0.02,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 96), (1, 1120), (1, 1024), (5, 96)])
def test_a_product_takes_the_norm_before_and_bias_and_residual_behind(tokens, width, dtype):
    from harness_hf.fused.dense import linear

    x, norm = drawn(tokens, width, dtype=dtype), drawn(width, dtype=dtype)
    weight = drawn(40, width, dtype=dtype) / width**0.5
    bias, residual = drawn(40, dtype=dtype), drawn(tokens, 40, dtype=dtype)
    normed = functional.rms_norm(x.float(), (width,), norm.float(), 1e-6)
    wanted = normed @ weight.float().T + bias.float() + residual.float()
    out = torch.empty(tokens, 40, dtype=dtype)
    close(linear(x, weight, out, norm, 1e-6, bias, residual), wanted, dtype)
    close(linear(x, weight, out), x.float() @ weight.float().T, dtype)


def test_the_best_of_a_tile_is_the_first_of_equals_and_no_number_wins_over_all():
    from harness_hf.fused.dense import linear

    x, weight = torch.ones(1, 32), torch.zeros(64, 32)
    weight[[3, 5]] = 1.0
    best = torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.int32)
    linear(x, weight, torch.empty(1, 64), best=best)
    assert best[0].tolist() == [[32, 0, 0, 0]] and best[1].tolist() == [[3, 16, 32, 48]]
    weight[20] = float("nan")
    linear(x, weight, torch.empty(1, 64), best=best)
    assert best[0].tolist() == [[32, float("inf"), 0, 0]] and best[1][0, 1] == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("position", "window", "has_extras"), [(0, None, False), (130, None, True), (70, 50, True)])
def test_attention_is_that_of_all_tokens_with_the_new_one(position, window, has_extras, dtype):
    """Against plain softmax attention over the window; the new key and value are found in the cache."""
    from harness_hf.fused.attention import attend, splits_of

    rows, heads, group, width, room = 2, 2, 3, 32, 144
    qkv = drawn(rows, (group + 2) * heads * width, dtype=dtype)
    keys, values = (drawn(rows, heads, room, width, dtype=dtype, seed=seed) for seed in (1, 2))
    norms = (drawn(width, dtype=dtype), drawn(width, dtype=dtype, seed=3)) if has_extras else None
    sinks = drawn(heads * group, dtype=dtype) if has_extras else None
    angle = torch.arange(room)[:, None] * torch.rand(width // 2, generator=torch.Generator().manual_seed(4))
    rotation = angle.cos().to(dtype), angle.sin().to(dtype)
    splits = splits_of(rows * heads)
    partial = torch.empty(rows, heads * group, splits, width), torch.empty(2, rows, heads * group, splits)
    out = torch.empty(rows, heads * group * width, dtype=dtype)
    attend(
        qkv, norms, rotation, (keys, values), sinks, torch.tensor([position], dtype=torch.int32), partial, out,
        width**-0.5, 1e-6, window,
    )  # fmt: skip

    def turned(x, norm):
        x = x.float() if norm is None else functional.rms_norm(x.float(), (width,), norm.float(), 1e-6)
        lo, hi = x.chunk(2, -1)
        cos, sin = (table[position].float() for table in rotation)
        return torch.cat((lo * cos - hi * sin, hi * cos + lo * sin), -1)

    query, key, value = qkv.view(rows, -1, width).split((heads * group, heads, heads), 1)
    close(keys[:, :, position], turned(key, norms and norms[1]), dtype)
    assert torch.equal(values[:, :, position], value)
    first = max(0, position + 1 - window) if window else 0
    seen = slice(first, position + 1)
    query = turned(query, norms and norms[0]).view(rows, heads, group, width)
    logits = torch.einsum("ahgd,ahsd->ahgs", query, keys[:, :, seen].float()) * width**-0.5
    if sinks is not None:
        logits = torch.cat((logits, sinks.float().view(1, heads, group, 1).expand(rows, -1, -1, 1)), -1)
    shares = logits.softmax(-1)[..., : position + 1 - first]
    close(out, torch.einsum("ahgs,ahsd->ahgd", shares, values[:, :, seen].float()).reshape(rows, -1), dtype)


@pytest.mark.parametrize("is_of_chosen", [True, False])
def test_the_router_chooses_the_highest_and_of_equals_the_first(is_of_chosen):
    from harness_hf.fused.routing import Router, route

    x, norm, weight = drawn(3, 48), drawn(48), drawn(6, 48)
    weight[4] = weight[1]
    hidden, logits = torch.empty(3, 48), torch.empty(3, 6)
    ids, shares, amax = torch.empty(3, 3, dtype=torch.int32), torch.empty(3, 3), torch.zeros(1)
    route(x, Router(norm, weight, None, 1e-6, 3, True, is_of_chosen), hidden, logits, ids, shares, amax)
    close(hidden, wanted := functional.rms_norm(x, (48,), norm, 1e-6), torch.float32)
    assert amax.item() == hidden.abs().max()
    odds, order = (wanted @ weight.T).softmax(-1).sort(dim=-1, descending=True, stable=True)
    assert ids.tolist() == order[:, :3].tolist()
    odds = odds[:, :3]
    close(shares, odds / odds.sum(-1, keepdim=True) if is_of_chosen else odds, torch.float32)


def test_the_router_keeps_the_highest_of_every_block_of_what_the_experts_read():
    from harness_hf.fused.routing import Router, route

    x, hidden, amax = drawn(2, 384), torch.empty(2, 384), torch.zeros(2, 3)
    router = Router(drawn(384), drawn(6, 384), None, 1e-6, 3, True, True)
    route(x, router, hidden, torch.empty(2, 6), torch.empty(2, 3, dtype=torch.int32), torch.empty(2, 3), amax)
    assert torch.equal(amax, hidden.view(2, 3, 128).abs().amax(-1))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    ("precision", "width", "inner"),
    [*((name, 256, 128) for name in ("fp32", "bf16", "fp8", "fp8_block")), ("bf16", 288, 96), ("fp8", 288, 96)],
)
def test_experts_compute_what_the_format_says(tokens, precision, width, inner):
    """FP8 against values that went through harness_hf.formats, multiplied in FP32."""
    from harness_hf.formats import activation_through, weight_through
    from harness_hf.fused.experts import Gate, run_experts
    from harness_hf.fused.quantise import quantised

    experts, top = 4, 2
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden, x = drawn(tokens, width, dtype=dtype), drawn(tokens, width, dtype=dtype, seed=5)
    up, down = drawn(experts, 2 * inner, width, dtype=dtype) / 8, drawn(experts, width, inner, dtype=dtype) / 8
    ids = torch.stack(
        [torch.randperm(experts, generator=torch.Generator().manual_seed(t))[:top] for t in range(tokens)]
    )
    shares = drawn(tokens, top).softmax(-1)
    amaxes = None
    if precision == "fp8":
        amaxes = hidden.abs().max().view(1), torch.zeros(1)
    elif precision == "fp8_block":
        amaxes = hidden.view(tokens, -1, 128).abs().amax(-1), torch.zeros(tokens * top, inner // 128)
    out = run_experts(
        hidden, x, ids.int(), shares, quantised(up, None, precision), quantised(down, None, precision), Gate(),
        torch.empty(tokens * top, inner, dtype=dtype), torch.empty(tokens * top, width), torch.empty_like(x),
        amaxes,
    )  # fmt: skip

    is_fp8 = precision.startswith("fp8")
    through = (lambda value: activation_through(precision, value)) if is_fp8 else lambda value: value
    stored = (lambda value: torch.stack([weight_through(precision, one) for one in value])) if is_fp8 else lambda v: v
    up, down, hidden = stored(up).float(), stored(down).float(), through(hidden).float()
    gate_up = torch.einsum("ai,akoi->ako", hidden, up[ids])
    act = functional.silu(gate_up[..., :inner]) * gate_up[..., inner:]
    act = through(act)
    close(out, x.float() + torch.einsum("aki,akoi,ak->ao", act, down[ids], shares), dtype)


@pytest.mark.parametrize("rows", [1, 7, 150])
@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
def test_a_grouped_product_is_that_of_the_values_the_format_holds(precision, rows):
    """Groups without rows, of one, and of more than a tile; outputs that no tile divides; then one matrix."""
    from harness_hf.formats import activation_through, weight_through
    from harness_hf.fp8 import quantised_matrices, quantiser, reference_grouped, reference_single
    from harness_hf.fused.grouped import grouped, single

    width, outs = (256, 384) if precision == "fp8_block" else (96, 160)
    x, weights = drawn(rows, width), drawn(5, outs, width) / 8
    ends = torch.tensor([0, rows // 7, rows // 7, rows - 1, rows], dtype=torch.int32)
    group = torch.searchsorted(ends, torch.arange(rows, dtype=torch.int32), right=True)
    small, scale = quantiser(precision, on_gpu=False)(x)
    stored, scales = quantised_matrices(weights, precision)
    through = torch.stack([weight_through(precision, one) for one in weights])
    wanted = torch.einsum("si,soi->so", activation_through(precision, x), through[group])
    for found in (grouped, reference_grouped):
        torch.testing.assert_close(found(small, scale, stored, scales, ends).float(), wanted, rtol=2**-8, atol=1e-4)
    bias = drawn(outs)
    wanted = functional.linear(activation_through(precision, x), through[3], bias)
    for found in (single, reference_single):
        one = found(small, scale, stored[3], scales[3], bias)
        torch.testing.assert_close(one.float(), wanted, rtol=2**-8, atol=1e-4)
    torch.library.opcheck(grouped, (small, scale, stored, scales, ends), test_utils="test_faketensor")
    torch.library.opcheck(single, (small, scale, stored[3], scales[3], None), test_utils="test_faketensor")


def plain(model, ids, output_len):
    cache, step, logits, tokens = DynamicCache(config=model.config), ids, [], []
    with torch.inference_mode():
        for _ in range(output_len):
            logits.append(model(step, None, None, cache, use_cache=True).logits[:, -1].float())
            step = logits[-1].argmax(-1)[:, None]
            tokens.append(step)
    return torch.cat(tokens, 1), logits


def check(model, ids, output_len, tolerance):
    from harness_hf.fused.decoder import FusedDecoder

    wanted_tokens, wanted = plain(model, ids, output_len)
    found = []
    decoder = FusedDecoder(model, ids.shape[1] + output_len)
    tokens, times, started, finished = decoder.generate(
        ids, output_len, lambda logits: found.append(logits.float().clone())
    )
    assert torch.equal(tokens, wanted_tokens)
    assert started <= times[0] and times == sorted(times) and times[-1] <= finished and len(times) == output_len
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
    return decoder


@pytest.mark.parametrize(("batch_size", "dtype"), [(1, torch.float32), (2, torch.bfloat16)], ids=["1 fp32", "2 bf16"])
def test_a_step_of_tinymoe_gives_the_logits_of_transformers(batch_size, dtype):
    """Whether query, key and value were one product before, or become one now: one matrix serves both."""
    model = AutoModelForCausalLM.from_pretrained(DATA / "tinymoe", dtype=dtype, num_hidden_layers=2).eval()
    joined = fuse(model) if batch_size == 1 else 0
    ids = torch.randint(0, 2048, (batch_size, 20), generator=torch.Generator().manual_seed(0))
    check(model, ids, 2, 1e-4 if dtype == torch.float32 else 0.4)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.k_proj.weight.untyped_storage().data_ptr()
    assert fused_count(model) == joined


def test_a_prefill_of_compiled_layers_is_compiled_once_and_fills_the_steps_cache():
    from harness_hf.decode import decoder_of
    from harness_hf.regional import CompiledLayers

    model = AutoModelForCausalLM.from_pretrained(DATA / "tinymoe", dtype=torch.bfloat16, num_hidden_layers=2).eval()
    model.set_experts_implementation("grouped_mm")
    ids = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(0))
    plain, layers = decoder_of(model, 24, frozenset({"fused_step"})), CompiledLayers(model, backend="eager")
    compiled = decoder_of(model, 24, frozenset({"fused_step", "compiled_prefill"}), layers)
    for _ in range(2):
        logits = [[], []]
        for decoder, kept in zip((plain, compiled), logits):
            decoder.generate(ids, 2, lambda one, kept=kept: kept.append(one.float().clone()))
        torch.testing.assert_close(*logits, atol=0.4, rtol=0)
    assert layers.compiled() == 1 and compiled.prefill.calls == 2


@pytest.mark.parametrize("precision", ["fp8", "fp8_block"])
def test_a_step_takes_experts_that_are_in_fp8_as_they_are(precision):
    """Beside the model with the same experts; prefill multiplies by the grouped kernel."""
    from harness_hf import fp8
    from harness_hf.fused.grouped import grouped

    model = AutoModelForCausalLM.from_pretrained(DATA / "tinymoe", dtype=torch.bfloat16, num_hidden_layers=1).eval()
    kernels = fp8.Products(fp8.Product("the kernel", 32, grouped), fp8.REFERENCE.linear)
    fp8.convert(model, precision, "experts", kernels)
    ids = torch.randint(0, 2048, (2, 12), generator=torch.Generator().manual_seed(0))
    weights = check(model, ids, 2, 0.4)._weights
    experts = model.model.layers[0].mlp.experts
    assert weights.layers[0].up.weight_EOI.data_ptr() == experts.gate_up_proj.data_ptr()
    assert torch.equal(weights.layers[0].down.scale, experts.down_proj_scale)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_step_of_gpt_oss_gives_the_logits_of_transformers_beyond_its_window(batch_size):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **GPT_OSS), attn_implementation="eager")
    for parameter in model.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 96, (batch_size, 12), generator=torch.Generator().manual_seed(0))
    decoder = check(model, ids, 3, 2e-4)
    tokens, *_ = decoder.generate(ids, 2)  # the second run of a decoder starts anew
    assert torch.equal(tokens, plain(model, ids, 2)[0])


def test_logits_that_are_no_numbers_are_not_taken_for_an_answer():
    from harness_hf.fused.decoder import FusedDecoder

    from harness import BadOutput

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt_oss", **GPT_OSS), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        model.lm_head.weight[7, 3] = float("nan")
    with pytest.raises(BadOutput, match="step 0"):
        FusedDecoder(model, 8).generate(torch.ones(1, 4, dtype=torch.int64), 2)
