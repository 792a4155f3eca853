"""A look at the model from beside: a short process of its own that loads random weights of the same checkpoint's layout
in itself, walks the layers and ends. For the engine's usual way, where the model lives in a process we cannot see.

    python -m harness_trtllm.probe REQUEST.json ANSWER.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0
FEW_LAYERS = 4  # of a model that needs several GPUs; the probe has one
SMALL = {"load_format": "dummy", "cuda_graph_config": None, "max_batch_size": 1}
SMALL |= dict.fromkeys(("tensor_parallel_size", "moe_expert_parallel_size", "moe_tensor_parallel_size"), 1)
ALSO = {"enable_autotuner": False}  # where the version has it


def probe(
    chosen: Mapping[str, Any], fields: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> dict[str, Any] | str:
    """What `harness_trtllm.look` says of the layers, or why it could not be had. `chosen`: arguments of the LLM."""
    asked = {**chosen, **SMALL, **{name: value for name, value in ALSO.items() if name in fields}}
    if chosen["tensor_parallel_size"] > 1:
        if "model_kwargs" not in fields:
            return "the model needs several GPUs, and this version cannot load a few of its layers (no model_kwargs)"
        dense = config.get("first_k_dense_replace") or 0
        asked["model_kwargs"] = {"num_hidden_layers": min(config["num_hidden_layers"], dense + FEW_LAYERS)}
    request, answer = folder / "probe-request.json", folder / "probe-answer.json"
    request.write_text(json.dumps(asked), encoding="utf-8")
    # no profiler's window in there, and the model where the probe can walk it
    env = {name: value for name, value in os.environ.items() if not name.startswith("TLLM_PROFILE")}
    command = [sys.executable, "-m", "harness_trtllm.probe", str(request), str(answer)]
    try:
        done = subprocess.run(command, env={**env, "TLLM_WORKER_USE_SINGLE_PROCESS": "1"}, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the probe of the layers was not done after {TIMEOUT_S:g} s"
    try:
        return json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"the probe of the layers ended with exit status {done.returncode}; the log has its words"


def main(request: str, answer: str) -> None:
    from tensorrt_llm import LLM

    from harness_trtllm.look import live_model, look

    llm = LLM(**json.loads(Path(request).read_text(encoding="utf-8")))
    model = live_model(llm)
    found = look(model) if model is not None else f"no model in this process, under {type(llm._executor).__name__}"
    Path(answer).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # the engine's own end may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
