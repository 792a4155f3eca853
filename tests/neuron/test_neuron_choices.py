"""What is decided before NxD Inference starts: precisions by device, shapes of graphs, places of what was compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness_neuron import compiled, support
from harness_neuron.compiled import Shape

from harness import LoadFailed, Setup, Unsupported, device
from harness.cells import Cell, InputFile, Load
from harness.commands.doctor import _text
from harness.device import Device
from harness.precision import NATIVE, PRECISIONS, UNSUPPORTED, Support
from harness.serde import to_json

TRN2 = Device("neuron", "trn2.48xlarge", 16, None)
CPU = Device("cpu", "a CPU", 2, None)


def load_of(*cells: tuple[str, dict], inputs: tuple[int, ...] = (), **setup: object) -> Load:
    setup = Setup(**{"engine": "neuron", "model": "m", "path": "p", "precision": "bf16", **setup})
    cells = tuple(Cell(setup, name, parameters, Support(NATIVE)) for name, parameters in cells)
    return Load(setup, cells, NATIVE, tuple(InputFile("x", longest=longest) for longest in inputs))


PERF = ("perf", {"batch_size": 4, "input_len": 16, "output_len": 8})
PPL = ("ppl", {"input_len": 64, "num_chunks": 2})


def test_sixteen_and_thirty_two_bits_run_on_a_neuron_device_and_nothing_else_does():
    modes = {name: support(name, TRN2, None) for name in PRECISIONS}
    assert {name for name, answer in modes.items() if answer.mode == NATIVE} == {"bf16", "fp32"}
    assert all(answer.reason for answer in modes.values() if answer.mode == UNSUPPORTED)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sm", [75, 80, 89, 90, 100, 103, 120])
def test_no_gpu_runs_it_and_the_reason_is_what_it_runs_on(precision, sm):
    answer = support(precision, Device("cuda", "a GPU", 1, None, sm), "0.9.0+double")
    assert answer.mode == UNSUPPORTED and "runs on AWS Trainium and Inferentia" in answer.reason


def test_a_cpu_runs_the_double_alone():
    assert support("bf16", CPU, "0.9.0+double").mode == NATIVE
    for version in ("0.9.0", None):
        assert "no /dev/neuron0" in support("bf16", CPU, version).reason


def test_neuron_devices_are_counted_and_named_by_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "NEURON_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(device, "MACHINE", tmp_path / "product_name")
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    monkeypatch.setattr(device, "_first_gpu", lambda: None)
    assert device.detect().kind == "cpu"
    (tmp_path / "dev").mkdir()
    for name in ("neuron0", "neuron1", "neuron11", "neuron_monitor", "null"):
        (tmp_path / "dev" / name).touch()
    assert (device.detect().name, device.detect().label) == ("neuron", "neuron")
    (tmp_path / "product_name").write_text("trn2.48xlarge\n")
    found = device.detect()
    assert (found.kind, found.name, found.count, found.label, found.sm) == ("neuron", "trn2.48xlarge", 3, "trn2", None)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn3")
    assert device.detect().label == "trn3"


def test_doctor_calls_neuron_devices_by_their_name():
    found = {"harness": "0", "installed_at": "x", "python": "3", "device": to_json(TRN2), "engines": [], "problems": []}
    assert "device trn2.48xlarge: 16 Neuron devices, AWS Neuron" in _text(found)


def test_each_timed_cell_has_a_graph_of_its_own_shape():
    longer = ("perf", {"batch_size": 1, "input_len": 32, "output_len": 8})
    assert compiled.shapes_of(load_of(PERF, longer, PERF)) == [Shape(1, 32, 40), Shape(4, 16, 24)]
    assert compiled.shapes_of(load_of(PPL)) == [Shape(16, 64, 64)]
    evaluate = ("evaluate", {"input_len": 80, "output_lens": [8, 8]})
    assert compiled.shapes_of(load_of(evaluate)) == [Shape(1, 80, 80)]
    texts = ("baseline", {"input_len": 0, "output_len": 8})
    assert compiled.shapes_of(load_of(texts, inputs=(21,))) == [Shape(16, 21, 29)]


def test_a_request_takes_the_smallest_graph_that_holds_it_and_none_is_an_error():
    shapes = {Shape(1, 32, 40): Path("a"), Shape(4, 16, 24): Path("b"), Shape(4, 32, 64): Path("c")}
    assert compiled.fitting(shapes, 1, 16, 20) == Shape(1, 32, 40)
    assert compiled.fitting(shapes, 2, 16, 24) == Shape(4, 16, 24)
    assert compiled.fitting(shapes, 2, 16, 25) == Shape(4, 32, 64)
    with pytest.raises(Unsupported, match="5 prompts of 16 tokens, 20 in all, fit no compiled shape: 1 x 32"):
        compiled.fitting(shapes, 5, 16, 20)


def test_everything_that_goes_into_a_compiled_model_decides_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv(compiled.CACHE, str(tmp_path))
    monkeypatch.delenv(compiled.GIVEN, raising=False)

    def place(ingredients: dict, **setup: object) -> Path:
        (folder,) = compiled.places(load_of(PERF, **setup), ingredients).values()
        return folder

    base = place({"model": "a", "packages": {"x": "1"}})
    assert base == place({"packages": {"x": "1"}, "model": "a"}) and base.parent == tmp_path
    others = [
        place({"model": "b", "packages": {"x": "1"}}),
        place({"model": "a", "packages": {"x": "2"}}),
        place({"model": "a", "packages": {"x": "1"}}, precision="fp32"),
        place({"model": "a", "packages": {"x": "1"}}, tp=4),
        place({"model": "a", "packages": {"x": "1"}}, tp=4, ep=2),
    ]
    assert len({base, *others}) == 6


def test_a_folder_is_used_again_only_when_it_was_compiled_to_the_end(tmp_path, monkeypatch):
    monkeypatch.delenv(compiled.GIVEN, raising=False)
    (tmp_path / compiled.CONFIG).write_text("{}")
    assert not compiled.is_whole(tmp_path)
    compiled.mark(tmp_path, {"model": "a"}, 12.5)
    assert compiled.is_whole(tmp_path)
    assert json.loads((tmp_path / compiled.MARK).read_text()) == {"model": "a", "compile_seconds": 12.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"tp_degree": 2}, "compiled with tp_degree=2, asked for 1"),
        ({"torch_dtype": "float32"}, "compiled with torch_dtype=float32, asked for bfloat16"),
        ({"seq_len": None}, "has no model.pt"),
    ],
)
def test_a_folder_compiled_elsewhere_is_taken_when_it_is_what_was_asked_for(tmp_path, monkeypatch, change, words):
    config = {**compiled.settings(Shape(1, 32, 40), load_of(PERF)), **{k: v for k, v in change.items() if v}}
    (tmp_path / compiled.CONFIG).write_text(json.dumps({"neuron_config": config}))
    if None not in change.values():
        (tmp_path / compiled.MODEL).touch()
    monkeypatch.setenv(compiled.GIVEN, str(tmp_path))
    if words is None:
        assert compiled.places(load_of(PERF), {}) == {Shape(1, 32, 40): tmp_path}
        assert compiled.is_whole(tmp_path)
        return
    with pytest.raises(LoadFailed, match=words):
        compiled.places(load_of(PERF), {})


def test_a_folder_without_a_compiled_model_is_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv(compiled.GIVEN, str(tmp_path / "none"))
    with pytest.raises(LoadFailed, match=f"{compiled.GIVEN}={tmp_path}/none: no model compiled by NxD Inference"):
        compiled.places(load_of(PERF), {})
