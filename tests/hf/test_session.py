"""The HF session gives what transformers itself gives, keeps its memory promise, and converts what it says."""

import pytest
import torch
from harness_hf import session as module
from harness_hf.session import HfSession

from harness import LoadFailed, Unsupported, models
from harness.cells import Cell, Load, Setup
from harness.precision import Support

FOLDER = str(models.DATA / "tinymoe")
PROMPTS = [[(row * 31 + step * 7) % 2000 + 1 for step in range(48)] for row in range(4)]


def open_session(precision: str = "bf16", input_len: int = 48, **setup) -> HfSession:
    setup = Setup(**{"engine": "hf", "model": "tinymoe", "path": FOLDER, "precision": precision, **setup})
    return HfSession(Load(setup, (Cell(setup, "ppl", {"input_len": input_len}, Support("native")),), "native"))


@pytest.fixture(scope="module")
def bf16() -> HfSession:
    return open_session()


def test_scores_are_those_of_transformers_full_logits(bf16):
    ids = torch.tensor(PROMPTS)
    with torch.inference_mode():
        logprobs = bf16._model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    expected = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(torch.tensor(list(bf16.score(PROMPTS))), expected, rtol=0, atol=1e-4)


def test_tokens_are_those_of_transformers_greedy_generate(bf16):
    ids = torch.tensor(PROMPTS)
    expected = bf16._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=-1
    )
    ours = [list(response.token_ids) for response in bf16.generate(PROMPTS, 12).responses]
    assert ours == expected[:, ids.shape[1] :].tolist()


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
    torch.testing.assert_close(torch.tensor(list(bf16.score(PROMPTS))), torch.tensor(expected), rtol=0, atol=1e-4)


def test_prompts_of_unequal_length_are_refused_not_padded(bf16):
    with pytest.raises(Unsupported, match="equally long"):
        bf16.generate([[1, 2], [3]], 2)


@pytest.mark.parametrize("precision", ["fp8", "fp8_block", "nvfp4", "mxfp4"])
def test_an_emulated_session_says_how_many_matrices_it_converted(precision):
    experts, linear = open_session(precision), open_session(precision, quantize="linear")
    assert experts.facts()["converted_matrices"] == {"experts": 4 * 8 * 2, "linear": 0}
    assert linear.facts()["converted_matrices"] == {"experts": 4 * 8 * 2, "linear": 4 * 4}
    assert linear.facts()["precision"] == precision and linear.facts()["compute_mode"] == "emulated"
    untouched, converted = open_session()._model.state_dict(), linear._model.state_dict()
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
