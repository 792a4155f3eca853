"""Which model a baseline is of, in words that a file keeps and a later run can check."""

from __future__ import annotations

from typing import Any

import harness
from harness.accuracy.baseline import tokenizer_sha256, vocabulary_size
from harness.cells import Setup
from harness.model import models, weights


def about(model: models.Model, engine: str, precision: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Of the model as one engine runs it at one precision. Raises UsageError when its config cannot be read."""
    setup = Setup(engine=engine, model=model.name, path=model.path, precision=precision, checkpoint=checkpoint)
    return {
        "model": model.name,
        "path": model.path,
        "weights": weights.identity(setup),
        "tokenizer_sha256": tokenizer_sha256(model.path),
        "vocab_size": vocabulary_size(model.path),
        "engine": engine,
        "harness_version": harness.__version__,
    }
