"""KL of an engine's logits beside a reference run's, as the steps of a ladder have it, on bigram models."""

import pytest
import torch

from harness.engine import Logits
from harness.working.inputs import Inputs
from harness.workloads.kl import measure

VOCABULARY = 16
IDS = tuple(tuple((start + 3 * step) % VOCABULARY for step in range(12)) for start in (1, 2, 5))


class Bigram:
    """The next token's logits follow from the last token."""

    def __init__(self, logits_VV: torch.Tensor) -> None:
        self.logits_VV = logits_VV

    def facts(self) -> dict:
        return {"engine_version": "1", "precision": "fp32", "compute_mode": "native"}

    def score_logits(self, sequences, top):
        for sequence in sequences:
            yield Logits(self.logits_VV[list(sequence[:-1])])

    def generate_logits(self, prompts, output_len, top):
        found = []
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(output_len):
                tokens.append(int(self.logits_VV[tokens[-1]].argmax()))
            found.append((tuple(tokens[len(prompt) :]), Logits(self.logits_VV[tokens[len(prompt) - 1 : -1]])))
        return found


@pytest.fixture
def beside(tmp_path):
    """What the workload says of a model beside a reference."""
    about = {"engine": "bigram", "precision": "fp32", "model": "m", "vocab_size": VOCABULARY}
    given = {"output_len": 4, "top_k": None, "reference": str(tmp_path / "logits/reference"), "about": about}

    def beside(reference: torch.Tensor, other: torch.Tensor) -> tuple[dict, dict]:
        found = []
        for logits, is_reference in ((reference, True), (other, False)):
            inputs, parameters = Inputs(IDS, "made up", "ab" * 32), {**given, "is_reference": is_reference}
            found.append(measure(Bigram(logits), inputs, parameters, lambda *_: None).results)
        return tuple(found)

    return beside


def drawn(scale: float, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_every_position_and_of_steps_up_to_the_first_other_token(beside):
    reference = drawn(1.0)
    other = reference + drawn(0.05, seed=1)
    last = IDS[0][5]  # the first prompt goes on from here
    first = int(reference[last].argmax())
    other[first] = reference[first].roll(1)  # its second step takes another token
    itself, found = (one["kl"] for one in beside(reference, other))
    assert itself["prefill"]["kl_forward"]["max"] == itself["decode"]["kl_forward"]["max"] == 0

    p, q = (one.double().log_softmax(-1) for one in (reference, other))
    kl_V = (p.exp() * (p - q)).sum(-1)
    scored = torch.tensor([token for ids in IDS for token in ids[:-1]])
    assert found["prefill"]["tokens"] == len(scored) and found["prefill"]["kl_is"] == "exact, whole vocabulary"
    assert found["prefill"]["kl_forward"]["mean"] == pytest.approx(float(kl_V[scored].mean()), rel=1e-4)
    steps = []
    for ids in IDS:
        token = ids[5]
        for _ in range(4):
            steps.append(float(kl_V[token]))
            if reference[token].argmax() != other[token].argmax():
                break
            token = int(reference[token].argmax())
    assert found["decode"]["tokens"] == len(steps) < 12
    assert found["decode"]["kl_forward"]["mean"] == pytest.approx(sum(steps) / len(steps), rel=1e-4)


def test_where_all_tokens_are_as_likely_there_is_no_kl_but_the_reason(beside):
    for found in beside(drawn(1e-6), drawn(1e-6, seed=1)):  # vLLM's random weights
        assert found["kl"] is None and "all but equally likely" in found["kl_problem"]
