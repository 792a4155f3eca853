"""Neuron holds the contract of every engine. Run where NxD Inference is: real on Trainium, or its double by tests/neuron,
where a folder stands in for the one that holds the device files."""

import pytest

from harness import device
from harness.testing import LogitsConformance


@pytest.fixture(scope="module", autouse=True)
def neuron_device(tmp_path_factory):
    if device.detect().kind == "neuron":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "NEURON_DEVICES", folder := tmp_path_factory.mktemp("dev"))
        (folder / "neuron0").touch()
        yield


class TestNeuron(LogitsConformance):
    engine_name = "neuron"
