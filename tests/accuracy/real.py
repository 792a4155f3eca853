"""tinymoe's real logits at every precision, over the same tokens: what the accuracy tests compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from harness_hf.session import HfSession

from harness.accuracy.rows import Rows, rows_of
from harness.cells import Cell, Load, Setup
from harness.model import models
from harness.precision import Support
from harness.working.inputs import Request, make

MODEL = models.resolve("tinymoe")
WINDOWS = make(Request(MODEL.path, "windows", 6, 96, "stdlib")).ids
PRECISIONS = ("fp32", "fp8", "fp8_block", "nvfp4", "mxfp4")


@dataclass(frozen=True)
class Output:
    """What a precision gave for every window."""

    rows: list[Rows]

    @property
    def logits(self):
        """[positions, V] float64, as numpy has it."""
        return torch.cat([rows.values for rows in self.rows]).double().numpy()


def open_session(precision: str, **setup) -> HfSession:
    setup = Setup(**{"engine": "hf", "model": "tinymoe", "path": MODEL.path, "precision": precision, **setup})
    cell = Cell(setup, "validate", {"input_len": 96, "output_len": 16}, Support("native"))
    return HfSession(Load(setup, (cell,), "native"))


def scored(session) -> Output:
    pieces = session.score_logits(WINDOWS, 2048)
    pairs = zip(WINDOWS, pieces)
    return Output([rows_of(piece, torch.tensor(ids[1:]), "").to(torch.device("cpu")) for ids, piece in pairs])
