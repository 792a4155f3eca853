"""A stand-in for TensorRT-LLM in our tests: its interface and its ways, with transformers on the CPU inside.

`tests/doubles/trtllm_1_2` and `trtllm_1_4` are two versions of it: each holds a package `tensorrt_llm` and its
distribution, whose version ends in `+double`. Put one of them and this package's folder on PYTHONPATH:

    PYTHONPATH=tests/doubles:tests/doubles/trtllm_1_2 harness run --engine trtllm

What goes wrong in the real one goes wrong here when TRTLLM_DOUBLE_FAULT names it (words, separated by commas):

    oom                 no memory while loading
    hang_on_shutdown    shutdown() does not return
    reuse               KV blocks are reused though the configuration says not to: rows of logits are missing
    untold              the same, and cached_tokens does not say so
    dies                the process of the model ends at the first request
    nan                 logits are not numbers

By itself it does what the real one does unasked: prints on stdout when imported, puts the model into a process of its
own, takes CUTLASS where another MoE backend cannot serve, reads checkpoints of unknown quantisation as unquantised. It
serves in turns, all requests under way in each, and says on stdout which turns TLLM_PROFILE_START_STOP held.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Era:
    """What differs between versions."""

    version: str
    moe_backends: tuple[str, ...]
    is_main: bool  # of the line after 1.2


def fault(name: str) -> bool:
    return name in os.environ.get("TRTLLM_DOUBLE_FAULT", "").split(",")
