"""A model that transformers cuts over two processes is the same model, and no rank outlives another."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from math import exp

import pytest
from harness_hf.ranks import Ranks
from harness_hf.session import HfSession

from harness import Unsupported
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.precision import Support
from harness.working import inputs

FOLDER = str(models.DATA / "tinymoe")
SMALL = ["--precision", "fp32", "--num-chunks", 2, "--input-len", 32, "--output-len", 8, "--warmup-iterations", 1]
RANDOM = f"""
import os, signal, sys, time
import torch
from harness import Sampling
from harness.cells import Cell, Load, Setup
from harness.precision import Support
from harness_hf import load, ranks
from harness_hf.rungs import WITH_TP

def opened(tp, rungs="default"):
    setup = Setup("hf", "tinymoe", {FOLDER!r}, "fp32", weights="dummy", seed=4, tp=tp, rungs=rungs)
    return load(Load(setup, (Cell(setup, "perf", {{"input_len": 16, "output_len": 8}}, Support("native")),), "native"))

def logits(session):
    return torch.cat([piece.values for piece in session.score_logits(PROMPTS, 0)])

PROMPTS = [[(row * 31 + step * 7) % 2000 + 1 for step in range(16)] for row in range(4)]
one, two = opened(1), opened(2, "+".join(WITH_TP))
torch.testing.assert_close(logits(two), logits(one), rtol=0, atol=1e-5)
pieces = two.score_logits(PROMPTS, 0)
next(pieces)
pieces.close()  # the rest of it is not asked for
torch.testing.assert_close(torch.tensor(list(two.score(PROMPTS))), torch.tensor(list(one.score(PROMPTS))), rtol=0, atol=1e-5)
for ours, whole in zip(two.generate(PROMPTS, 8).responses, one.generate(PROMPTS, 8).responses):
    assert ours.token_ids == whole.token_ids and list(ours.token_ns) == sorted(ours.token_ns)
assert set(WITH_TP) - {{"cuda_graphs"}} == two.facts()["rungs_in_force"].keys()  # on a CPU
sampling = Sampling(8, temperature=0.0)
assert two.sample(PROMPTS[:1], sampling) == one.sample(PROMPTS[:1], sampling)
print("agree", flush=True)
ranks.LOST_S = 0.1
os.kill(two._others[0].pid, signal.SIGKILL)
time.sleep(60)  # as long as a collective waits that nothing interrupts
"""


@pytest.fixture(scope="session")
def with_accelerate(tmp_path_factory) -> str:
    """In a folder of its own: transformers imports accelerate wherever it finds it, which would slow every worker."""
    folder = str(tmp_path_factory.mktemp("accelerate"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "accelerate", "psutil"]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


@pytest.fixture
def cut(harness, with_accelerate):
    """The `harness` command with the hf engine on tinymoe, and accelerate there."""
    harness.env["PYTHONPATH"] += os.pathsep + with_accelerate
    return lambda *more: harness.start("run", "--engine", "hf", "--output-dir", "out", *SMALL, *more)


def load_of(**setup) -> Load:
    setup = Setup(**{"engine": "hf", "model": "tinymoe", "path": FOLDER, "precision": "fp32", "tp": 2, **setup})
    return Load(setup, (Cell(setup, "perf", {"input_len": 8, "output_len": 8}, Support("native")),), "native")


def further_ranks(harness) -> list[int]:
    return [process for process, command in harness.processes().items() if "harness_hf.ranks" in command]


def test_two_ranks_have_half_of_the_model_each_its_perplexity_and_one_end(harness, cut, wait_until):
    run = cut("--tp", 2, "--workload", "ppl,perf", "--num-iterations", 20)
    assert wait_until(lambda: further_ranks(harness) and harness.stderr().rstrip().endswith("perf: started"), 60), (
        harness.stderr()
    )
    os.kill(further_ranks(harness)[0], signal.SIGKILL)
    assert run.wait(30) == 1 and not harness.processes()
    records = {record["workload"]: record for record in harness.records()}
    halves, lost, whole = records["ppl"], records["perf"], HfSession(load_of(tp=1))
    (windows,) = (ids for ids in map(inputs.read, (harness.folder / "out" / "inputs").iterdir()) if len(ids.ids) == 2)
    nll = [-logprob for logprobs in whole.score(windows.ids) for logprob in logprobs]
    assert halves["perplexity"] == pytest.approx(exp(sum(nll) / len(nll)), rel=1e-5) and halves["status"] == "ok"
    parameters, parts = whole.facts()["parameters"], halves["effective"]["parameters_of_each_rank"]
    assert all(0.5 < part / parameters < 0.51 for part in parts) and len(parts) == 2
    assert halves["effective"]["parameters"] == parameters
    assert halves["effective"]["rungs_in_force"].keys() == {"sdpa", "grouped_experts"}
    assert lost["failure"]["class"] == "crashed" and "rank 1 was killed by SIGKILL" in lost["failure"]["message"]


def test_a_rank_that_dies_while_it_loads_ends_the_load(harness, cut, wait_until):
    run = cut("--tp", 2, "--workload", "perf")
    assert wait_until(lambda: further_ranks(harness), 60)
    os.kill(further_ranks(harness)[0], signal.SIGKILL)
    assert run.wait(30) == 1 and not harness.processes()
    (record,) = harness.records()
    assert (
        record["failure"]["class"] == "load_failed" and "rank 1 was killed by SIGKILL" in record["failure"]["message"]
    )


def test_a_run_on_two_ranks_ends_by_itself_and_leaves_nobody(harness, cut):
    assert cut("--tp", 2, "--workload", "perf", "--num-iterations", 2).wait(60) == 0
    assert [record["status"] for record in harness.records()] == ["ok"] and not harness.processes()


def test_random_weights_are_those_of_one_process_and_nobody_waits_for_a_dead_rank(with_accelerate):
    environment = {**os.environ, "PYTHONPATH": with_accelerate}
    command = [sys.executable, "-c", RANDOM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["agree"] and done.returncode == 3, done.stderr
    assert "a rank ended" in done.stderr


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (
            {"rungs": "sdpa+fused_projections"},
            "only sdpa, grouped_experts, static_cache, cuda_graphs hold, not fused_projections",
        ),
        ({"tp": 4}, "does not divide num_key_value_heads = 2"),
    ],
)
def test_what_does_not_hold_on_a_model_that_is_cut_is_refused(setup, words):
    with pytest.raises(Unsupported, match=words):
        HfSession(load_of(**setup))


def test_emulated_formats_are_refused_before_anything_starts():
    with pytest.raises(Unsupported, match="cuts bf16 and fp32, not nvfp4"):
        Ranks(load_of(precision="nvfp4"))


@pytest.mark.skipif(find_spec("accelerate") is not None, reason="accelerate is installed")
def test_without_accelerate_the_words_say_what_to_install():
    with pytest.raises(Unsupported, match="pip install accelerate"):
        Ranks(load_of())
