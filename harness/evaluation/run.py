"""An evaluation from prompts to scores: a baseline of them, one load that checks and times each, a report and a CSV row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.accuracy.baseline import Baseline, check_same_model, open_baseline
from harness.accuracy.subject import about
from harness.errors import HarnessError, UsageError
from harness.evaluation.prompts import BaseData
from harness.evaluation.report import benchmark_report
from harness.evaluation.score import Score, append_csv, csv_row, score
from harness.model import models, weights
from harness.planning.plan import Options
from harness.recording.records import Record, write_json
from harness.working.run import Result

REFERENCE = ("hf", "bf16")
Perform = Callable[[Options], Result]


@dataclass(frozen=True)
class Question:
    """What is asked of `harness evaluate`."""

    texts: tuple[str, ...]
    bases: tuple[BaseData, ...]  # of the prompts, by number; else the two below are for all
    base_latency: float  # ms
    base_throughput: float  # tokens/s
    seq_len: int  # prompt and output tokens
    measuring: Mapping[str, Any]  # parameters of the workload evaluate
    kernel_flop_ratio: float | None
    why_no_ratio: str
    team_id: str | None
    member_id: str | None
    file: Path | None  # a baseline of these prompts
    options: Options


@dataclass(frozen=True)
class Evaluation:
    """One prompt's."""

    prompt: str
    prompt_tokens: int
    output_tokens: int
    score: Score
    report: dict[str, Any]
    report_path: str
    csv_path: str

    def text(self) -> str:
        """Two lines for a person."""
        result, e2e = self.score, self.report["e2e_model"]
        factors = (
            f"accuracy {result.accuracy}, p99 {result.latency_ms_p99:.2f} ms (base {result.base_latency_ms}), "
            f"{result.throughput:.2f} prompt and output tokens/s (base {result.base_throughput}), p50 {e2e['latency_ms_p50']:.2f} ms"
        )
        total = "not known" if result.score is None else f"{result.score:.4f}"
        reason = f": {result.reason}" if result.reason else ""
        without = f"; without the kernel ratio {result.score_without_kernel_ratio:.4f}" if result.score is None else ""
        return (
            f"score {total}{without}{reason}\n  {self.prompt_tokens} + {self.output_tokens} tokens: {factors}\n"
            f"  {self.report_path}, {self.csv_path}"
        )


def evaluate_prompts(
    question: Question, perform: Perform, give_up_on: Callable[[Result], None]
) -> tuple[Result, list[Evaluation]]:
    """Raises UsageError or HarnessError for what cannot be evaluated: a prompt too long, a cell that failed."""
    options = question.options
    baseline = open_baseline(question.file) if question.file else _make_baseline(question, perform, give_up_on)
    lengths = _lengths(question, baseline)
    longest = max(prompt + output for prompt, output in lengths)
    longest = max(longest, max(map(len, baseline.ids("greedy"))))
    parameters = {
        **question.measuring,
        "baseline": str(baseline.path),
        "output_lens": [output for _, output in lengths],
        "input_len": longest,
    }
    axes = {name: (value,) for name, value in parameters.items()}
    result = perform(replace(options, workloads=("evaluate",), parameters=axes))
    give_up_on(result)
    (record,) = result.records
    if record["status"] != "ok":
        raise HarnessError(f"{record['engine']} {record['precision']} is not what was asked for: {record['reason']}")
    return result, [_evaluation(question, number, record) for number in range(len(question.texts))]


def _make_baseline(question: Question, perform: Perform, give_up_on: Callable[[Result], None]) -> Baseline:
    engine, precision = REFERENCE
    model = models.resolve(question.options.models[0])
    name = hashlib.sha256(repr((model.path, question.texts)).encode()).hexdigest()[:12]
    path = (question.options.output_dir / "baselines" / f"prompts_{name}.safetensors").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = {
        "texts": list(question.texts),
        "output": str(path),
        "num_tokens": question.measuring["num_tokens_to_check"],
        "output_len": question.measuring["num_tokens_to_check"],
        "about": about(model, engine, precision),
    }
    axes = {name: (value,) for name, value in parameters.items()}
    reference = {"engines": (engine,), "precisions": (precision,), "workloads": ("baseline",), "checkpoints": {}}
    give_up_on(
        perform(replace(question.options, **reference, tp=(1,), ep=(1,), moe_backends=("auto",), parameters=axes))
    )
    return open_baseline(path)


def _lengths(question: Question, baseline: Baseline) -> list[tuple[int, int]]:
    """Prompt and output tokens of each prompt."""
    model = models.resolve(question.options.models[0])
    check_same_model(baseline, model.path, weights.fingerprint(model.path, "real", 0))
    if "greedy" not in baseline.sections:
        raise UsageError(f"baseline {baseline.path} holds no greedy continuations of prompts")
    prompts = baseline.first("greedy")
    if len(prompts) != len(question.texts):
        raise UsageError(f"baseline {baseline.path} is of {len(prompts)} prompts, {len(question.texts)} were given")
    found = []
    for number, tokens in enumerate(prompts):
        total = _base(question, number).sequence_length if question.bases else question.seq_len
        if tokens >= total:
            raise UsageError(
                f"prompt {number + 1} has {tokens} tokens, which leaves none of --seq-len {total} to generate"
            )
        found.append((tokens, total - tokens))
    return found


def _base(question: Question, number: int) -> BaseData:
    for base in question.bases:
        if base.prompt_id == number:
            return base
    raise UsageError(f"--base-data has no row for prompt {number}")


def _evaluation(question: Question, number: int, record: Record) -> Evaluation:
    found = record["evaluations"][number]
    report = benchmark_report({**found, "key": record["key"]})
    matching, e2e = found["logit_matching"], report["e2e_model"]
    base = _base(question, number) if question.bases else None
    result = score(
        matching["passed"] is True,
        matching["why"],
        e2e["latency_ms_p99"],
        e2e["throughput"],
        base.base_latency_ms if base else question.base_latency,
        base.base_throughput if base else question.base_throughput,
        question.kernel_flop_ratio,
        question.why_no_ratio,
    )
    folder = question.options.output_dir
    name = "benchmark_report.json" if len(question.texts) == 1 else f"benchmark_report_{number}.json"
    write_json(folder / name, report)
    path = append_csv(folder, question.team_id, csv_row(result, question.team_id, question.member_id))
    return Evaluation(
        question.texts[number], found["input_len"], found["output_len"], result, report, str(folder / name), str(path)
    )
