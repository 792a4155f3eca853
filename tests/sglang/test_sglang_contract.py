"""The double is held to SGLang: to an installed one, where there is one, and to the list of facts it was written from."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SGLANG_PYTHON", ROOT / ".venv-sglang/bin/python"))
FACTS = ROOT.parent / "shared/contracts/sglang_neuron_lab.md"
LATER = {"attn_dp_size", "detailed_annotations"}  # the double is of 0.5.23; these names came after 0.5.16
TELL = """
import dataclasses, enum, inspect, json
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.layers.moe.utils import MoeRunnerBackend
from sglang.srt.managers.io_struct import ProfileReq
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
def defaults(type_):
    return {name: repr(value.default) for name, value in inspect.signature(type_).parameters.items()}
told = {"ServerArgs": defaults(ServerArgs), "generate": defaults(Engine.generate)}
told["SamplingParams"], told["ProfileReq"] = list(defaults(SamplingParams)), list(defaults(ProfileReq))
told["MoeRunnerBackend"] = [member.value for member in MoeRunnerBackend]
print(json.dumps(told))
"""


def told_by(python: Path | str, env: dict[str, str]) -> dict:
    done = subprocess.run([python, "-c", TELL], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not PYTHON.exists(), reason="no SGLang here: .venv-sglang, or SGLANG_PYTHON=its python")
def test_every_name_and_default_of_the_double_is_sglangs(double_env):
    ours, theirs = told_by(sys.executable, double_env), told_by(PYTHON, {**os.environ, "PYTHONSAFEPATH": "1"})
    for what in ("ServerArgs", "generate"):
        differing = {name: (default, theirs[what].get(name)) for name, default in ours[what].items()}
        assert {name for name, (own, real) in differing.items() if own != real} <= LATER, (what, differing)
    for what in ("SamplingParams", "ProfileReq"):
        assert set(ours[what]) - set(theirs[what]) <= LATER, what
    assert set(theirs["MoeRunnerBackend"]) <= set(ours["MoeRunnerBackend"])


@pytest.mark.skipif(not FACTS.exists(), reason="the facts are not here")
def test_every_argument_and_choice_of_the_double_is_among_the_facts():
    known = set(re.findall(r"[\w.-]+", FACTS.read_text().partition("## A. ")[2].partition("## B. ")[0]))
    classes = {}
    for name in ("server_args", "layers/moe/utils"):
        source = (ROOT / f"tests/doubles/sglang/sglang/srt/{name}.py").read_text()
        classes |= {node.name: node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)}
    arguments = {node.target.id for node in classes["ServerArgs"] if isinstance(node, ast.AnnAssign)}
    runners = {node.value.value for node in classes["MoeRunnerBackend"] if isinstance(node, ast.Assign)}
    assert runners - known <= {"ascend"}
    assert arguments - known <= UNTOLD


# Read in SGLang's source and not among the facts.
UNTOLD = {"prefill_attention_backend", "decode_attention_backend", "max_prefill_tokens", "stream_interval"} | {
    "enable_torch_compile",
    "speculative_algorithm",
    "log_level",
    "custom_sigquit_handler",
}
