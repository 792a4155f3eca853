"""`harness baseline` and `harness validate` as a person runs them: real processes, real files, real faults."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from real import MODEL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SMALL = ["--num-chunks", 8, "--input-len", 96, "--num-tokens", 8]


def harness(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with baselines: `windows` of a dataset, and `prompts` of which 32 tokens of each row are kept."""
    folder = tmp_path_factory.mktemp("accuracy")
    done = harness(folder, "baseline", "--output", "windows", *SMALL)
    assert done.returncode == 0 and done.stdout.startswith("baseline of hf bf16 on tinymoe: 8 windows (760 tokens, ")
    (folder / "prompts.txt").write_text("Return the absolute value of\r\n\r\nRaise ValueError if\n\n\n")
    prompts = ["--prompts", "prompts.txt", "--prompt", "A list of", "--num-tokens", 6, "--top-k", 32]
    done = harness(folder, "baseline", "--output", "prompts", "--precision", "fp32", *prompts)
    assert done.returncode == 0, done.stderr
    return folder


def changed(folder: Path, name: str, change) -> Path:
    """A copy of tinymoe with other weights, or other files."""
    copy = shutil.copytree(MODEL.path, folder / name, dirs_exist_ok=True)
    weights = load_file(copy / "model.safetensors")
    change(copy, weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_a_baseline_says_what_it_is_of_and_holds_no_pickle(folder):
    with safe_open(folder / "windows", "pt") as file:
        about = json.loads(file.metadata()["about"])
        assert set(file.keys()) == {
            *(f"windows.{name}" for name in ("ids", "lengths", "first", "given", "logits", "chosen")),
            *(f"greedy.{name}" for name in ("ids", "lengths", "first", "given", "logits")),
        }
        assert file.get_slice("windows.logits").get_shape() == [8 * 95, 2048]
        assert file.get_tensor("greedy.lengths").tolist() == [48 + 8] * 4
    assert (about["model"], about["engine"], about["precision"], about["vocab_size"]) == ("tinymoe", "hf", "bf16", 2048)
    assert len(about["weights"]) == len(about["tokenizer_sha256"]) == 64
    with safe_open(folder / "prompts", "pt") as file:
        assert file.get_slice("greedy.top_ids").get_shape() == [18, 32]
        mass = file.get_tensor("greedy.top_logprobs").double().exp().sum(-1)
        assert (mass + file.get_tensor("greedy.tail_logprob").double().exp()).sub(1).abs().max() < 1e-6


def test_the_ladder_tells_a_repeat_from_quantisation(folder):
    done = harness(folder, "validate", "--baseline", "windows", "--precision", "nvfp4,bf16", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1, "nvfp4's logits do not match"
    rungs = {(rung["cause"], rung["what"], rung["beside"]): rung["divergence"] for rung in found["ladder"]}
    repeat, quantised = (
        rungs["repeat of the reference", "hf bf16", "hf bf16"],
        rungs["quantisation", "hf nvfp4", "hf bf16"],
    )
    assert len(rungs) == 2
    assert repeat["kl_forward"]["max"] == 0 and repeat["top1_agreement"] == repeat["routing"]["agreement"] == 1
    assert quantised["kl_forward"]["mean"] > 1e-3 and quantised["routing"]["agreement"] < 1
    assert quantised["tokens"] == 760 and quantised["suspects"] == []
    assert [rung["compute_mode"] for rung in found["ladder"]] == ["native", "emulated"]
    matching = {record["precision"]: record["logit_matching"] for record in found["records"]}
    assert (matching["bf16"]["passed"], matching["nvfp4"]["passed"], found["passed"]) == (True, False, False)
    assert matching["bf16"]["tokens_checked"] == 32 and "off by more than" in matching["nvfp4"]["why"]
    assert {path.stem for path in (folder / "benchmark_results/records").iterdir()} >= {
        r["key"] for r in found["records"]
    }


def test_the_table_says_the_same_to_a_person(folder):
    done = harness(folder, "validate", "--baseline", "prompts", "--precision", "bf16", "--num-tokens-to-check", 4)
    lines = done.stdout.splitlines()
    assert not any(line.startswith("emulated") for line in lines)
    assert lines[0].startswith("tinymoe beside hf fp32: ") and lines[1].split()[:4] == ["cause", "what", "beside", "KL"]
    assert any(line.startswith("quantisation") and " hf bf16 " in line for line in lines)
    assert any("lower bound" in line and line.startswith("18 tokens") for line in lines)
    assert any("logit matching over 12 tokens at k = 5, not at k = all, 1000, 50" in line for line in lines)


def test_a_loose_tolerance_map_is_obeyed(folder):
    loose = ["--tol-map", "{5: (1e-5, 0.9)}", "--divergence-difference-tol", "100"]
    done = harness(folder, "validate", "--baseline", "windows", "--precision", "fp8", *loose, "--json")
    (record,) = json.loads(done.stdout)["records"]
    assert done.returncode == 0 and record["logit_matching"]["passed"] is True
    assert [check["k"] for check in record["logit_matching"]["checks"]] == ["5"]


def test_damage_in_a_checkpoint_is_named(folder):
    def damage(copy, weights):
        weights["model.layers.1.mlp.experts.5.down_proj.weight"] *= 1.5

    checkpoint = changed(folder, "damaged", damage)
    done = harness(
        folder, "validate", "--baseline", "windows", "--precision", "bf16", "--checkpoint", f"bf16={checkpoint}"
    )
    assert done.returncode == 1
    assert any(line.startswith("checkpoint") for line in done.stdout.splitlines())
    assert "suspect expert 5 of layer 1" in done.stdout


@pytest.fixture
def refused(folder):
    def check(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
        done = harness(folder, *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("[", "Usage:", "Try "))]
        assert len([line for line in lines if line]) == 1, done.stderr
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == before
        return lines[-1]

    return check


def scaled(copy, weights):
    weights["lm_head.weight" if "lm_head.weight" in weights else "model.norm.weight"] *= 1.01


def other_tokenizer(copy, weights):
    path = copy / "tokenizer.json"
    path.write_text(path.read_text() + " ")


def other_vocabulary(copy, weights):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 2304}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (scaled, "of another model"),
        (other_tokenizer, "of another tokenizer"),
        (other_vocabulary, "of another vocabulary"),
    ],
)
def test_a_baseline_of_another_model_is_refused(refused, folder, change, words):
    other = changed(folder, f"other_{change.__name__}", change)
    assert words in refused("validate", "--baseline", "windows", "--model", other)


