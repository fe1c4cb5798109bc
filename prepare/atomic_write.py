"""Files that appear whole or not at all: written under a temporary name beside the target, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prepare.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically; parent folders are made.

    Raises: InputError where the disk is full or the folder cannot be written; nothing half-written stays.
    """
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Replace `path` by `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file of the same suffix, then rename it to `path`.

    Raises: InputError for what the file system refuses (no space, no permission, not a folder).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)  # mkstemp's file is its owner's alone
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        temporary = None
    except (OSError, SafetensorError) as error:
        # safetensors wraps what the system says in an error of its own, with the number only in its text
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
        if full:
            raise InputError(
                f"{path}: no space left on the disk; free some, then run the same command again"
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be written ({reason}); choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
