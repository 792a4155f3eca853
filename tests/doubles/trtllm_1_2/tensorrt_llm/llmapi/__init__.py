"""As in the real package: LLM and what it takes."""

from trtllm_double.llm import llm_class
from trtllm_double.sampling import SamplingParams

from tensorrt_llm.llmapi.llm_args import CudaGraphConfig, KvCacheConfig, TorchLlmArgs
from tensorrt_llm.version import ERA

LLM = llm_class(ERA, TorchLlmArgs)

__all__ = ["LLM", "CudaGraphConfig", "KvCacheConfig", "SamplingParams", "TorchLlmArgs"]
