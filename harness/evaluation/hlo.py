"""kernel_flop_ratio from HLO: the MACs of Neuron's custom calls against those of all dots and custom calls.

Counted as the NKI-MoE contest counts: every instruction of every computation once, however often it runs (so a decode
step weighs as much as the prefill, whatever the number of steps), dots and custom calls only. Where the contest takes a
custom call without a count for 0 and says nothing, a note says it.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.evaluation.flops import KernelFlopProvider, KernelFlops
from harness.evaluation.wire import Schema, WireError, read
from harness.hookspecs import hookimpl

KERNEL_TARGET = "AwsNeuronCustomNativeKernel"
MODELS = ("context_encoding_model", "token_generation_model")  # folders of a model compiled by NxD Inference
RANK_AND_BUCKET = "_tp0_bk0"  # the ranks of tensor parallelism are alike; the contest takes the first bucket
LARGEST = 2 << 30  # bytes; protobuf's own limit of a message

# Field numbers: openxla/xla, xla/service/hlo.proto and xla/xla_data.proto. Numbers are never given a new meaning.
_MODULE: Schema = {1: ("name", "text"), 3: ("computations", "messages"), 6: ("entry_computation_id", "int")}
_COMPUTATION: Schema = {2: ("instructions", "messages"), 5: ("id", "int")}
_INSTRUCTION: Schema = {
    1: ("name", "text"),
    2: ("opcode", "text"),
    3: ("shape", "messages"),
    28: ("custom_call_target", "text"),
    30: ("dot_dimension_numbers", "messages"),
    35: ("id", "int"),
    36: ("operand_ids", "ints"),
    43: ("backend_config", "bytes"),
}
_SHAPE: Schema = {3: ("dimensions", "ints")}
_DOT: Schema = {
    1: ("lhs_contracting", "ints"),
    2: ("rhs_contracting", "ints"),
    3: ("lhs_batch", "ints"),
    4: ("rhs_batch", "ints"),
}
_UNCOUNTED = ("convolution", "ragged-dot")  # they multiply too, but the contest's count knows dots alone

_Instruction = Mapping[str, Any]


@hookimpl
def harness_register_kernel_flop_providers() -> list[KernelFlopProvider]:
    return [KernelFlopProvider("hlo", "MACs of Neuron custom calls against dots, from HloModuleProto files", count)]


def count(path: Path) -> KernelFlops:
    """MACs of the modules that `path` leads to: a file, a folder of files (`*hlo_module*` or `*.pb`), or the folder of a
    compiled model, where those of context encoding and token generation are taken. Raises UsageError, one line."""
    kernel, dots, seen = 0, 0, Counter()
    files = _files(path)
    for file in files:
        try:
            for computation in _computations(file):
                for instruction in computation.values():
                    macs, is_kernel = _macs(instruction, computation, seen)
                    kernel += macs if is_kernel else 0
                    dots += 0 if is_kernel else macs
        except WireError as error:
            raise UsageError(f"{file} is no HloModuleProto, or not a whole one: {error}") from None
    return KernelFlops(kernel, kernel + dots, tuple(map(str, files)), tuple(_notes(seen)))


def _macs(instruction: _Instruction, computation: Mapping[int, _Instruction], seen: Counter) -> tuple[int, bool]:
    """MACs, and whether they are a kernel's. `seen` counts what the notes speak of."""
    opcode, target = instruction["opcode"], instruction["custom_call_target"]
    if opcode == "dot":
        return _dot_macs(instruction, computation), False
    if opcode in _UNCOUNTED:
        seen["other", opcode] += 1
    elif opcode == "custom-call" and target != KERNEL_TARGET:
        seen["other", f"custom call {target}"] += 1
    elif opcode == "custom-call":
        seen["kernels"] += 1
        macs = _stated_macs(instruction["backend_config"])
        seen["kernels without count"] += macs is None
        return macs or 0, True
    return 0, False


def _notes(seen: Counter) -> Iterator[str]:
    if missing := seen["kernels without count"]:
        yield f"{missing} of {seen['kernels']} kernels state no mac_count and count as 0: the ratio is a lower bound"
    if others := [f"{number} {key[1]}" for key, number in sorted(seen.items(), key=str) if key[0] == "other"]:
        yield f"not counted on either side: {', '.join(others)}"


