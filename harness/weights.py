"""Which weights these are: a name that two engines, or two days, share only when the weights are the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

HASHED_WHOLE = 256 << 20  # bytes; of a larger file the ends and the size are hashed


def fingerprint(model: str, weights: str, seed: int) -> str | None:
    """`dummy, seed N`, or a sha256 over names, sizes and contents of the safetensors files of a folder or of a hub
    id's snapshot in the local cache. None when there are none, or when they cannot be read."""
    if weights == "dummy":
        return f"dummy, seed {seed}"
    digest = hashlib.sha256()
    try:
        files = sorted(_folder(model).glob("*.safetensors"))
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


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(model, "config.json")
    except (ImportError, ValueError):  # not installed, or no hub id
        config = None
    return Path(config).parent if isinstance(config, str) else Path(model)
