"""Every rung that can be on here gives eager's tokens, is seen in the live model, and says why where it is off."""

from dataclasses import replace

import pytest
import torch
from harness_hf import proofs
from harness_hf.caches import Fp8Layer, fixed, growing
from harness_hf.decode import decoder_of
from harness_hf.machine import cores_beside
from harness_hf.prefill import PIECE
from harness_hf.rungs import LADDER, NAMES, asked
from harness_hf.session import HfSession
from harness_hf.speculative import DRAFT, Margin, Text, difference

from harness import LoadFailed
from harness.cells import Cell, Load, Setup
from harness.device import Device
from harness.model import models
from harness.precision import Support

FOLDER = str(models.DATA / "tinymoe")
CPU, H200 = Device("cpu", "a CPU", 2, None), Device("cuda", "NVIDIA H200", 1, None, 90)
ON_CPU = ("sdpa", "grouped_experts", "static_cache", "fused_projections", "ngram", "chunked_prefill", "prefix_cache")
LENGTH, OUT = 320, 8


def open_session(rungs: str, precision: str = "bf16", **setup) -> HfSession:
    setup = Setup("hf", "tinymoe", FOLDER, precision, rungs=rungs, **setup)
    parameters = {"input_len": LENGTH, "output_len": OUT}
    return HfSession(Load(setup, (Cell(setup, "perf", parameters, Support("native")),), "native"))


def prompts(count: int, shared: int = 0) -> list[list[int]]:
    return [[((row * (step >= shared)) * 31 + step * 7) % 2000 + 1 for step in range(LENGTH)] for row in range(count)]


def tokens(session: HfSession, given: list[list[int]]) -> list[tuple[int, ...]]:
    return [response.token_ids for response in session.generate(given, OUT).responses]


@pytest.fixture(scope="module")
def eager() -> HfSession:
    """In FP32, in which no two near-equal logits round to one."""
    return open_session("none", "fp32")


def test_none_is_plain_eager(eager):
    tokens(eager, prompts(1))
    facts = eager.facts()
    assert facts["rungs_in_force"] == {} and set(facts["rungs_off"]) == set(NAMES)
    assert (facts["attention_backend"], facts["moe_backend"]) == ("eager", "eager")
    assert not facts["compiled"] and not facts["cuda_graphs"] and eager._decoder.cache_type == "DynamicLayer"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")
def test_default_is_what_the_engine_always_did_and_profiles_nothing():
    session = open_session("default")
    assert set(session.facts()["rungs_in_force"]) == {"sdpa", "grouped_experts"} and session._seen is None


@pytest.mark.parametrize("name", ON_CPU)
def test_each_rung_alone_is_in_force_and_gives_eagers_tokens(eager, name):
    needs = next(rung.needs for rung in LADDER if rung.name == name)
    session = open_session("+".join((*needs, name)), "fp32")
    given = prompts(2, shared=32)
    assert tokens(session, given) == tokens(eager, given)
    facts = session.facts()
    assert set(facts["rungs_in_force"]) == {*needs, name}, facts["rungs_off"]


def test_all_of_them_together_give_eagers_tokens_and_scores(eager):
    session = open_session("+".join(ON_CPU), "fp32")
    for given in (prompts(3, shared=40), prompts(3, shared=40)[:2], prompts(1)):
        assert tokens(session, given) == tokens(eager, given)
    assert set(session.facts()["rungs_in_force"]) == set(ON_CPU)
    ours, theirs = (torch.tensor(list(each.score(prompts(2)))) for each in (session, eager))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_the_prefix_that_different_prompts_share_is_computed_once_and_said(eager):
    session = open_session("static_cache+prefix_cache", "fp32")
    given = prompts(3, shared=40)
    assert tokens(session, given) == tokens(eager, given) and session.facts()["prefix_cache_hits"] == 2 * 40
    assert tokens(session, given) == tokens(eager, given) and session.facts()["prefix_cache_hits"] == 3 * 40
    alone = [[*given[0][:60], *range(5, LENGTH - 55)]]
    assert tokens(session, alone) == tokens(eager, alone) and session.facts()["prefix_cache_hits"] == 40


