"""The border between processes is strict: what is not exactly the type is refused, with its place."""

import pytest

from harness.cells import Cell, InputFile, Load, Setup
from harness.precision import Support
from harness.serde import from_json, to_json

SETUP = Setup(engine="hf", model="m", path="/m", precision="fp8", tp=2)
LOAD = Load(
    SETUP,
    (Cell(SETUP, "perf", {"batch_size": 1, "dataset": "x"}, Support("native", "why")),),
    "native",
    (InputFile("/f"),),
)


def test_a_load_survives_the_way_to_the_worker():
    assert from_json(Load, to_json(LOAD)) == LOAD


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda data: data["setup"].update(tp="2"), r"\$\.setup\.tp: expected int, got '2'"),
        (lambda data: data["setup"].update(tp=True), r"\$\.setup\.tp: expected int, got True"),
        (lambda data: data["setup"].update(speed=1), r"\$\.setup\.speed: unknown key"),
        (lambda data: data["setup"].pop("model"), r"\$\.setup\.model: missing"),
        (lambda data: data["cells"][0].update(support=3), r"\$\.cells\[0\]\.support: expected an object"),
        (lambda data: data["inputs"][0].update(path=3), r"\$\.inputs\[0\]\.path: expected str"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change, complaint):
    data = to_json(LOAD)
    change(data)
    with pytest.raises(ValueError, match=complaint):
        from_json(Load, data)


def test_only_data_becomes_json():
    with pytest.raises(TypeError, match="not data"):
        to_json({"x": object()})
