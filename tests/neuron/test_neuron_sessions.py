"""Sessions on the double: one compile for many runs, given tokens scored, and what goes wrong is said and classified."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from harness_neuron.session import NeuronSession
from neuronx_distributed_inference.models.qwen3_moe import modeling_qwen3_moe as original
from transformers import AutoModelForCausalLM

from harness import BadOutput, LoadFailed, OutOfMemory, Setup, Unsupported
from harness.cells import Cell, Load
from harness.evaluation.hlo import count
from harness.model import models
from harness.precision import NATIVE, Support

TINYMOE = models.resolve("tinymoe").path
PROMPTS = [[(row * 37 + step * 11) % 200 + 3 for step in range(12)] for row in range(2)]


def load_of(*workloads: str, path: str = TINYMOE, **setup: object) -> Load:
    setup = Setup(**{"engine": "neuron", "model": "m", "path": path, "precision": "fp32", **setup})
    sizes = {"perf": {"batch_size": 2, "input_len": 12, "output_len": 6}, "ppl": {"input_len": 20}}
    return Load(setup, tuple(Cell(setup, name, sizes[name], Support(NATIVE)) for name in workloads or ["perf"]), NATIVE)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HARNESS_NEURON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", "")  # sessions set it
    return tmp_path / "cache"


@pytest.fixture
def sinning(monkeypatch):
    return lambda *words: monkeypatch.setenv("NEURON_DOUBLE", ",".join(words))


def compiles(folder: Path) -> int:
    return len((folder / "work/token_generation_model/_tp0_bk0/log-neuron-cc.txt").read_text().splitlines())


@torch.inference_mode()
def reference() -> torch.Tensor:
    """Logits of PROMPTS by transformers, [2, 12, V]."""
    return AutoModelForCausalLM.from_pretrained(TINYMOE, dtype=torch.float32)(torch.tensor(PROMPTS)).logits


def test_what_was_compiled_is_loaded_by_later_sessions_and_says_so(cache):
    first, second = (NeuronSession(load_of()).facts() for _ in range(2))
    (folder,) = cache.iterdir()
    assert first["compiled_folder"] == second["compiled_folder"] == str(folder) and compiles(folder) == 1
    assert first["compile_seconds"] > 0 and second["compile_seconds"] is None
    assert second["unread"]["compile_seconds"] == "compiled before"
    what = json.loads((folder / "harness.json").read_text())
    assert what["packages"]["neuronx-distributed-inference"] == "0.9.0+double" and what["platform"] == "trn2"
    assert what["settings"]["batch_size"] == 2 and what["compile_seconds"] == first["compile_seconds"]


def test_a_folder_left_by_a_compile_that_failed_is_compiled_anew(cache, sinning):
    sinning("compile")
    with pytest.raises(LoadFailed, match="neuronx-cc failed"):
        NeuronSession(load_of())
    sinning()
    assert NeuronSession(load_of()).facts()["compile_seconds"] > 0


def test_each_cells_shape_is_compiled_and_the_one_that_runs_is_in_the_facts(cache):
    session = NeuronSession(load_of("perf", "ppl"))
    assert len(list(cache.iterdir())) == 2
    list(session.score([list(range(3, 23))]))
    assert session.facts()["compiled_for"] == {"batch": 16, "context": 20, "total": 20}
    session.generate(PROMPTS, 6)
    facts = session.facts()
    assert facts["compiled_for"] == {"batch": 2, "context": 12, "total": 18}
    assert (facts["max_num_seqs"], facts["max_num_batched_tokens"]) == (2, 24)
    with pytest.raises(Unsupported, match="3 prompts of 21 tokens, 23 in all, fit no compiled shape"):
        session.generate([list(range(3, 24))] * 3, 2)


def test_a_given_folder_is_loaded_and_nothing_compiled(cache, monkeypatch, tmp_path):
    NeuronSession(load_of())
    (folder,) = cache.iterdir()
    given = shutil.copytree(folder, tmp_path / "elsewhere")
    (given / "harness.json").unlink()  # NxD Inference's own files are enough
    monkeypatch.setenv("HARNESS_NEURON_COMPILED", str(given))
    session = NeuronSession(load_of("perf", "ppl"))
    assert len(session.generate(PROMPTS, 6).responses) == 2 and compiles(given) == 1
    assert session.facts()["compiled_folder"] == str(given)
    with pytest.raises(Unsupported, match="fit no compiled shape: 2 x 12, 18 in all"):
        next(session.score([list(range(3, 23))]))
    with pytest.raises(LoadFailed, match="compiled with torch_dtype=float32, asked for bfloat16"):
        NeuronSession(load_of(precision="bf16"))


def test_scores_of_given_tokens_are_those_of_one_forward_pass():
    session = NeuronSession(load_of())
    logprobs = reference()[:, :-1].log_softmax(-1)
    expected = logprobs.gather(2, torch.tensor(PROMPTS)[:, 1:, None])[..., 0]
    torch.testing.assert_close(torch.tensor(list(session.score(PROMPTS))), expected, rtol=1e-4, atol=1e-4)
    whole = torch.stack([piece.values for piece in session.score_logits(PROMPTS, 2048)])
    torch.testing.assert_close(whole.log_softmax(-1), logprobs, rtol=1e-3, atol=1e-3)
    assert [list(scores) for scores in session.score([[5], *PROMPTS])][0] == []


def test_generated_tokens_and_rows_are_those_of_transformers_and_an_end_of_text_token_ends_nothing():
    session = NeuronSession(load_of())
    model = AutoModelForCausalLM.from_pretrained(TINYMOE, dtype=torch.float32)
    expected = model.generate(torch.tensor(PROMPTS), max_new_tokens=6, do_sample=False, eos_token_id=None)
    generated = session.generate_logits(PROMPTS, 6, 2048)
    assert [tokens for tokens, _ in generated] == [tuple(row) for row in expected[:, 12:].tolist()]
    first = torch.stack([piece.values[0] for _, piece in generated])
    torch.testing.assert_close(first, reference()[:, -1], rtol=1e-3, atol=1e-3)
    end = expected[0, 12].item()  # a model whose end-of-text token is the first it would say
    session._model.config.eos_token_id = session._adapter.config.eos_token_id = end
    assert [r.token_ids for r in session.generate(PROMPTS, 6).responses] == [tokens for tokens, _ in generated]


def test_an_adapter_that_does_not_reset_the_model_changes_nothing(sinning):
    session = NeuronSession(load_of())
    expected = session.generate(PROMPTS, 6).responses[0].token_ids
    sinning("no reset")
    assert session.generate(PROMPTS, 6).responses[0].token_ids == expected
    session._model.reset = lambda: None  # the control: without ours, keys and values of the last run are read
    assert session.generate(PROMPTS[::-1], 6).responses[1].token_ids != expected


def test_every_token_of_a_batch_has_the_time_of_its_step():
    generation = NeuronSession(load_of()).generate(PROMPTS, 6)
    one, other = (response.token_ns for response in generation.responses)
    assert one == other and len(set(one)) == 6 and None not in one


@pytest.mark.parametrize(("sin", "words"), [("nan", "not finite"), ("short", "asked for 6 tokens, got 2")])
def test_answers_that_mean_something_else_are_refused(sinning, sin, words):
    session = NeuronSession(load_of())
    sinning(sin)
    with pytest.raises(BadOutput, match=words):
        session.generate(PROMPTS, 6)


def test_a_device_that_is_full_is_out_of_memory(sinning):
    sinning("oom")
    with pytest.raises(OutOfMemory, match="NRT_RESOURCE"):
        NeuronSession(load_of())


def test_a_setting_that_this_version_ignores_is_not_run_without_it(sinning):
    sinning("moe_ep_degree")
    with pytest.raises(Unsupported, match="takes no moe_ep_degree=2"):
        NeuronSession(load_of(tp=2, ep=2))


def test_tied_weights_are_untied_for_the_class_that_cannot():
    assert NeuronSession(load_of()).facts()["weight_dtypes"]["head"] == "float32"
    with pytest.raises(NotImplementedError):  # the control: its own class does not know how
        original.NeuronQwen3MoeForCausalLM.update_state_dict_for_tied_weights({})


def changed(folder: Path, **fields: object) -> str:
    copy = shutil.copytree(TINYMOE, folder / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **fields}))
    return str(copy)


@pytest.mark.parametrize(
    ("fields", "setup", "error", "words"),
    [
        ({"model_type": "llama"}, {}, Unsupported, "knows no class of NxD Inference for 'llama'"),
        ({}, {"weights": "dummy"}, Unsupported, "cannot make random weights"),
        ({}, {"tp": 4, "ep": 3}, Unsupported, "expert parallelism 3 must divide"),
        ({}, {"tp": 16, "ep": 16}, Unsupported, "8 experts cannot be split over 16"),
        ({}, {"tp": 3}, Unsupported, "experts of width 128 cannot be split over 3"),
        ({"max_position_embeddings": 17}, {}, LoadFailed, "sequences of 18 tokens, m holds 17"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_compiled(tmp_path, cache, fields, setup, error, words):
    with pytest.raises(error, match=words):
        NeuronSession(load_of(path=changed(tmp_path, **fields), **setup))
    assert not cache.exists()


def test_pickled_weights_are_not_read(tmp_path):
    folder = Path(changed(tmp_path))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match="holds no safetensors"):
        NeuronSession(load_of(path=str(folder)))


def test_the_compilers_work_folder_holds_the_hlo_that_the_kernel_ratio_is_counted_from():
    facts = NeuronSession(load_of()).facts()
    found = count(Path(facts["compile_work_folder"]))
    head, router = 256 * 2048, 256 * 8
    assert (found.kernel_macs, found.total_macs) == (0, (2 * 12 + 2 * 1) * (head + router))
    assert len(found.sources) == 2


def test_the_double_logs_and_forgets_a_name_it_does_not_know_as_the_original_does(caplog):
    with caplog.at_level(logging.WARNING):
        config = original.Qwen3MoeInferenceConfig.get_neuron_config_cls()(batch_sise=4)
    assert "batch_sise" in caplog.text and config.batch_size == 1
