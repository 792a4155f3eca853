"""SGLang holds the contract of every engine. Run where sglang is: real on a GPU, or its double by tests/sglang."""

from harness.testing import LogitsConformance


class TestSglang(LogitsConformance):
    engine_name = "sglang"
