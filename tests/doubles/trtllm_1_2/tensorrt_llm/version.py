"""Which version this double stands for."""

from trtllm_double import Era

__version__ = "1.2.1+double"
MOE_BACKENDS = ("AUTO", "CUTLASS", "CUTEDSL", "WIDEEP", "TRTLLM", "DEEPGEMM", "VANILLA", "TRITON")
ERA = Era(__version__, MOE_BACKENDS, is_main=False)
