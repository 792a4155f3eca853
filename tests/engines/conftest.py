"""Engines with an environment of their own are collected there only; SGLang, TensorRT-LLM and Neuron, or their doubles,
where tests/sglang, tests/trtllm and tests/neuron put them on the path. Not by find_spec for those: tests/sglang is a
namespace package."""

from importlib import metadata
from importlib.util import find_spec

collect_ignore = [] if find_spec("vllm") else ["test_vllm.py"]
for _name, _file in (
    ("sglang", "test_sglang.py"),
    ("tensorrt-llm", "test_trtllm.py"),
    ("neuronx-distributed-inference", "test_neuron.py"),
):
    collect_ignore += [] if list(metadata.distributions(name=_name)) else [_file]
