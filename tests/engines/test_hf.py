"""The HF engine holds the contract of every engine, in BF16 and emulated."""

from harness.testing import EngineConformance


class TestHf(EngineConformance):
    engine_name = "hf"


class TestHfNvfp4(EngineConformance):
    engine_name = "hf"
    precision = "nvfp4"
