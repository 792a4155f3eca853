"""TensorRT-LLM holds the contract of every engine: the real one on a GPU, its double on a CPU. Run by a Python that has
one of them: see tests/trtllm."""

from importlib import metadata

import pytest

from harness import device
from harness.cells import Cell, Load, Setup
from harness.engine import Sampling
from harness.model import models
from harness.precision import NATIVE, Support
from harness.testing import TEXT, EngineConformance, LogitsConformance


def load_for(engine, workload: str) -> Load:
    """As the plan makes it: `support` is asked for the version that is installed."""
    model = models.resolve(models.DEFAULT)
    setup = Setup(engine=engine.name, model=model.name, path=model.path, precision="bf16")
    support = engine.support("bf16", device.detect(), metadata.version("tensorrt-llm"))
    parameters = {"batch_size": 3, "input_len": len(TEXT), "output_len": 8}
    return Load(setup, (Cell(setup, workload, parameters, support),), support.mode)


class TestTrtllm(EngineConformance):
    """As it is timed: the model lives in another process."""

    engine_name = "trtllm"

    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, engine) -> Load:
        return load_for(engine, "perf")

    def test_a_seed_draws_the_same_again_and_a_stop_token_ends_the_text_within_it(self, session):
        drawn, again = (session.sample(self.prompts(), Sampling(8, temperature=1.5, seed=7)) for _ in range(2))
        assert drawn == again != session.sample(self.prompts(), Sampling(8, temperature=1.5, seed=8))
        stop = drawn[0][4]
        stopped = session.sample(self.prompts(), Sampling(8, temperature=1.5, seed=7, stop=(stop,)))
        assert stopped == [text[: text.index(stop) + 1] if stop in text else text for text in drawn]

    def test_at_temperature_zero_the_likeliest_is_taken(self, session):
        greedy = [response.token_ids for response in session.generate(self.prompts(), self.output_len).responses]
        assert session.sample(self.prompts(), Sampling(self.output_len, temperature=0)) == greedy


class TestTrtllmLogits(LogitsConformance):
    """As logits are gathered: the model lives in this process."""

    engine_name = "trtllm"

    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, engine) -> Load:
        return load_for(engine, "validate")


@pytest.mark.parametrize("workload", ["perf", "ppl", "validate"])
def test_the_installed_version_takes_every_name_that_is_passed(workload):
    from harness_trtllm import arguments
    from tensorrt_llm import SamplingParams
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

    setup = Setup("trtllm", "tinymoe", models.resolve("tinymoe").path, "bf16")
    load = Load(setup, (Cell(setup, workload, {"input_len": 16}, Support(NATIVE)),), NATIVE)
    chosen, lacking = arguments.arguments(load, setup.path, TorchLlmArgs.model_fields, None)
    assert TorchLlmArgs(**chosen).kv_cache_config.enable_block_reuse is False
    assert set(lacking) <= arguments.OPTIONAL
    asked = ("ignore_eos", "detokenize", "return_perf_metrics", "return_context_logits", "return_generation_logits")
    drawn = {"temperature": 0.6, "top_k": 0, "top_p": 0.9, "seed": 1, "stop_token_ids": [2]}
    drawn["include_stop_str_in_output"] = True
    assert SamplingParams(end_id=0, max_tokens=1, **drawn, **dict.fromkeys(asked, True)).end_id == 0