def test_a_prompt_given_again_takes_nothing_from_the_prefix_cache():
    session = open_session("static_cache+prefix_cache")
    for _ in range(2):
        tokens(session, prompts(1))
        assert session.facts()["prefix_cache_hits"] == 0
    tokens(session, [prompts(1)[0]] * 2)
    assert session.facts()["prefix_cache_hits"] == 0


def test_keys_in_e4m3_are_half_as_large_and_nearly_the_same():
    session = open_session("static_cache+fp8_kv")
    plain = open_session("static_cache")
    rows = [each.generate_logits(prompts(1), 1, 5)[0][1].values for each in (session, plain)]
    assert 0 < (rows[0].log_softmax(-1) - rows[1].log_softmax(-1)).abs().max() < 1
    facts = session.facts()
    assert facts["kv_dtype"] == "float8_e4m3fn" and "fp8_kv" in facts["rungs_in_force"]
    with torch.inference_mode():
        layer = session._decoder.caches(1).layers[0]
    assert layer.keys.element_size() == 1 and layer.keys_scale.shape == (*layer.keys.shape[:-1], 1)


def test_a_shared_prefix_in_e4m3_is_that_of_the_whole_prompt():
    whole = open_session("static_cache+fp8_kv", "fp32")
    shared = open_session("static_cache+fp8_kv+prefix_cache", "fp32")
    given = prompts(2, shared=40)
    assert tokens(shared, given) == tokens(whole, given) and shared.facts()["prefix_cache_hits"] == 40


def test_a_sliding_window_over_a_fixed_cache_is_that_over_a_growing_one(eager):
    model = eager._model
    config = model.config
    before = (config.sliding_window, getattr(config, "layer_types", None))
    config.sliding_window, config.layer_types = 64, ["sliding_attention"] * config.num_hidden_layers
    try:
        ids = torch.tensor(prompts(1), device=model.device)
        found = []
        for caches in (growing(model), fixed(model, LENGTH + OUT)):
            decoder = decoder_of(model, LENGTH + OUT, frozenset())
            decoder.caches = caches
            found.append(decoder.generate(ids, OUT)[0])
        assert torch.equal(*found)
    finally:
        config.sliding_window, config.layer_types = before


def test_speculation_that_leaves_greedy_decoding_is_not_in_force():
    session = open_session("static_cache+ngram", "fp32")
    tokens(session, prompts(1))
    live = session._live()
    assert proofs.proven(live, session._rungs)[0].keys() >= {"ngram"}
    unequal = difference(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 3]]), torch.tensor([[0.0, 9.0, 0.0]]))
    in_force, off = proofs.proven(replace(live, unequal=unequal), session._rungs)
    assert "ngram" not in in_force and off["ngram"].startswith("token 1 of 3 is not that of plain")


def test_of_two_tokens_that_tie_either_may_come_out_and_what_follows_is_another_text():
    ours, plain = torch.tensor([[1, 2, 3], [7, 8, 9]]), torch.tensor([[1, 5, 4], [7, 8, 9]])
    margin = Margin(ours)
    for step, (own, other) in enumerate(((9.0, 9.0), (9.0, 8.875), (9.0, 1.0))):  # a rounding is 2^-4 there
        logits = torch.zeros(2, 10, dtype=torch.bfloat16)
        logits[0, ours[0, step]], logits[0, plain[0, step]], logits[1, plain[1, step]] = other, own, 9.0
        margin(logits)
    margin_AT = torch.stack(margin.found, dim=1)
    assert margin_AT.tolist() == [[0, 2, 128], [0, 0, 0]] and difference(ours, plain, margin_AT) is None
    assert difference(ours, plain, 2 * margin_AT).startswith("token 1 of 3 is not that of plain greedy decoding in 1 ")


