"""From what the user typed after --model to something an engine can open. Reads no weights and asks no network."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.names import check_known

DATA = Path(__file__).parents[1] / "data"
DEFAULT = "tinymoe"


@dataclass(frozen=True)
class Model:
    name: str  # in records and tables
    path: str  # a folder or a hub id
    summary: str = ""
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)  # workload -> parameter -> value
    config: dict[str, Any] | None = None  # what of its config.json is counted with; None: read the file


@cache
def known() -> dict[str, Model]:
    """The models that have a short name; any folder or hub id works beside them."""
    rows = json.loads((DATA / "models.json").read_text(encoding="utf-8"))
    return {
        row["name"]: Model(
            name=row["name"],
            path=str(DATA / row["folder"]) if "folder" in row else row["hub_id"],
            summary=row["summary"],
            defaults=row.get("defaults", {}),
            config=row.get("config"),
        )
        for row in rows
    }


def facts_of(text: str) -> dict[str, Any] | None:
    """What is known here of the config.json of a hub id, or of a short name, in the file's own keys; else None."""
    return _facts().get(text)


def resolve(text: str) -> Model:
    """A known name, a folder, or a hub id `owner/name`. Whether a folder or hub id really holds a model is for the
    engine to say, in its own words. Raises UsageError for a bare name nobody knows."""
    if text in known():
        return known()[text]
    folder = Path(text).expanduser()
    if folder.is_absolute() or text.startswith((".", "~")) or os.path.exists(folder):
        return Model(folder.resolve().name or "model", str(folder.resolve()))
    if text.count("/") == 1 and all(text.split("/")):
        return Model(text, text)
    check_known("model", text, known())
    raise AssertionError("unreachable: check_known raises for an unknown name")


@cache
def _facts() -> dict[str, dict[str, Any]]:
    return {key: model.config for model in known().values() if model.config for key in (model.name, model.path)}
