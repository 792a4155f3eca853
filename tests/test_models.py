"""What is known of the models that have a short name: enough to plan with, and true."""

from __future__ import annotations

import json
import re

import pytest

from harness import UsageError
from harness.model.models import known, resolve
from harness.model.shape import shape_of
from harness.model.weights import config_of

# By the makers' own layer sizes, counted apart from harness/model/shape.py; routers' correction biases included.
PARAMETERS = {
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "deepseek-v3.1": 671_026_419_200,
    "minimax-m2": 228_689_764_864,
    "kimi-k2-thinking": 1_026_408_232_448,
    "glm-4.6": 352_797_829_024,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "mixtral-8x7b": 46_702_792_704,
}


def test_every_model_on_the_hub_has_facts():
    assert {model.name for model in known().values() if model.config} == PARAMETERS.keys()
    assert [name for name, model in known().items() if not model.config] == ["tinymoe"], "which is a folder"


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_facts_of_a_model_count_to_its_published_total(name):
    parameters = shape_of(known()[name].config).parameters
    assert parameters == pytest.approx(PARAMETERS[name], rel=1e-6)
    in_words = re.match(r"([\d.]+) B parameters", known()[name].summary)
    assert parameters / 1e9 == pytest.approx(float(in_words[1]), rel=0.002), "what `list models` says"


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_facts_of_a_model_say_what_preflight_asks(name):
    config = known()[name].config
    for key in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
        assert config[key] > 0
    assert all(type(part) is int for part in shape_of(config).weights.values())


def test_a_model_is_planned_with_where_only_its_name_is_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("glm-4.6").path == "zai-org/GLM-4.6"
    assert config_of("zai-org/GLM-4.6") == config_of("glm-4.6") == known()["glm-4.6"].config
    assert config_of("nobody/knows-this") is None


def test_the_real_file_wins_over_what_is_known(monkeypatch, tmp_path):
    snapshot = tmp_path / "models--zai-org--GLM-4.6" / "snapshots" / "a1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a1")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "of the hub"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert config_of("zai-org/GLM-4.6") == {"model_type": "of the hub"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of a folder"}))
    assert config_of(str(tmp_path)) == {"model_type": "of a folder"}


def test_a_name_nobody_knows_is_refused_with_those_near_it():
    with pytest.raises(UsageError, match="glm-4.6"):
        resolve("glm-4.5")
