"""Which version this double stands for."""

from trtllm_double import Era

__version__ = "1.4.0rc1+double"
MOE_BACKENDS = (
    *("AUTO", "CUTLASS", "CUTEDSL", "TRTLLM", "DEEPGEMM", "DENSEGEMM", "VANILLA", "TRITON", "MARLIN"),
    *("MEGAMOE_DEEPGEMM", "MEGAMOE_CUTEDSL"),
)
ERA = Era(__version__, MOE_BACKENDS, is_main=True)
