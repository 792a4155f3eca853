"""What a host sends, taken apart on the driver: lines go on, the log and the files of profiles are written here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.cells import Load


def frames(answers: Iterable[str | bytes], load: Load, log: Path) -> Iterator[dict[str, Any]]:
    """The lines that say something. The log is added to `log`; files go into the folders of the load's profiles, which
    are emptied first: what an earlier run left must not be taken for this one's."""
    folders = [Path(path).parent for path in load.profiles]
    for folder in folders:
        _empty(folder)
    answers = iter(answers)
    for line in answers:
        frame = json.loads(line)
        content = _content(answers, frame.get("size", 0))
        if frame.get("log"):
            with suppress(OSError), log.open("ab") as file:  # a full disk costs the log, not what was measured
                file.writelines(content)
        elif "file" in frame:
            with suppress(OSError):
                _write(folders[frame["of"]], frame["file"], content)
        else:
            yield frame
        with suppress(OSError):
            for _ in content:  # what could not be written is in the way of the next line
                pass


def _content(answers: Iterator[str | bytes], size: int) -> Iterator[bytes]:
    """Raises OSError where the node is lost before the end."""
    while size > 0:
        if not (chunk := next(answers, b"")):
            raise OSError(f"{size} bytes did not come")
        size -= len(chunk)
        yield chunk


def _write(folder: Path, name: str, content: Iterator[bytes]) -> None:
    """All of it or none. Raises OSError, for a name that leads out of the folder, too."""
    if Path(name).name != name or name in (".", ".."):
        raise OSError(f"{name!r} is no file name")
    path, part = folder / name, folder / f".{name}.part"
    try:
        with part.open("wb") as file:
            file.writelines(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
