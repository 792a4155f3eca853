"""Which class serves the experts of a model, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trtllm_double.model import CLASSES, moe_backend

from tensorrt_llm.version import ERA


def resolve_moe_impl(model_config: Any) -> SimpleNamespace:
    """A report: `winner` is a class, `selected_by` is "pinned" or "heuristic"."""
    asked = model_config.moe_backend
    winner = moe_backend(asked, model_config.quant_config.quant_algo, ERA)
    is_degraded = asked not in ("AUTO", winner)
    return SimpleNamespace(
        winner=type(CLASSES[winner], (), {}),
        selected_by="heuristic" if asked == "AUTO" or is_degraded else "pinned",
        requested=asked,
        degraded=is_degraded,
        degraded_from=CLASSES[asked] if is_degraded else None,
        rejected=[],
        eligible=[],
    )
