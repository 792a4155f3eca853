"""Which weights these are: a name that two engines, or two days, share only when the weights are the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.cells import Setup
from harness.model.models import facts_of

HASHED_WHOLE = 256 << 20  # bytes; of a larger file the ends and the size are hashed


def identity(setup: Setup) -> str | None:
    """The model's fingerprint; and of a checkpoint given for a precision that, too: `<model> as fp8 <checkpoint>`."""
    model = fingerprint(setup.path, setup.weights, setup.seed)
    if model is None or setup.checkpoint is None:
        return model
    checkpoint = fingerprint(setup.checkpoint, "real", setup.seed)
    return checkpoint and f"{model} as {setup.precision} {checkpoint}"


def same_weights(a: str, b: str) -> bool:
    """Whether two identities are of one model; and, for one precision, of one checkpoint of it."""
    (model_a, _, checkpoint_a), (model_b, _, checkpoint_b) = a.partition(" as "), b.partition(" as ")
    same_precision = checkpoint_a.partition(" ")[0] == checkpoint_b.partition(" ")[0]
    return model_a == model_b and (checkpoint_a == checkpoint_b or not same_precision)


def fingerprint(model: str, weights: str, seed: int) -> str | None:
    """`dummy, seed N`, or a sha256 over names, sizes and contents of the safetensors files of a folder or of a hub
    id's snapshot in the local cache. None when there are none, or when they cannot be read."""
    if weights == "dummy":
        return f"dummy, seed {seed}"
    digest = hashlib.sha256()
    try:
        files = sorted(folder_of(model).glob("*.safetensors"))
        for path in files:
            size = path.stat().st_size
            digest.update(json.dumps([path.name, size]).encode())
            with path.open("rb") as file:
                if size <= HASHED_WHOLE:
                    digest.update(file.read())
                else:
                    digest.update(file.read(1 << 20))
                    file.seek(size - (1 << 20))
                    digest.update(file.read())
    except OSError:
        return None
    return digest.hexdigest() if files else None


def folder_of(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(model, "config.json")
    except (ImportError, ValueError):  # not installed, or no hub id
        config = None
    return Path(config).parent if isinstance(config, str) else Path(model)


def config_of(model: str) -> dict[str, Any] | None:
    """config.json of a folder or of a hub id in the local cache. Where there is none that can be read, what is known
    here of that hub id's or short name's; else None."""
    try:
        config = json.loads((folder_of(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return facts_of(model)
    return config if isinstance(config, dict) else None
