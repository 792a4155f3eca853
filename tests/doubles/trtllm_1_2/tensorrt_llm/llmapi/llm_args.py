"""Arguments of LLM."""

from trtllm_double.args import CudaGraphConfig, KvCacheConfig, arguments_class

from tensorrt_llm.version import ERA

TorchLlmArgs = arguments_class(ERA.moe_backends, ERA.is_main)

__all__ = ["CudaGraphConfig", "KvCacheConfig", "TorchLlmArgs"]
