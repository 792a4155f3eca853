"""The conformance kit catches what it is there for: each bad engine fails the test named after its sin."""

import dataclasses
import time

import pytest

from harness import Generation, Response
from harness.testing import EngineConformance


class Honest:
    """A session that holds the whole contract; the sinners below differ in one thing each."""

    def facts(self):
        names = ("moe_backend", "attention_backend", "kv_dtype", "prefix_cache", "clock")
        return {"engine_version": "1", "precision": "bf16", "compute_mode": "native", **dict.fromkeys(names)}

    def generate(self, prompts, output_len):
        started = time.perf_counter_ns()
        responses = []
        for prompt in prompts:
            times = tuple(time.perf_counter_ns() + index for index in range(output_len))
            responses.append(Response(tuple(prompt[:1] * output_len), times))
        time.sleep(1e-5)
        return Generation(started, time.perf_counter_ns(), tuple(responses))

    def score(self, sequences):
        for sequence in sequences:
            yield [-2.4 - token / 1000 for token in sequence[1:]]

    def close(self):
        pass


class NeverLoadedItsHead(Honest):
    """As SGLang of a model whose head is its embeddings: every token is as likely as every other."""

    def score(self, sequences):
        for sequence in sequences:
            yield [-7.6246] * (len(sequence) - 1)


class WrongLabel(Honest):
    def facts(self):
        return {**super().facts(), "precision": "fp8"}


class HidesAFact(Honest):
    def facts(self):
        return {name: value for name, value in super().facts().items() if name != "clock"}


class StopsEarly(Honest):
    def generate(self, prompts, output_len):
        return super().generate(prompts, max(1, output_len - 1))


class Forgetful(Honest):
    calls = 0

    def generate(self, prompts, output_len):
        self.calls += 1
        return super().generate([[self.calls]] * len(prompts), output_len)


class Reversed(Honest):
    def generate(self, prompts, output_len):
        generation = super().generate(sorted(prompts), output_len)
        return dataclasses.replace(generation, responses=tuple(generation.responses))


class WallClock(Honest):
    def generate(self, prompts, output_len):
        generation = super().generate(prompts, output_len)
        return dataclasses.replace(generation, started_ns=time.time_ns())


class Interpolates(Honest):
    def generate(self, prompts, output_len):
        generation = super().generate(prompts, output_len)
        responses = tuple(dataclasses.replace(r, token_ns=(r.token_ns[0],) * output_len) for r in generation.responses)
        return dataclasses.replace(generation, responses=responses)


class ScoresTheFirst(Honest):
    def score(self, sequences):
        for sequence in sequences:
            yield [-1.0] * len(sequence)


class LeaksBetweenSequences(Honest):
    def score(self, sequences):
        for sequence in sequences:
            yield [-float(len(sequences))] * (len(sequence) - 1)


class LeavesScoresBehind(Honest):
    left = 0

    def generate(self, prompts, output_len):
        return super().generate([[prompt[0] + self.left] for prompt in prompts], output_len)

    def score(self, sequences):
        for self.left in range(len(sequences), 0, -1):
            yield [-1.0]


class ClosesOnce(Honest):
    closed = False

    def close(self):
        assert not self.closed
        self.closed = True


SINS = {
    WrongLabel: "test_it_says_what_runs",
    HidesAFact: "test_it_says_what_runs",
    StopsEarly: "test_every_prompt_gets_exactly_the_tokens_asked_for",
    Forgetful: "test_greedy_tokens_repeat",
    Reversed: "test_answers_keep_the_order_of_prompts",
    WallClock: "test_token_times_lie_in_order_on_the_host_clock",
    Interpolates: "test_token_times_lie_in_order_on_the_host_clock",
    ScoresTheFirst: "test_scores_are_log_probabilities_of_all_tokens_but_the_first",
    NeverLoadedItsHead: "test_scores_are_those_of_the_models_own_weights",
    LeaksBetweenSequences: "test_a_score_depends_on_its_own_sequence_only",
    LeavesScoresBehind: "test_scores_that_are_not_waited_for_leave_nothing_behind",
}


class Kit(EngineConformance):
    __test__ = False


class Loaded:
    """Stands where an EngineSpec would: hands out the session under test."""

    def __init__(self, session_type):
        self.load = lambda load: session_type()


class BfLoad:
    class setup:
        precision = "bf16"

    compute_mode = "native"


def run(test: str, session_type: type) -> None:
    method = getattr(Kit(), test)
    wanted = method.__func__.__code__.co_varnames[1 : method.__func__.__code__.co_argcount]
    given = {"session": session_type(), "engine": Loaded(session_type), "load": BfLoad}
    method(**{name: given[name] for name in wanted})


@pytest.mark.parametrize("sinner", SINS, ids=lambda sinner: sinner.__name__)
def test_the_kit_catches(sinner):
    with pytest.raises(AssertionError):
        run(SINS[sinner], sinner)


def test_the_kit_closes_every_session_twice():
    Kit.close_twice(Honest())
    with pytest.raises(AssertionError):
        Kit.close_twice(ClosesOnce())


@pytest.mark.parametrize("test", sorted(set(SINS.values())))
def test_the_kit_passes_an_honest_engine(test):
    run(test, Honest)


def test_the_kit_notices_a_test_that_was_overridden():
    class Cheat(Kit):
        def test_greedy_tokens_repeat(self):
            pass

    with pytest.raises(AssertionError, match="overridden"):
        Cheat().test_no_standard_test_is_overridden()
