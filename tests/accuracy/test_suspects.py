"""Planted damage is found and named; a format's rounding is not called damage."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from real import MODEL, Output, open_session, scored
from safetensors.torch import load_file, save_file

from harness.accuracy.divergence import Divergence
from harness.accuracy.routing import Drift
from harness.accuracy.rows import align
from harness.accuracy.suspects import Residuals, suspects
from harness.accuracy.words import in_words

VOCABULARY = 2048


def compare(reference: Output, actual: Output) -> tuple[list[dict], Drift]:
    divergence, residuals, drift = Divergence(), Residuals(VOCABULARY), Drift(8, (0, 1, 2, 3))
    for sequence, (expected, found) in enumerate(zip(reference.rows, actual.rows)):
        both = align(expected, found)
        divergence.add(both, sequence, 1)
        residuals.add(both)
        drift.add(expected.chosen, found.chosen)
    return suspects(divergence.positions(), drift.sets(), drift.layers, residuals), drift


@pytest.fixture
def planted(tmp_path):
    def plant(damage) -> Output:
        """tinymoe with damaged weights, scored in BF16."""
        folder = shutil.copytree(MODEL.path, tmp_path / "damaged")
        weights = load_file(folder / "model.safetensors")
        damage(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return scored(open_session("bf16", checkpoint=str(folder)))

    return plant


@pytest.mark.parametrize(("layer", "expert", "factor"), [(1, 5, 1.5), (0, 2, 0.5), (3, 7, 1.2)])
def test_an_expert_with_scaled_weights_is_named(outputs, planted, layer, expert, factor):
    def damage(weights):
        weights[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"] *= factor

    (found,), _ = compare(outputs["bf16"], planted(damage))
    assert (found["what"], found["layer"], found["expert"]) == ("expert", layer, expert)
    assert found["times"] > 3
    assert in_words(found).startswith(f"expert {expert} of layer {layer}: KL ")


@pytest.mark.parametrize(("layer", "pair"), [(2, (3, 6)), (0, (0, 1))])
def test_exchanged_rows_of_a_router_are_named(outputs, planted, layer, pair):
    def damage(weights):
        gate = weights[f"model.layers.{layer}.mlp.gate.weight"]
        gate[list(pair)] = gate[list(pair[::-1])].clone()

    (found,), drift = compare(outputs["bf16"], planted(damage))
    assert (found["what"], found["layer"], tuple(found["experts"])) == ("routing", layer, pair)
    assert all(row["changed"] == 0 for row in drift.summary()["layers"][:layer]), "no layer above it is touched"


@pytest.mark.parametrize(("token", "offset"), [(199, 0.7), (17, -1.5)])
def test_a_shifted_logit_is_named_with_its_offset(outputs, token, offset):
    rows = [dataclasses.replace(row, values=row.values.clone()) for row in outputs["bf16"].rows]
    for row in rows:
        row.values[:, token] += offset
    (found,), _ = compare(outputs["bf16"], Output(rows))
    assert (found["what"], found["token"]) == ("logit", token)
    assert found["offset"] == pytest.approx(offset, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp8", "fp8_block", "nvfp4", "mxfp4"])
def test_rounding_is_not_called_damage(outputs, precision):
    found, _ = compare(outputs["bf16"], outputs[precision])
    assert found == []


@pytest.mark.parametrize("precision", ["fp8", "mxfp4"])
def test_routing_drift_is_what_counting_says(outputs, precision):
    sides = [
        np.sort(torch.cat([rows.chosen for rows in outputs[name].rows], dim=1).numpy(), -1)
        for name in ("bf16", precision)
    ]
    _, drift = compare(outputs["bf16"], outputs[precision])
    found = drift.summary()
    changed = (sides[0] != sides[1]).any(-1)
    stayed = np.array([[len(set(a) & set(b)) / 2 for a, b in zip(*layer)] for layer in zip(*sides)])
    assert found["changed"] == pytest.approx(changed.any(0).mean())
    assert found["agreement"] == pytest.approx(stayed.mean())
    for index, row in enumerate(found["layers"]):
        loads = [np.bincount(side[index].ravel(), minlength=8) for side in sides]
        assert row["layer"] == index and row["changed"] == pytest.approx(changed[index].mean())
        assert (row["load_reference"], row["load"]) == (loads[0].tolist(), loads[1].tolist())
        assert row["imbalance"] == pytest.approx(loads[1].max() / loads[1].mean())
        assert row["agreement"] == pytest.approx(stayed[index].mean())


def test_chosen_experts_are_those_of_transformers_routers(bf16):
    ids = torch.tensor([range(5, 45)], device=bf16._device)
    with torch.inference_mode():
        routers = bf16._model(input_ids=ids, output_router_logits=True).router_logits
    expected = torch.stack([logits.topk(2, dim=-1).indices.sort(-1).values for logits in routers])[:, :-1]
    (piece,) = bf16.score_logits(ids.tolist(), 1)
    agree = (piece.chosen.cpu().sort(-1).values == expected.cpu()).all(-1).double().mean()
    assert (piece.layers, piece.num_experts) == ((0, 1, 2, 3), 8)
    assert agree > 0.98  # products rounded otherwise may tip a token between two experts