def _stated_macs(backend_config: bytes) -> int | None:
    """mac_count of a kernel's configuration, JSON in base64. None when there is none."""
    try:
        macs = json.loads(base64.b64decode(backend_config))["mac_count"]
        return int(macs) if type(macs) in (int, str) and int(macs) >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _dot_macs(dot: _Instruction, computation: Mapping[int, _Instruction]) -> int:
    """batch x lhs_free x contracting x rhs_free."""
    where = f"dot {dot['name']!r}"
    if len(dot["operand_ids"]) < 2 or not all(operand in computation for operand in dot["operand_ids"][:2]):
        raise WireError(f"{where}: its operands are not in its computation")
    lhs, rhs = (_dimensions(computation[operand], where) for operand in dot["operand_ids"][:2])
    numbers = read(b"".join(dot["dot_dimension_numbers"]), _DOT)
    contracting, batch = (_pick(lhs, numbers[name], where) for name in ("lhs_contracting", "lhs_batch"))
    rhs_contracting, rhs_batch = (_pick(rhs, numbers[name], where) for name in ("rhs_contracting", "rhs_batch"))
    if contracting != rhs_contracting or batch != rhs_batch:
        raise WireError(f"{where}: {lhs} and {rhs} do not fit each other")
    rhs_free = [size for axis, size in enumerate(rhs) if axis not in numbers["rhs_contracting"] + numbers["rhs_batch"]]
    return math.prod(lhs) * math.prod(rhs_free)  # lhs is batch x lhs_free x contracting


def _pick(dimensions: tuple[int, ...], axes: tuple[int, ...], where: str) -> list[int]:
    if len(set(axes)) != len(axes) or not all(0 <= axis < len(dimensions) for axis in axes):
        raise WireError(f"{where}: axes {axes} of an operand with {len(dimensions)} dimensions")
    return [dimensions[axis] for axis in axes]


def _dimensions(instruction: _Instruction, where: str) -> tuple[int, ...]:
    dimensions = read(b"".join(instruction["shape"]), _SHAPE)["dimensions"]
    if any(size < 0 for size in dimensions):
        raise WireError(f"{where}: an operand of unknown size")
    return dimensions


def _computations(file: Path) -> Iterator[dict[int, _Instruction]]:
    """Each computation's instructions by id. The format has no mark of its own, and a file cut between two computations
    is well formed; so, as XLA itself does, we want the entry computation, which comes last, and opcodes."""
    module = read(_content(file), _MODULE)
    computations = [read(content, _COMPUTATION) for content in module["computations"]]
    if module["entry_computation_id"] not in [computation["id"] for computation in computations]:
        raise WireError(f"its entry computation is not among its {len(computations)} computations")
    for computation in computations:
        instructions = [read(content, _INSTRUCTION) for content in computation["instructions"]]
        if not instructions or not all(instruction["opcode"] for instruction in instructions):
            raise WireError("a computation without instructions, or an instruction without opcode")
        by_id = {instruction["id"]: instruction for instruction in instructions}
        if len(by_id) != len(instructions):
            raise WireError("two instructions of a computation have one id")
        yield by_id


def _content(file: Path) -> bytes:
    try:
        if file.stat().st_size > LARGEST:
            raise WireError(f"larger than {LARGEST >> 30} GiB")
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if any((path / model).is_dir() for model in MODELS):
        return [_only(path / model / RANK_AND_BUCKET) for model in MODELS]
    if not (files := list(_modules(path))):
        raise UsageError(f"{path}: no HLO in it; expected the folders {' and '.join(MODELS)}, *hlo_module* or *.pb")
    return files


def _only(folder: Path) -> Path:
    files = list(_modules(folder))
    if len(files) != 1:
        raise UsageError(f"{folder}: expected one *hlo_module* file, found {len(files)}")
    return files[0]


def _modules(folder: Path) -> Iterable[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError:  # no such folder: nothing in it
        return []
    return [file for file in files if "hlo_module" in file.name.lower() or file.suffix == ".pb"]
