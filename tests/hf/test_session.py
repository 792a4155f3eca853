"""The HF session gives what transformers itself gives, keeps its memory promise, and converts what it says."""

import os
import subprocess
import sys

import pytest
import torch
from harness_hf import UNUSED
from harness_hf import session as module
from harness_hf.products import Widened, widened
from harness_hf.session import HfSession

from harness import LoadFailed, Unsupported
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.precision import Support

FOLDER = str(models.DATA / "tinymoe")
# nats; a GPU picks another kernel for another number of rows, and BF16 logits of 10 are 1/16 apart
TOLERANCE = 0.15 if torch.cuda.is_available() else 1e-4
PROMPTS = [[(row * 31 + step * 7) % 2000 + 1 for step in range(48)] for row in range(4)]


def open_session(precision: str = "bf16", input_len: int = 48, **setup) -> HfSession:
    setup = Setup(**{"engine": "hf", "model": "tinymoe", "path": FOLDER, "precision": precision, **setup})
    return HfSession(
        Load(setup, (Cell(setup, "perf", {"input_len": input_len, "output_len": 16}, Support("native")),), "native")
    )


@pytest.fixture(scope="module")
def bf16() -> HfSession:
    return open_session()


def test_scores_are_those_of_transformers_full_logits(bf16):
    ids = torch.tensor(PROMPTS, device=bf16._device)
    with torch.inference_mode(), widened():
        logprobs = bf16._model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    expected = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(torch.tensor(list(bf16.score(PROMPTS))), expected.cpu(), rtol=0, atol=TOLERANCE)


def test_tokens_are_those_of_a_greedy_loop_without_a_cache(bf16):
    ids = torch.tensor(PROMPTS, device=bf16._device)
    with torch.inference_mode():
        for _ in range(12):
            ids = torch.cat([ids, bf16._model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    ours = [list(response.token_ids) for response in bf16.generate(PROMPTS, 12).responses]
    assert ours == ids[:, len(PROMPTS[0]) :].tolist()


def test_widened_products_are_fp32_products_rounded_once(bf16):
    experts = bf16._model.model.layers[0].mlp.experts
    rows, weights = torch.randn(64, 256).bfloat16(), experts.gate_up_proj.data.cpu().transpose(1, 2)
    offs = torch.tensor([0, 5, 20, 20, 20, 50, 60, 64], dtype=torch.int32)
    expert_of = torch.bucketize(torch.arange(64), offs, right=True)
    exact = torch.einsum("si,sio->so", rows.double(), weights[expert_of].double())
    with Widened():
        grouped = torch._grouped_mm(rows, weights, offs=offs, bias=None, out_dtype=None)
        linear = torch.nn.functional.linear(rows, weights[1].T, None)
    for ours, expected in ((grouped, exact), (linear, rows.double() @ weights[1].double())):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), expected, rtol=2**-8, atol=1e-5)


def test_widening_moves_perplexity_no_more_than_another_kernel_would(bf16):
    ids = torch.tensor(PROMPTS, device=bf16._device)
    with torch.inference_mode():
        plain = bf16._score(ids).mean()
        with Widened():
            wide = bf16._score(ids).mean()
    assert abs(plain - wide) < 5e-3 and plain != wide


def test_never_more_than_one_chunk_of_logits_exists(bf16, monkeypatch):
    monkeypatch.setattr(module, "LOGIT_ROWS", 40)
    seen = []
    hook = bf16._model.get_output_embeddings().register_forward_hook(
        lambda layer, inputs, logits: seen.append(len(logits))
    )
    expected = list(bf16.score(PROMPTS))
    hook.remove()
    assert max(seen) == 40 and sum(seen) == 4 * 47
    monkeypatch.undo()
    torch.testing.assert_close(torch.tensor(list(bf16.score(PROMPTS))), torch.tensor(expected), rtol=0, atol=TOLERANCE)


def test_more_tokens_than_it_was_loaded_for_are_refused_before_a_cache_overflows(bf16):
    with pytest.raises(Unsupported, match="48 \\+ 17 tokens asked for, loaded for 64"):
        bf16.generate(PROMPTS, 17)


def test_prompts_of_unequal_length_are_refused_not_padded(bf16):
    with pytest.raises(Unsupported, match="equally long"):
        bf16.generate([[1, 2], [3]], 2)


@pytest.mark.parametrize("precision", ["fp8", "fp8_block", "nvfp4", "mxfp4"])
def test_an_emulated_session_says_how_many_matrices_it_converted(bf16, precision):
    experts, linear = open_session(precision), open_session(precision, quantize="linear")
    assert experts.facts()["converted_matrices"] == {"experts": 4 * 8 * 2, "linear": 0}
    assert linear.facts()["converted_matrices"] == {"experts": 4 * 8 * 2, "linear": 4 * 4}
    assert linear.facts()["precision"] == precision and linear.facts()["compute_mode"] == "emulated"
    untouched, converted = bf16._model.state_dict(), linear._model.state_dict()
    changed = {name for name in untouched if not torch.equal(untouched[name], converted[name])}
    assert changed == {name for name in untouched if "_proj" in name}, (
        "router, norms, embedding and head stay as they are"
    )


def test_dummy_weights_repeat_with_their_seed_and_differ_with_another():
    first, again, other = (open_session(weights="dummy", seed=seed)._model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sequence_longer_than_the_model_is_refused_at_load():
    with pytest.raises(LoadFailed, match="holds 2048"):
        open_session(input_len=4096)


def test_the_experts_implementation_is_the_one_asked_for():
    assert open_session(moe_backend="batched_mm").facts()["moe_backend"] == "batched_mm"


def test_what_transformers_imports_without_need_is_left_alone_and_there_afterwards(tmp_path):
    for name in UNUSED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("print('imported', __name__)")
    code = (
        "import harness_hf; from harness import LoadFailed; from harness.cells import Load, Setup\n"
        "try: harness_hf.load(Load(Setup('hf', 'm', '/nowhere', 'bf16'), (), 'native'))\n"
        "except LoadFailed as error: print(error)\n"
        f"import {', '.join(UNUSED)}"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["there is no folder /nowhere", *(f"imported {name}" for name in UNUSED)]
