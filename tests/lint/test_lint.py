"""`harness lint-checkpoint`: every format comes out clean, every planted fault is found and named."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import EXCLUDED, EXPERTS, FORMATS, HIDDEN, INNER, LAYERS, Folder, bf16, blank, f32
from faulty import EXPERT, FAULTS, NAN, Q, every, put, said, several

from harness.lint.report import lint

ROOT = Path(__file__).parents[2]
STORED = {  # the experts', and their bits with scales
    "bf16": ("bf16", 16),
    "fused bf16": ("bf16", 16),
    "modelopt fp8": ("fp8", 8 + 64 / (INNER * HIDDEN)),
    "fused modelopt fp8": ("fp8", None),
    "modelopt nvfp4": ("nvfp4", 4.5 + 64 / (INNER * HIDDEN)),
    "modelopt mixed": ("nvfp4", 4.5 + 64 / (INNER * HIDDEN)),
    "fp8 block": ("fp8_block", 8 + 32 / 128**2),
    "compressed fp8": ("fp8_channel", None),
    "compressed nvfp4": ("nvfp4", 4.5 + 64 / (INNER * HIDDEN)),
    "compressed int4": ("int4", 4.5 + 128 / (INNER * HIDDEN)),
    "gpt-oss mxfp4": ("mxfp4", None),
}


# --- clean -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_sound_checkpoint_of_every_format_has_no_finding_above_a_note(tmp_path, name, shards):
    folder = FORMATS[name]()
    folder.shards = shards
    report = lint(folder.write(tmp_path / "a"))
    assert [finding for finding in report.findings if finding.severity != "note"] == []
    assert not report.has_error
    data = json.loads(json.dumps(report.to_json()))
    stored, bits = STORED[name]
    assert data["precision"]["experts"] == stored
    assert data["precision"]["embedding"] == data["precision"]["head"] == data["precision"]["router"] == "bf16"
    if bits is not None:
        assert data["classes"]["experts"]["bits_per_weight"] == pytest.approx(bits, rel=1e-12)
    assert data["bytes"] == sum(len(content) for _, _, content in folder.tensors.values())
    assert sum(entry["bytes"] for entry in data["classes"].values()) == data["bytes"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_as_many_weights_as_the_same_model_in_bf16(tmp_path, name):
    plain = "fused bf16" if "gpt-oss" in name or "fused" in name else "bf16"
    counts = {}
    for each in (plain, name):
        classes = lint(FORMATS[each]().write(tmp_path / each.replace(" ", "-"))).classes
        counts[each] = {kind: entry.weights for kind, entry in classes.items()}
    if name == "gpt-oss mxfp4":  # its biases are weights, too
        counts[name]["experts"] -= LAYERS * EXPERTS * (2 * INNER + HIDDEN)
    assert counts[plain] == counts[name]


def test_the_embedded_model_is_clean_and_of_sixteen_bits():
    report = lint(ROOT / "harness/data/tinymoe")
    assert (report.findings, report.total.bits_per_weight, report.subject.format) == ([], 16, "bf16")


def test_json_names_what_is_excluded_and_the_kv_cache(tmp_path):
    data = lint(FORMATS["modelopt fp8"]().write(tmp_path)).to_json()
    assert (data["format"], data["kv_scheme"], data["excluded"]) == ("fp8", "FP8", EXCLUDED)
    keys = ["path", "format", "precision", "bits_per_weight", "bytes", "classes", "kv_scheme", "excluded", "findings"]
    assert list(data) == keys


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "plant", "severity", "code", "words"), FAULTS, ids=[f"{f[3]}-{f[0]}" for f in FAULTS])
def test_a_planted_fault_is_found_and_named(tmp_path, name, plant, severity, code, words):
    folder = FORMATS[name]()
    plant(folder)
    report = lint(folder.write(tmp_path))
    found = [finding for finding in report.findings if finding.code == code]
    assert any(f.severity == severity and words in f"{f.where} {f.what}" for f in found), report.findings
    assert report.has_error == any(finding.severity == "error" for finding in report.findings)


def test_a_fault_of_one_layer_brings_no_other_error_with_it(tmp_path):
    for number, (name, plant, _, code, _) in enumerate(FAULTS):
        if code in (
            "scale-nan",
            "scale-zero",
            "scale-shape",
            "stored-unquantised",
            "default-input-scale",
            "kv-scale-missing",
        ):
            folder = FORMATS[name]()
            plant(folder)
            found = lint(folder.write(tmp_path / str(number))).findings
            assert {f.code for f in found if f.severity == "error"} <= {code}, found


@pytest.mark.parametrize("shape", [(), (0,), (0, 4, 4), (4, 0, 4), (2, 2, 2, 2, 2)])
def test_a_weight_of_an_odd_shape_is_counted_and_brings_nothing_down(tmp_path, shape):
    folder = FORMATS["modelopt fp8"]()
    put(f"{EXPERT}.up_proj.weight", blank("F8_E4M3", *shape))(folder)
    assert lint(folder.write(tmp_path)).total.weights


def codes() -> set[str]:
    """Of every finding in the sources."""
    found = set()
    for path in (ROOT / "harness/lint").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                code = node.args[1]
                if isinstance(code, ast.Constant):
                    found.add(code.value)
                else:  # f"scale-{word}"
                    found |= {code.values[0].value + word for word in ("nan", "infinite", "negative", "zero")}
    return found


def test_no_check_is_there_that_no_planted_fault_makes_fail():
    assert codes() == {code for *_, code, _ in FAULTS}


def test_the_page_lists_every_code_with_its_severity():
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| ([a-z, ]+) \|", (ROOT / "docs/lint.md").read_text(), re.MULTILINE)
    planted: dict[str, set[str]] = {}
    for _, _, severity, code, _ in FAULTS:
        planted.setdefault(code, set()).add(severity)
    assert {code: set(words.split(", ")) for code, words in listed} == planted


def test_a_long_list_is_a_number_and_its_first_names(tmp_path):
    folder = FORMATS["modelopt fp8"]()
    every("input_scale", lambda _: f32(math.nan))(folder)
    (finding,) = (f for f in lint(folder.write(tmp_path)).findings if f.code == "scale-nan")
    assert finding.where.startswith("32 tensors: ") and finding.where.count("input_scale") == 3


def test_errors_come_first_and_the_verdict_counts(tmp_path):
    folder = FORMATS["fp8 block"]()
    several(put(f"{Q}.weight_scale_inv", f32(1, 2, -3, 4, shape=(2, 2))), said(modules_to_not_convert=["nothing"]))(
        folder
    )
    found = [finding.severity for finding in lint(folder.write(tmp_path)).findings]
    assert found == sorted(found, key=["error", "warning", "note"].index) and set(found) == {"error", "warning", "note"}


def test_one_small_block_is_no_contradiction_to_one_scale_per_tensor(tmp_path):
    tensors = {"model.layers.0.self_attn.o_proj.weight": blank("F8_E4M3", 64, 64)}
    tensors["model.layers.0.self_attn.o_proj.weight_scale"] = f32(0.5, shape=(1, 1))
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
    }
    folder = Folder(
        tensors, {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}}
    )
    assert not lint(folder.write(tmp_path)).has_error


def test_what_the_code_of_a_model_keeps_plain_is_a_note(tmp_path):
    folder = FORMATS["fp8 block"]()
    folder.tensors |= bf16("model.layers.1.eh_proj", HIDDEN, HIDDEN)
    found = lint(folder.write(tmp_path)).findings
    assert {(f.severity, f.code) for f in found} == {("note", "plain-not-excluded"), ("note", "fp8-is-block")}


# --- the command -----------------------------------------------------------------------------------------------------


def harness(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "harness", "lint-checkpoint", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_sound_checkpoint_ends_with_zero_and_a_table(tmp_path):
    done = harness(ROOT / "harness/data/tinymoe", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "experts" in done.stdout and done.stdout.splitlines()[-1] == "no error: 0 errors, 0 warnings, 0 notes"


def test_an_error_ends_with_one_and_json_alone_on_stdout(tmp_path):
    folder = FORMATS["modelopt nvfp4"]()
    put(f"{Q}.weight_scale_2", NAN)(folder)
    folder.write(tmp_path / "[red]a")  # a name must not be taken for markup
    text, data = harness("[red]a", cwd=tmp_path), harness("[red]a", "--json", cwd=tmp_path)
    assert (text.returncode, text.stderr, data.returncode, data.stderr) == (1, "", 1, "")
    assert text.stdout.startswith("[red]a: nvfp4") and f"error scale-nan: {Q}.weight_scale_2" in text.stdout
    assert text.stdout.splitlines()[-1].startswith("do not measure it before the errors are mended: 1 error")
    found = json.loads(data.stdout)
    assert [finding["code"] for finding in found["findings"]] == ["scale-nan"] and found["path"] == "[red]a"
    assert list(found["findings"][0]) == ["severity", "code", "where", "what", "advice"]


def test_a_hub_id_means_its_files_in_the_local_cache(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "hub/models--some--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    FORMATS["bf16"]().write(snapshot)
    (tmp_path / "hub/models--some--model/refs").mkdir()
    (tmp_path / "hub/models--some--model/refs/main").write_text("abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert harness("some/model", cwd=tmp_path).returncode == 0
    assert harness("some/other", cwd=tmp_path).returncode == 2


def folder_with(**files: str | bytes):
    def make(path: Path) -> Path:
        FORMATS["modelopt nvfp4"]().write(path)
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def without(name: str):
    def make(path: Path) -> Path:
        (FORMATS["bf16"]().write(path) / name).unlink()
        return path

    return make


def as_folder(path: Path) -> Path:
    (without("config.json")(path) / "config.json").mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "nowhere", "no such folder"),
        (lambda path: FORMATS["bf16"]().write(path) / "config.json", "no folder"),
        (lambda path: "", "no checkpoint"),
        (lambda path: "\0", ""),
        (without("config.json"), "no config.json"),
        (without("model.safetensors"), "no .safetensors files"),
        (as_folder, "cannot be read"),
        (folder_with(config__json="{"), "not JSON"),
        (folder_with(config__json="[1]"), "expected one JSON object"),
        (folder_with(config__json="{} {}"), "expected one JSON object"),
        (folder_with(config__json=b"\xff\xfe"), "not JSON"),
        (folder_with(config__json='{"a": NaN}'), "finite"),
        (folder_with(config__json="[" * 100_000), "not JSON"),
        (folder_with(config__json='{"quantization_config": 5}'), "expected an object"),
        (folder_with(config__json='{"quantization_config": {"quant_method": 5}}'), "expected one line of text"),
        (folder_with(config__json='{"quantization_config": {"quant_method": "fp8", "ignored_layers": "x"}}'), "a list"),
        (folder_with(config__json='{"quantization_config": {"quant_method": "compressed-tensors"}}'), "config_groups"),
        (folder_with(config__json='{"num_experts": "many"}'), "expected a number"),
        (folder_with(hf_quant_config__json="{}"), "quantization: missing"),
        (folder_with(hf_quant_config__json='{"quantization": {"exclude_modules": [1]}}'), "expected one line of text"),
        (folder_with(hf_quant_config__json='{"quantization": {"quantized_layers": []}}'), "expected an object"),
        (folder_with(**{"model.safetensors.index.json": "{}"}), "weight_map: missing"),
        (folder_with(**{"model.safetensors.index.json": '{"weight_map": {"a": 1}}'}), "file names"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, make, words):
    given = make(tmp_path / "a")
    if given == "\0":  # no command line can hold it; a name no file system takes can
        given = "x" * 5000
    done = harness(given, cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and words in done.stderr


def test_names_from_a_file_cannot_break_a_line_or_a_table(tmp_path):
    folder = FORMATS["modelopt fp8"]()
    folder.tensors |= {"a\nb\x1b[31m\udc80.weight": blank("F8_E4M3", 2, 2), "[/red].weight": blank("F8_E4M3", 2, 2)}
    folder.write(tmp_path / "a")
    done = harness("a", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "") and "\x1b" not in done.stdout and "\\nb\\x1b" in done.stdout
    assert json.loads(harness("a", "--json", cwd=tmp_path).stdout)["findings"]


def test_help_and_the_table_need_no_heavy_package(tmp_path):
    check = "import sys; from harness.lint.report import lint; import harness.commands.lint_checkpoint; "
    check += "print({'rich', 'torch', 'numpy', 'safetensors'} & {name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