def test_drafts_are_what_followed_the_same_tokens_before():
    text = Text([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert text.draft() == [4, 5, 9, 1, 2, 3, 3]
    text.add([7])
    assert text.draft() == [7] * DRAFT


def test_drafts_that_come_true_save_steps():
    session = open_session("static_cache+ngram", "fp32")
    (response,) = session.generate([[5, 6, 7, 8] * 40], 100).responses
    ran = session._decoder.continued
    assert sum(time is not None for time in response.token_ns) == 1 + ran.steps  # of a step's tokens the last has one
    assert ran.tokens == 99 and ran.steps < 99 and session._unequal is None


def test_a_prompt_that_fits_one_piece_was_not_cut_and_the_record_says_so():
    session = open_session("static_cache+chunked_prefill")
    session.generate([[3] * PIECE], 2)
    facts = session.facts()
    assert "chunked_prefill" not in facts["rungs_in_force"] and "longer than" in facts["rungs_off"]["chunked_prefill"]


def test_what_cannot_be_on_says_why_and_takes_with_it_what_needs_it():
    off = asked("grouped_experts+static_cache+cuda_graphs+tf32+fp8", "bf16", CPU).off
    assert off["cuda_graphs"] == "needs an NVIDIA GPU" and "SM 80" in off["tf32"]
    assert off["fp8"] == "it is the arithmetic of fp8 and fp8_block, not of bf16"
    assert asked("cuda_graphs", "bf16", H200).off["cuda_graphs"] == "needs sdpa, static_cache, grouped_experts"
    assert "reference" in asked("tf32", "fp32", H200).off["tf32"]
    assert "SM 89" in asked("grouped_experts+fp8", "fp8_block", replace(H200, sm=80)).off["fp8"]
    with pytest.raises(LoadFailed, match="no rung turbo; it has tf32, numa"):
        asked("turbo", "bf16", CPU)


def test_the_default_of_a_gpu_is_compiled_graphs_over_a_static_cache_and_fp8_stays_emulated():
    graphs = {"sdpa", "grouped_experts", "static_cache", "compile", "cuda_graphs"}
    assert asked("default", "bf16", H200).on == graphs == asked("default", "fp8", H200).on
    assert asked("default", "fp32", H200).on == {"sdpa", "grouped_experts", "static_cache"}


def test_a_fused_step_and_what_it_replaces_are_never_both_on_whatever_a_load_asks_for():
    found = asked("sdpa+grouped_experts+static_cache+compile+cuda_graphs+by_layer+fused_step+ngram", "bf16", H200)
    assert found.on == {"sdpa", "grouped_experts", "static_cache", "cuda_graphs", "fused_step"}
    assert found.off["ngram"] == "fused_step does its work"


def test_every_rung_has_a_reading_and_what_it_needs_comes_before_it():
    assert set(proofs.READ) == set(NAMES)
    assert all(NAMES.index(need) < NAMES.index(rung.name) for rung in LADDER for need in rung.needs)
    assert all(not set(rung.replaces) & {rung.name, *rung.needs} for rung in LADDER)
    assert {name for rung in LADDER for name in rung.replaces} <= set(NAMES)


def test_the_cores_beside_a_gpu_are_those_of_its_node(tmp_path):
    (pci := tmp_path / "pci" / "0000:1b:00.0").mkdir(parents=True)
    (node := tmp_path / "nodes" / "node1").mkdir(parents=True)
    (node / "cpulist").write_text("4-6,12\n")
    (pci / "numa_node").write_text("1\n")
    assert cores_beside("00000000:1B:00.0", tmp_path / "pci", tmp_path / "nodes") == {4, 5, 6, 12}
    (pci / "numa_node").write_text("-1\n")
    assert cores_beside("00000000:1B:00.0", tmp_path / "pci", tmp_path / "nodes") is None
    assert cores_beside("00000000:AA:00.0", tmp_path / "pci", tmp_path / "nodes") is None


def test_the_fp8_layer_is_one_of_the_static_cache(eager):
    cache = fixed(eager._model, 8, Fp8Layer)(1)
    assert {type(layer) for layer in cache.layers} == {Fp8Layer}
