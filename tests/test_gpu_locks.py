"""No GPU is ever shared by two loads, be they of one run or of two, whatever its name is in either."""

import tempfile
import threading
from pathlib import Path

import pytest

from harness.cells import Cell, Load, Setup
from harness.launcher import Control, Job, Stopped
from harness.launchers import local
from harness.precision import Support

NAMES = {"0": "GPU-a", "GPU-a": "GPU-a", "1": "GPU-b"}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(local, "identities", lambda gpus: [NAMES[name] for name in gpus.split(",") if name])


def launcher(*gpus: str) -> local.Local:
    return local.Local(2, [{"CUDA_VISIBLE_DEVICES": name} for name in gpus], is_gpu=True)


def job(tp: int = 1) -> Job:
    setup = Setup("echo", "m", "m", "bf16", tp=tp)
    return Job(Load(setup, (Cell(setup, "perf", {}, Support("native")),), "native"), "python", Path("log"), 1.0)


def control(is_stopping: bool = False) -> Control:
    stop = threading.Event()
    if is_stopping:
        stop.set()
    return Control(lambda load, event: None, stop)


def is_free(of: local.Local, tp: int = 1) -> bool:
    """Whether a load would get its GPUs now."""
    try:
        with of._held(job(tp), control(is_stopping=True)):
            return True
    except Stopped:
        return False


def test_a_gpu_is_one_loads_own_within_a_run_and_between_two():
    one, other = launcher("0", "1"), launcher("GPU-a")
    assert is_free(one, tp=2) and is_free(other)
    with one._held(job(), control()) as env:
        assert env == {"CUDA_VISIBLE_DEVICES": "0"}
        assert not is_free(other), "the other run calls the same GPU by another name"
        assert is_free(one) and not is_free(one, tp=2)
    assert is_free(other) and is_free(one, tp=2)


def test_who_waits_goes_on_when_the_gpu_is_let_go():
    one, other, got = launcher("0"), launcher("GPU-a"), threading.Event()

    def wait() -> None:
        with other._held(job(), control()):
            got.set()

    with one._held(job(), control()):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(3 * local.POLL_S)
    waiting.join(30)
    assert got.is_set()
