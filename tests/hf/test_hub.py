"""Hub ids and the WikiText-2 dataset, through the real libraries and the caches they keep; no network is asked."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import load_dataset

from harness.model import models

REVISION = "0123456789abcdef0123456789abcdef01234567"
ROWS = ["", " = Robert <unk> = \n", " He is an actor who has appeared in many films . \n"] * 60
SMALL = ["--precision", "bf16", "--workload", "ppl", "--num-chunks", 2, "--input-len", 32, "--json"]


@pytest.fixture
def home(harness, tmp_path) -> Path:
    """The folder where Hugging Face's libraries keep what they have fetched."""
    folder = tmp_path / "huggingface"
    harness.env |= {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return folder


def test_a_hub_id_is_opened_from_the_hubs_own_cache(harness, home):
    repository = home / "hub/models--someone--their-moe"
    shutil.copytree(models.DATA / "tinymoe", repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(REVISION)
    done = harness("run", "--model", "someone/their-moe", *SMALL)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert record["status"] == "ok" and record["model"] == "someone/their-moe" and record["perplexity"] > 1


def test_a_hub_id_that_cannot_be_fetched_is_load_failed(harness, home):
    done = harness("run", "--model", "someone/their-moe", *SMALL)
    (record,) = json.loads(done.stdout)
    assert done.returncode == 1 and record["failure"]["class"] == "load_failed"
    assert "couldn't find them in the cached files" in record["failure"]["message"]


def test_wikitext_is_the_test_split_with_its_rows_joined(harness, home, tmp_path):
    source = tmp_path / "source/wikitext"
    (source / "wikitext-2-raw-v1").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), source / "wikitext-2-raw-v1/test-00000.parquet")
    files = {"config_name": "wikitext-2-raw-v1", "data_files": [{"split": "test", "path": "wikitext-2-raw-v1/test-*"}]}
    (source / "README.md").write_text(f"---\nconfigs: {json.dumps([files])}\n---\n")
    load_dataset(str(source), "wikitext-2-raw-v1", cache_dir=str(tmp_path / "prepared"))
    (prepared,) = (path for path in tmp_path.glob("prepared/wikitext/*/*/*") if path.is_dir())
    shutil.copytree(prepared, home / "datasets/Salesforce___wikitext/wikitext-2-raw-v1/0.0.0" / REVISION)

    text = tmp_path / "joined.txt"
    text.write_text("\n\n".join(ROWS))
    hashes = []
    for dataset in ("wikitext", f"file:{text}"):
        done = harness("run", "--engine", "echo", "--dataset", dataset, *SMALL)  # tokens are made before any engine
        assert done.returncode == 0, done.stderr
        (record,) = json.loads(done.stdout)
        hashes.append((record["conditions"]["token_ids_sha256"], record["conditions"]["dataset_sha256"]))
    assert hashes[0] == hashes[1]


def test_wikitext_without_a_network_is_one_clear_line(harness, home):
    done = harness("run", "--dataset", "wikitext", *SMALL)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "wikitext could not be loaded" in done.stderr
