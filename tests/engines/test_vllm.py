"""vLLM holds the contract of every engine. Run by the Python of its own environment: see tests/with_vllm."""

import pytest

from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.plugins import discover
from harness.precision import NATIVE, Support
from harness.testing import LogitsConformance

PROMPT = tuple(range(100, 164))


class TestVllm(LogitsConformance):
    engine_name = "vllm"


@pytest.fixture
def logprobs_of_vllm():
    """Full-vocabulary log-probabilities of every token of a prompt but the first, from vLLM in FP32."""
    model = models.resolve("tinymoe")
    setup = Setup("vllm", model.name, model.path, "fp32")
    cell = Cell(setup, "validate", {"input_len": len(PROMPT)}, Support(NATIVE))
    session = discover().engines["vllm"].load(Load(setup, (cell,), NATIVE))
    (piece,) = session.score_logits([PROMPT], 2048)
    yield piece.values
    session.close()


def test_the_logits_are_those_of_transformers(logprobs_of_vllm):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models.resolve("tinymoe").path, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[0, :-1]
    assert logprobs_of_vllm.shape == logits.shape
    # vLLM's Triton kernels multiply FP32 as TF32 on a GPU: 0.0025 was seen
    tolerance = 1e-2 if torch.cuda.is_available() else 1e-4
    torch.testing.assert_close(logprobs_of_vllm, logits.log_softmax(-1), rtol=tolerance, atol=tolerance)
