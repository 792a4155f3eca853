"""A harness plugin of the double's own: with `SGLANG_DOUBLE=gpu` this machine passes for one with a GPU, by a name that
no record can be taken for a real one's."""

from __future__ import annotations

import os
from dataclasses import replace

from harness import device

NAME = "no GPU: SGLang's double on a CPU"

if "gpu" in os.environ.get("SGLANG_DOUBLE", "").split(","):
    here = device.detect()
    stand_in = replace(here, kind="cuda", name=NAME, count=8, sm=90, driver=None, power_limit_w=0.0, flags=())
    device.detect = lambda: stand_in
