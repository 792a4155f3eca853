"""Which platform is compiled for."""

from __future__ import annotations

import os


def get_platform_target() -> str:
    return os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
