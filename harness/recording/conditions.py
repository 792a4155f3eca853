"""What must agree before two records may be compared, and the words for it. A condition nobody knows is None.

Accuracy needs the same weights and token ids and the same cache; speed needs the same work on the same machine, too.
Scheduler limits and modes are words of one engine: between two engines they are part of what is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.cells import AND, DEFAULT, NONE, Cell
from harness.device import Device
from harness.model.weights import same_weights
from harness.profiler import around
from harness.provenance import PLAIN

ACCURACY = ("weights", "token_ids_sha256", "quantize", "kv_dtype", "prefix_cache_hits")
SPEED = (
    *ACCURACY,
    "batch_size",
    "input_len",
    "output_len",
    "sampling",
    "ignore_eos",
    "cuda_graphs",
    "compiled",
    "tp",
    "ep",
    "speculative_decoding",
    "device",
    "device_count",
    "power_limit_w",
    "profiler",
)
SAME_ENGINE = ("chunked_prefill", "max_num_batched_tokens", "max_num_seqs", "cudagraph_mode", "compile_mode", "rungs")
CONDITIONS = (*SPEED, *SAME_ENGINE)
_FROM_FACTS = (
    *("kv_dtype", "prefix_cache_hits", "cuda_graphs", "compiled", "speculative_decoding"),
    *(name for name in SAME_ENGINE if name != "rungs"),
)
OF_RUNGS = ("rungs", *_FROM_FACTS)  # what one rung may change: a ladder compares across them, and nothing else does
BEFORE = {"rungs": DEFAULT}  # conditions that older records do not name: what all of them ran
NOTHING_QUANTISED = "nothing"  # agrees with every scope


def of(
    cell: Cell, device: Device, facts: Mapping[str, Any], measured: Mapping[str, Any], weights: str | None
) -> dict[str, Any]:
    """Every condition of a measured cell, and whatever else the workload says it measured under."""
    return {
        **dict.fromkeys(CONDITIONS),
        "weights": weights,
        **{name: facts.get(name) for name in _FROM_FACTS},
        "quantize": facts.get("quantize") or (NOTHING_QUANTISED if facts.get("precision") in PLAIN else None),
        **{name: cell.parameters.get(name) for name in ("batch_size", "input_len", "output_len")},
        "rungs": _rungs(cell),
        "tp": cell.setup.tp,
        "ep": cell.setup.ep,
        "device": device.name,
        "device_count": max(cell.setup.tp, cell.setup.ep) if device.kind == "cuda" else device.count,
        "power_limit_w": device.power_limit_w if device.kind == "cuda" else "n/a",
        "profiler": around()
        or "off",  # a profiled pass is always another pass, but the user may have started us in one
        **measured,
    }


def _rungs(cell: Cell) -> str:
    """Those that another precision would have, too."""
    names = cell.setup.rung_names
    return DEFAULT if names is None else AND.join(name for name in names if name not in cell.own_rungs) or NONE


def disagreements(a: Mapping[str, Any], b: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """The conditions among `names` that differ, or that one side does not know: name -> both values."""
    pairs = {name: tuple(side.get(name, BEFORE.get(name)) for side in (a, b)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _agree(name, *pair)}


def _agree(name: str, a: Any, b: Any) -> bool:
    if a is None or b is None:
        return False
    if name == "weights":
        return same_weights(a, b)
    return a == b or name == "quantize" and NOTHING_QUANTISED in (a, b)
