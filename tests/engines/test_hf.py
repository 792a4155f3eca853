"""The HF engine holds the contract of every engine, in BF16 and emulated."""

from harness.testing import LogitsConformance


class TestHf(LogitsConformance):
    engine_name = "hf"


class TestHfNvfp4(LogitsConformance):
    engine_name = "hf"
    precision = "nvfp4"
