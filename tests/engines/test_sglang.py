"""SGLang holds the contract of every engine. Run where sglang is: real on a GPU, or its double by tests/sglang."""

import inspect

import pytest

from harness.cells import Cell, Load, Setup
from harness.kernels.analysis import analyse
from harness.model import models
from harness.precision import NATIVE, Support
from harness.testing import LogitsConformance


class TestSglang(LogitsConformance):
    engine_name = "sglang"

    def test_a_profile_is_broken_down_by_phase(self, session, tmp_path):
        with session.recording("torch", tmp_path):
            session.generate(self.prompts(), self.output_len)
        (path,) = tmp_path.iterdir()
        found = analyse(path)
        assert not found.problems
        phases = {one.phase: one for one in found.phases}
        assert len(phases["prefill"].steps) >= 1 and len(phases["decode"].steps) >= self.output_len - 1
        products = phases["decode"].categories["expert_gemm"].count
        assert products >= (self.output_len - 1) * 4  # layers, where one kernel does both products


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_the_installed_version_has_every_name_the_plugin_uses(precision):
    from harness_sglang import arguments, session
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import ProfileReq
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.server_args import ServerArgs

    setup = Setup("sglang", "tinymoe", models.resolve("tinymoe").path, precision, moe_backend="triton")
    load = Load(setup, (Cell(setup, "perf", {"input_len": 16}, Support(NATIVE)),), NATIVE)
    assert arguments.arguments(load, inspect.signature(ServerArgs).parameters)[1] == []
    assert SamplingParams(**session.greedy(1)).ignore_eos
    assert ProfileReq(**session.PROFILE).record_shapes
    asked = {"input_ids", "sampling_params", "stream", "return_logprob", "logprob_start_len", "top_logprobs_num"}
    assert asked <= inspect.signature(Engine.generate).parameters.keys()
    assert callable(Engine.run_scheduler_process_func)
