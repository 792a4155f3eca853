"""A double of SGLang 0.5.23 for tests: its interface and its manners, with a small model on a CPU inside.

`SGLANG_DOUBLE`, words separated by commas, read by this package only:
    gpu          work; without it the scheduler dies as SGLang's own does on a machine without a GPU
    oom          the scheduler runs out of memory while it loads
    die          the scheduler dies at its third request
    stop         answers end one token early
    cached       answers to a prompt that came before say that 4 tokens came from a cache
    nan          log-probabilities are not numbers
    shifted      log-probabilities lack the first entry, which is None
    auto         no layer says which MoE runner it has
"""

from __future__ import annotations

from typing import Any

from sglang.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from sglang.srt.entrypoints.engine import Engine

        return Engine
    if name == "ServerArgs":
        from sglang.srt.server_args import ServerArgs

        return ServerArgs
    raise AttributeError(f"module 'sglang' has no attribute {name!r}")
