"""Bad checkpoints fail with the engine's own words and cost no other cell; measured with real runs of the HF engine."""

import json
import shutil

import pytest
import torch
from harness_hf.session import HfSession
from safetensors.torch import load_file, save_file

from harness import failures
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.precision import Support

TINY = models.DATA / "tinymoe"
SMALL = ["--output-dir", "out", "--num-chunks", 2, "--input-len", 32, "--json"]


@pytest.fixture
def checkpoint(tmp_path):
    """A function that copies tinymoe under a name, with its weights and configuration changed."""

    def make(name: str, weights=None, config=None):
        folder = tmp_path / name
        shutil.copytree(TINY, folder)
        if config:
            changed = config(json.loads((folder / "config.json").read_text()))
            (folder / "config.json").write_text(json.dumps(changed))
        if weights:
            save_file(weights(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def without_a_norm(tensors):
    return {name: tensor for name, tensor in tensors.items() if "layers.2.self_attn.q_norm" not in name}


def with_a_nan(tensors):
    tensors["model.layers.3.self_attn.o_proj.weight"][0, 0] = float("nan")
    return tensors


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def failure_of(path, precision: str) -> failures.Failure:
    """What a worker says of a load that it cannot do."""
    setup = Setup("hf", "tinymoe", str(TINY), precision, checkpoint=str(path))
    load = Load(setup, (Cell(setup, "ppl", {"input_len": 32}, Support("emulated")),), "emulated")
    with pytest.raises(Exception) as raised:
        HfSession(load)
    return failures.of_exception(raised.value, while_loading=True)


def test_each_bad_checkpoint_is_load_failed_in_the_engines_words(checkpoint, tmp_path):
    truncated(half := checkpoint("half"))
    pickled(pickle := checkpoint("pickle"))
    bad = {
        "fp8": (tmp_path / "not-there", "not-there"),
        "fp8_block": (half, "safetensor"),
        "nvfp4": (checkpoint("hole", weights=without_a_norm), "missing"),
        "mxfp4": (pickle, "safetensors"),
        "fp32": (checkpoint("wrong", config=lambda c: {**c, "model_type": "no_such_model"}), "no_such_model"),
    }
    for precision, (path, words) in bad.items():
        failure = failure_of(path, precision)
        assert failure.failure_class == "load_failed" and words in failure.message.lower(), failure


def test_a_bad_checkpoint_costs_no_other_cell_and_nan_weights_are_named(harness, checkpoint):
    bad = {
        "bf16": (checkpoint("nan", weights=with_a_nan), "bad_output", "not finite"),
        "nvfp4": (
            checkpoint("done", config=lambda c: {**c, "quantization_config": {"quant_method": "fp8"}}),
            "load_failed",
            "quantised already (fp8)",
        ),
    }
    options = [word for name, (path, *_) in bad.items() for word in ("--checkpoint", f"{name}={path}")]
    precisions = ",".join((*bad, "fp32"))
    done = harness("run", "--workload", "perf,ppl", "--output-len", 4, "--precision", precisions, *options, *SMALL)
    assert done.returncode == 1
    records = json.loads(done.stdout)
    assert [record["status"] for record in records if record["precision"] == "fp32"] == ["ok", "ok"]
    failed = [record for record in records if record["status"] == "failed"]
    assert len(failed) == 3, "perf and ppl of the NaN weights, ppl of the other"
    for record in failed:
        _, failure_class, words = bad[record["precision"]]
        assert record["failure"]["class"] == failure_class and words in record["failure"]["message"]
        assert record.get("perplexity") is None
    ledger = json.loads((harness.folder / "out/failure_results.json").read_text())
    assert {entry["precision"] for entry in ledger["tinymoe::TP1_EP1_auto"]} == set(bad)


def test_a_model_folder_that_is_not_there_is_the_engines_to_name(harness):
    done = harness("run", "--model", "./no-such-folder", "--precision", "bf16", "--workload", "ppl", *SMALL)
    (record,) = json.loads(done.stdout)
    assert done.returncode == 1
    message = f"there is no folder {harness.folder / 'no-such-folder'}"
    assert (record["failure"]["class"], record["failure"]["message"]) == ("load_failed", message)
    assert "Traceback" not in done.stderr


def test_dummy_weights_have_speed_but_no_accuracy(harness):
    done = harness("run", "--weights", "dummy", "--precision", "bf16", "--output-len", 4, "--num-iterations", 2, *SMALL)
    assert done.returncode == 0, done.stderr
    perf, ppl = json.loads(done.stdout)
    assert perf["status"] == "ok" and perf["mean_latency_ms"] > 0 and perf["weights"] == "dummy"
    assert ppl["status"] == "skipped" and "dummy" in ppl["reason"] and "perplexity" not in ppl


def test_the_default_run_measures_three_precisions_and_prints_one_table(harness):
    done = harness("run", "--output-dir", "out", "--num-chunks", 2, "--num-iterations", 2, "--output-len", 4)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split()[1:] for line in done.stdout.splitlines() if "grouped_mm" in line}
    assert list(rows) == ["bf16", "fp8", "nvfp4"]
    assert rows["bf16"][1] == "native" and rows["fp8"][1] == rows["nvfp4"][1] == "emulated"
    assert rows["fp8"][2:6] == ["-"] * 4, "no speed for an emulated row"
    assert "emulated rows have no speed" in done.stdout and "skipped hf tinymoe fp8 perf" in done.stdout
    records = {(record["workload"], record["precision"]): record for record in harness.records()}
    assert len({records["ppl", name]["conditions"]["token_ids_sha256"] for name in rows}) == 1, (
        "the same tokens for all"
    )
    perf = records["perf", "bf16"]
    assert all(len(line["ns"]) == 4 for iteration in perf["raw"]["token_ns"] for line in iteration)
    views = harness.folder.glob("out/hf/tinymoe/TP1_EP1_auto/perf_bf16_*.json")
    assert [json.loads(view.read_text()) for view in views] == [perf]
