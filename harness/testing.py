"""The conformance kit: what every engine must hold, as a test class. An engine's whole test file is

    from harness.testing import EngineConformance

    class TestEcho(EngineConformance):
        engine_name = "echo"

An engine with the capability "logits" takes LogitsConformance, which holds more.
Override the settings, never a test; one that an engine cannot pass yet may be redefined with `pytest.mark.xfail`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness import device
from harness.cells import Cell, Load, Setup
from harness.engine import EngineSpec, Session
from harness.model import models
from harness.plugins import discover
from harness.precision import COMPUTE_MODES, NATIVE, PRECISIONS, UNSUPPORTED
from harness.serde import to_json

HEAVY = ("torch", "transformers", "numpy", "vllm", "tensorrt_llm", "sglang", "ray", "datasets", "torch_neuronx")
# from the standard library's text, by the tokenizer of the embedded model
TEXT = (
    *(
        460,
        772,
        375,
        14,
        199,
        47,
        1554,
        12,
        453,
        460,
        772,
        264,
        572,
        937,
        1121,
        199,
        8,
        73,
        14,
        69,
        14,
        308,
        1644,
        1439,
    ),
    *(2, 352, 308, 336, 70, 13, 24, 2, 1575, 83, 373, 695, 52, 38, 13, 24, 1081, 486, 199, 199, 627, 460, 294, 77),
)
FACTS = (
    "engine_version",
    "precision",
    "compute_mode",
    "moe_backend",
    "attention_backend",
    "kv_dtype",
    "prefix_cache",
    "clock",
)


class EngineConformance:
    """Settings first, then the contract."""

    engine_name: str
    model = models.DEFAULT
    precision = "bf16"
    input_len, output_len = 16, 8  # tokens
    score_tolerance = 0.05  # nats per token, between a sequence scored alone and in a batch
    text_score: float | None = -2.858  # nats per token of TEXT, by transformers in FP32; None: another model's engine
    text_tolerance = 0.3  # nats per token; a model that knows nothing gives -7.6

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> EngineSpec:
        return discover().engines[cls.engine_name]

    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, engine: EngineSpec) -> Load:
        model = models.resolve(cls.model)
        setup = Setup(engine=engine.name, model=model.name, path=model.path, precision=cls.precision)
        support = engine.support(cls.precision, device.detect(), None)
        parameters = {"batch_size": 3, "input_len": cls.input_len, "output_len": cls.output_len}
        text = Cell(setup, "ppl", {"input_len": len(TEXT)}, support)
        return Load(setup, (Cell(setup, "perf", parameters, support), text), support.mode)

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, engine: EngineSpec, load: Load) -> Iterator[Session]:
        session = engine.load(load)
        yield session
        cls.close_twice(session)  # here, as a GPU may not hold a second session

    @staticmethod
    def close_twice(session: Session) -> None:
        session.close()
        session.close()

    def prompts(self) -> list[list[int]]:
        """Three prompts, each unlike the others from the first token on."""
        return [[(index * 37 + step * 11) % 200 + 3 for step in range(self.input_len)] for index in range(3)]

    def test_being_found_imports_no_backend(self, engine: EngineSpec) -> None:
        code = f"import sys; from harness.plugins import discover; discover(); print([m for m in {HEAVY!r} if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

    def test_it_answers_for_every_precision_and_gives_reasons(self, engine: EngineSpec) -> None:
        machines = [
            device.detect(),
            *(device.Device("cuda", "a GPU", 1, None, sm) for sm in (75, 80, 89, 90, 100, 120)),
        ]
        for machine in machines:
            for name in PRECISIONS:
                support = engine.support(name, machine, None)
                assert support.mode in COMPUTE_MODES
                assert support.reason or support.mode == NATIVE, (
                    f"{name} on {machine.label}: {support.mode} without a reason"
                )
        assert any(
            engine.support(name, machine, None).mode != UNSUPPORTED for name in PRECISIONS for machine in machines
        )

    def test_it_says_what_runs(self, session: Session, load: Load) -> None:
        facts = session.facts()
        assert not [name for name in FACTS if name not in facts], "what cannot be read is None, not absent"
        assert facts["engine_version"]
        assert (facts["precision"], facts["compute_mode"]) == (load.setup.precision, load.compute_mode)
        assert json.dumps(to_json(facts), allow_nan=False)

    def test_every_prompt_gets_exactly_the_tokens_asked_for(self, session: Session) -> None:
        for output_len in (1, self.output_len):
            generation = session.generate(self.prompts(), output_len)
            assert [len(response.token_ids) for response in generation.responses] == [output_len] * 3
            assert [len(response.token_ns) for response in generation.responses] == [output_len] * 3

    def test_greedy_tokens_repeat(self, session: Session) -> None:
        first, second = (session.generate(self.prompts(), self.output_len) for _ in range(2))
        assert [r.token_ids for r in first.responses] == [r.token_ids for r in second.responses]

    def test_answers_keep_the_order_of_prompts(self, session: Session) -> None:
        prompts = self.prompts()
        forward = session.generate(prompts, self.output_len).responses
        backward = session.generate(prompts[::-1], self.output_len).responses
        assert [r.token_ids for r in forward] == [r.token_ids for r in backward[::-1]]

    def test_token_times_lie_in_order_on_the_host_clock(self, session: Session) -> None:
        before = time.perf_counter_ns()
        generation = session.generate(self.prompts(), self.output_len)
        after = time.perf_counter_ns()
        for response in generation.responses:
            measured = [ns for ns in response.token_ns if ns is not None]
            times = [before, generation.started_ns, *measured, generation.finished_ns, after]
            assert times == sorted(times)
            assert len(set(measured)) == len(measured), "equal times: they were not taken one by one"

    def test_scores_are_log_probabilities_of_all_tokens_but_the_first(self, session: Session) -> None:
        scores = [list(scores) for scores in session.score(self.prompts())]
        assert [len(values) for values in scores] == [self.input_len - 1] * 3
        assert all(math.isfinite(value) and value <= 1e-6 for values in scores for value in values)

    def test_scores_are_those_of_the_models_own_weights(self, session: Session) -> None:
        if self.text_score is None:
            pytest.skip("the score of TEXT is of another model")
        (scores,) = session.score([TEXT])
        assert abs(sum(scores) / len(scores) - self.text_score) <= self.text_tolerance, "are all weights loaded?"

    def test_a_score_depends_on_its_own_sequence_only(self, session: Session) -> None:
        together = [list(scores) for scores in session.score(self.prompts())]
        alone = [list(next(iter(session.score([prompt])))) for prompt in self.prompts()]
        for batched, single in zip(together, alone):
            assert abs(sum(batched) - sum(single)) / len(single) <= self.score_tolerance

    def test_scores_that_are_not_waited_for_leave_nothing_behind(self, session: Session) -> None:
        alone = self.prompts()[:1]  # who else is in a batch may tip the choice between two tokens
        expected = session.generate(alone, self.output_len)
        scores = iter(session.score(self.prompts() * 4))
        next(scores)
        if hasattr(scores, "close"):
            scores.close()
        found = session.generate(alone, self.output_len)
        assert [r.token_ids for r in found.responses] == [r.token_ids for r in expected.responses]

    def test_no_standard_test_is_overridden(self) -> None:
        kits = [kit for kit in type(self).__mro__ if kit.__module__ == __name__]
        for name, standard in (item for kit in kits for item in vars(kit).items()):
            if name.startswith("test_"):
                ours = getattr(type(self), name)
                marks = {mark.name for mark in getattr(ours, "pytestmark", [])}
                assert ours is standard or "xfail" in marks, f"{name} is overridden without xfail"


class LogitsConformance(EngineConformance):
    """Also of engines that give whole distributions, as torch tensors."""

    top = 20  # tokens asked for

    def test_logits_are_those_scores_come_from(self, session: Session) -> None:
        scores = [list(scores) for scores in session.score(self.prompts())]
        pieces = list(session.score_logits(self.prompts(), self.top))
        assert len(pieces) == len(scores), "prompts this short are one piece each"
        for prompt, given, piece in zip(self.prompts(), scores, pieces):
            if piece.ids is None:
                rows = piece.values.log_softmax(-1).tolist()
                found = [row[token] for row, token in zip(rows, prompt[1:])]
            else:
                assert piece.values.shape == piece.ids.shape and piece.values.shape[1] >= self.top
                assert (piece.values[:, 1:] <= piece.values[:, :-1]).all(), "the likeliest come first"
                assert piece.values.exp().sum(-1).max() <= 1 + 1e-3, "listed values are log-probabilities"
                found = piece.given.tolist()
            assert abs(sum(found) - sum(given)) / len(given) <= self.score_tolerance

    def test_more_logits_tell_the_same_as_few(self, session: Session) -> None:
        few, many = (session.score_logits(self.prompts(), top) for top in (self.top, 2 * self.top))
        for pieces in zip(few, many):
            ranked = [piece.values.sort(descending=True).values[:, :5] for piece in pieces]
            below = [values - values[:, :1] for values in ranked]
            assert (below[0] - below[1]).abs().max() <= self.score_tolerance

    def test_generated_tokens_are_the_likeliest_of_their_logits(self, session: Session) -> None:
        generated = session.generate_logits(self.prompts(), self.output_len, self.top)
        plain = session.generate(self.prompts(), self.output_len).responses
        assert [tokens for tokens, _ in generated] == [response.token_ids for response in plain]
        for tokens, piece in generated:
            for row, token in enumerate(tokens):
                values = piece.values[row].tolist()
                place = token if piece.ids is None else piece.ids[row].tolist().index(token)
                assert values[place] >= max(values) - 1e-6

    def test_experts_are_told_for_every_row_or_not_at_all(self, session: Session) -> None:
        for piece in session.score_logits(self.prompts(), self.top):
            if piece.chosen is not None:
                layers, rows, _ = piece.chosen.shape
                assert (layers, rows) == (len(piece.layers), len(piece.values))
                assert 0 <= int(piece.chosen.min()) and int(piece.chosen.max()) < piece.num_experts
