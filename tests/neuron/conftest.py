"""NxD Inference's double: on the path of every worker these tests start. What needs it in one process is collected where
it already is, which test_neuron_beside_hf.py sees to."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

DOUBLE = Path(__file__).parents[1] / "doubles/neuron"
_found = [distribution.version for distribution in metadata.distributions(name="neuronx-distributed-inference")]
collect_ignore = [] if any(version.endswith("+double") for version in _found) else ["test_neuron_sessions.py"]


@pytest.fixture(scope="session")
def double_env(tmp_path_factory) -> dict[str, str]:
    """An environment in which NxD Inference is the double, and compiled models are kept for these tests only."""
    paths = [str(DOUBLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "HARNESS_NEURON_CACHE": str(tmp_path_factory.mktemp("compiled"))}
