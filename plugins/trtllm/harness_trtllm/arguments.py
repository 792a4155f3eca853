"""From a load to the arguments of `tensorrt_llm.LLM`: the same work for every precision, and no name it does not have.

An unknown argument is an error there, so what the installed version takes is read from its own argument classes.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from typing import Any

from harness import Load, LoadFailed, Setup, Unsupported
from harness.profiler import around

LEAST_BATCH, LEAST_TOKENS = 128, 8192  # limits, the same for every precision
FOR_ACCURACY = {"ppl", "baseline", "validate", "evaluate"}  # workloads that read no clock
FOR_LOGITS = {"baseline", "validate", "evaluate"}
OPTIONAL = {  # left out, and said so, where the version lacks them
    "return_perf_metrics",
    "kv_cache_config.dtype",
    "moe_config.disable_finalize_fusion",
    "enable_layerwise_nvtx_marker",
}
PASSES_BEFORE = 2  # of a profiled worker, before the pass that is recorded
DECODE_STEPS = 8  # of each pass
SHUTDOWN_S = 20.0  # for the engine to end by itself


def arguments(load: Load, model: str, fields: Mapping[str, Any], sm: int | None) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments of `tensorrt_llm.LLM`, and what this version does not offer. `fields`: of its TorchLlmArgs.

    Raises Unsupported for what this version cannot be asked to do."""
    setup = load.setup
    batch = max(cell.parameters.get("batch_size", 1) for cell in load.cells)
    wanted: dict[str, Any] = {
        "model": model,
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "trust_remote_code": setup.trust_remote_code,
        "tensor_parallel_size": setup.tp,
        "moe_expert_parallel_size": setup.ep,
        "moe_tensor_parallel_size": setup.tp // setup.ep,
        "max_seq_len": load.max_sequence + 1,  # scoring, too, must generate a token
        "max_batch_size": max(LEAST_BATCH, batch),
        "max_num_tokens": max(LEAST_TOKENS, load.max_sequence + 1),  # a prompt is never cut in pieces
        "enable_chunked_prefill": False,
        "kv_cache_config": {"enable_block_reuse": False, "dtype": "auto"},  # auto: see checkpoint.prepared
        "cuda_graph_config": {"batch_sizes": graph_sizes(batch), "enable_padding": True},
        "return_perf_metrics": True,
        "moe_config": {},
    }
    names = {cell.workload for cell in load.cells}
    if names <= FOR_ACCURACY:
        wanted["moe_config"]["disable_finalize_fusion"] = True  # else the order of sums varies from run to run
    if names <= FOR_LOGITS:
        wanted["gather_generation_logits"] = True  # moves the model into this process: never in a timed load
    if setup.weights == "dummy":
        wanted["load_format"] = "dummy"
    if is_below_nsys(load):
        wanted |= {"cuda_graph_config": None, "enable_layerwise_nvtx_marker": True}  # a graph hides its layers
    if backend := moe_backend(setup, fields, sm):
        wanted["moe_config"]["backend"] = backend
    return _offered(wanted, fields)


def graph_sizes(batch: int) -> list[int]:
    """Every tested batch is captured as it is; what is between two sizes is padded, and nothing runs eagerly."""
    return sorted({1 << power for power in range(batch.bit_length())} | {batch})


def moe_backend(setup: Setup, fields: Mapping[str, Any], sm: int | None) -> str | None:
    """The one asked for; else one that has kernels where the version's own choice has none; else None: its choice."""
    known = backends(fields)
    if setup.moe_backend != "auto":
        if (name := setup.moe_backend.upper()) not in known:
            raise Unsupported(f"this TensorRT-LLM has no MoE backend {name}; it has {', '.join(known)}")
        return name
    if setup.precision == "fp8_block" and sm in (100, 103):
        return "TRTLLM"
    return "MARLIN" if setup.precision == "nvfp4" and sm == 90 and "MARLIN" in known else None


