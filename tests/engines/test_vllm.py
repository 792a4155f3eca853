"""vLLM holds the contract of every engine. Run by the Python of its own environment: see tests/vllm."""

from harness.testing import EngineConformance


class TestVllm(EngineConformance):
    engine_name = "vllm"
