"""tinymoe's outputs at every precision, made once for all tests of this folder."""

from __future__ import annotations

import pytest
from harness_hf.session import HfSession
from real import PRECISIONS, WINDOWS, Output, open_session, scored


@pytest.fixture(scope="session")
def bf16() -> HfSession:
    return open_session("bf16")


@pytest.fixture(scope="session")
def outputs(bf16) -> dict[str, Output]:
    found = {"bf16": scored(bf16)}
    for precision in PRECISIONS:
        session = open_session(precision)
        found[precision] = scored(session)
        session.close()
    return found


@pytest.fixture(scope="session")
def following():
    return [token for window in WINDOWS for token in window[1:]]