def backends(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """MoE backends the installed version names."""
    return typing.get_args(nested(fields, "moe_config")["backend"].annotation)


def nested(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Fields of an argument that is a class of arguments itself, or of one or None."""
    kind = fields[name].annotation
    kinds = [each for each in (kind, *typing.get_args(kind)) if hasattr(each, "model_fields")]
    return kinds[0].model_fields if kinds else {}


def is_main(fields: Mapping[str, Any]) -> bool:
    """Whether the version is of the line after 1.2, which reads quantisation written into config.json."""
    return "generation_config" in fields


def variables(load: Load) -> dict[str, str]:
    """Environment variables to set before the engine is imported."""
    setup = load.setup
    found = {"TRTLLM_QWEN3_EAGER_FUSION_DISABLED": "1"} if setup.disable_fusion else {}
    if is_below_nsys(load):
        found["TLLM_LLMAPI_ENABLE_NVTX"] = "1"
        if setup.tp > 1:
            found["TLLM_PROFILE_START_STOP"] = profile_window(load)
    if setup.tp == 1 and (is_below_nsys(load) or load.profiler == "torch"):
        found["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1"  # then the recording is opened in this process
    return found


def is_below_nsys(load: Load) -> bool:
    """Whether this process is the one that nsys looks into. The one whose passes are timed runs as without a profiler."""
    return load.profiler == "nsys" and around() == "nsys"


def profile_window(load: Load) -> str:
    """`A-B`, turns of the engine's loop between which its ranks record: those of the pass after the warm-up passes.

    Turns count from 0, idle ones do not pass, and B is the last that is recorded (newest versions: the first that is
    not). A pass is its prefill turns, its decode steps, and one more, as the scheduler runs a step ahead. Exact for one
    prompt; of several that do not arrive in one turn, each pass is a turn or two longer, and the window opens that much
    earlier in the decode steps of the pass before."""
    parameters = load.cells[0].parameters
    length, limit = parameters.get("input_len", 1), max(LEAST_TOKENS, load.max_sequence + 1)
    prefills = -(-parameters.get("batch_size", 1) // (limit // length))
    a_pass = prefills + min(parameters.get("output_len", 1) - 1, DECODE_STEPS) + 1
    first = PASSES_BEFORE * a_pass
    return f"{first}-{first + a_pass - 1}"


def fusion(setup: Setup, architecture: str | None) -> str:
    """What became of --disable-fusion, in words."""
    if not setup.disable_fusion:
        return "as the engine chooses"
    if setup.tp == 1:
        return "no effect: it fuses with the all-reduce of tensor parallelism, and this is one GPU"
    if not (architecture or "").startswith("Qwen3Moe"):
        return f"no effect: only Qwen3 MoE models read it, this is {architecture}"
    return "disabled (TRTLLM_QWEN3_EAGER_FUSION_DISABLED=1)"


def refuse_launchers() -> None:
    """Raises LoadFailed below srun or mpirun with several tasks: each would start an engine of its own."""
    for program, name in (("mpirun", "OMPI_COMM_WORLD_SIZE"), ("mpirun", "PMI_SIZE"), ("srun", "SLURM_STEP_NUM_TASKS")):
        if os.environ.get(name, "1") not in ("", "1"):
            raise LoadFailed(
                f"started by {program} with {os.environ[name]} tasks ({name}): start harness once, without it;"
                " TensorRT-LLM starts its own ranks"
            )


def _offered(wanted: dict[str, Any], fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    chosen, lacking = {}, []
    for name, value in wanted.items():
        if name not in fields:
            lacking.append(name)
            continue
        if isinstance(value, dict):
            inside = nested(fields, name)
            lacking += [f"{name}.{key}" for key in value if key not in inside]
            value = {key: each for key, each in value.items() if key in inside}
            if not value:
                continue
        chosen[name] = value
    if missing := [name for name in lacking if name not in OPTIONAL]:
        raise Unsupported(f"this TensorRT-LLM has no argument {', '.join(missing)}, without which it would not be fair")
    return chosen, lacking
