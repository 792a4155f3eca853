"""The double of TensorRT-LLM 1.4.0rc1: see trtllm_double."""

from tensorrt_llm.llmapi import LLM, SamplingParams
from tensorrt_llm.version import __version__

__all__ = ["LLM", "SamplingParams", "__version__"]

print(f"[TensorRT-LLM] TensorRT LLM version: {__version__}", flush=True)