def test_a_file_that_is_no_baseline_is_refused(refused, folder):
    whole = (folder / "windows").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    other_format = (
        whole[:8] + whole[8 : 8 + length].replace(b"harness-baseline-1", b"harness-baseline-9") + whole[8 + length :]
    )
    bad = {
        "cut": whole[:-100],
        "cut_header": whole[:300],
        "empty": b"",
        "text": b"PK\x03\x04 this is something else" * 20,
        "weights": Path(MODEL.path, "model.safetensors").read_bytes(),
        "other_format": other_format,
    }
    for name, content in bad.items():
        (folder / f"bad_{name}").write_bytes(content)
        assert f"bad_{name}" in refused("validate", "--baseline", f"bad_{name}")
    assert "No such file" in refused("validate", "--baseline", "nowhere")
    assert "is no baseline; it is left as it is" in refused("baseline", "--output", "bad_text", *SMALL)
    assert "there is no folder" in refused("baseline", "--output", "no/where", *SMALL)


def test_a_tolerance_map_that_cannot_be_read_is_refused(refused):
    assert "--tol-map" in refused("validate", "--baseline", "windows", "--tol-map", "{5: }")


def test_a_prompt_that_does_not_fit_is_refused(refused, folder):
    long = ["--prompt", "word " * 3000, "--num-tokens", 8]
    assert "prompt 1 is too long" in refused("baseline", "--output", "windows", *long)
    (folder / "none.txt").write_text("\n\n \n")
    assert "none.txt" in refused("baseline", "--output", "windows", "--prompts", "none.txt")
    assert "--dataset" in refused("baseline", "--output", "windows", "--prompt", "a", "--dataset", "stdlib")


def test_nan_in_logits_is_refused_and_overwrites_nothing(refused, folder):
    def poison(copy, weights):
        weights["model.layers.3.mlp.experts.0.down_proj.weight"][:] = float("nan")

    broken = changed(folder, "broken", poison)
    line = refused("baseline", "--output", "windows", "--model", broken, *SMALL)
    assert "bad_output" in line and "not finite" in line
    done = harness(folder, "validate", "--baseline", "windows", "--precision", "bf16", "--checkpoint", f"bf16={broken}")
    assert done.returncode == 2 and "failed hf bf16: bad_output" in done.stdout and "not finite" in done.stdout
