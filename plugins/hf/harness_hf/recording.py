"""A profiler's view of the HF engine: steps and modules in ranges of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from harness.profilers.ranges import MARKS, modules_marked, window
from harness_hf.decode import Decoder
from harness_hf.generation import unmarked


@contextmanager
def recording(model: PreTrainedModel, decoder: Decoder, profiler: str, folder: Path) -> Iterator[None]:
    """See harness.engine.Session. Modules are seen where they run eagerly; a compiled step is one range."""
    mark = MARKS[profiler]
    with modules_marked(model, mark), window(profiler, str(folder / "rank0.json.gz")):
        decoder.mark = mark
        try:
            yield
        finally:
            decoder.mark = unmarked
