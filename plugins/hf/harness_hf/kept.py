"""Where compiled code is kept. No torch, which chooses a place of its own as soon as it is imported."""

from __future__ import annotations

import os
from pathlib import Path


def keep_compiled_code() -> None:
    """Inductor's and Triton's caches in a folder that outlives the worker, unless the user has chosen one. Must come
    before torch is imported."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe-harness"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: torch's own place under /tmp
        return
    for variable, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(variable, str(home / folder))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")
