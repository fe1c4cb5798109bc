"""A folder of generated data: whose it is, with which settings it was made, and its pieces made by several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from prepare.atomic_write import write_json
from prepare.errors import UsageError

MARKER = "generator.json"

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def claim_folder(
    folder: Path,
    command: str,
    wanted: Mapping[str, Any],
    *,
    beside: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Mark `folder` as made by `command` with the settings `wanted`, or see that it is.

    `beside` is written too and not compared; `defaults` stand for settings that older folders do not name.

    Raises: UsageError where the folder is someone else's, or was made with other settings.
    """
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a folder is wanted here, got a file; choose another --out or --name")
    if not marker.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                f"{folder}: has files that `{command}` did not make, and nothing is overwritten; "
                "choose another --out or --name"
            )
        write_json(marker, {**wanted, **(beside or {})})
        return
    try:
        found = {**(defaults or {}), **json.loads(marker.read_text(encoding="utf-8"))}
        differing = [key for key, value in wanted.items() if found.get(key) != value]
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(
            f"{marker}: cannot be read as the settings of an earlier run; choose another --out or --name"
        ) from error
    if differing:
        changes = ", ".join(f"{key} was {found.get(key)!r}, now {wanted[key]!r}" for key in differing)
        raise UsageError(
            f"{folder}: was made with other settings ({changes}); give the same ones to finish it, or another --name"
        )


def check_name(name: str) -> None:
    """Raises: UsageError where `name` is no plain folder name."""
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name:
        raise UsageError(f"--name: a plain folder name is wanted, got {name!r}; leave out slashes")


def check_ranges(settings: object, ranges: Mapping[str, tuple[float | int, float | int]]) -> None:
    """Raises: UsageError for a field of `settings` that is out of its range."""
    for key, (low, high) in ranges.items():
        value = getattr(settings, key)
        if not low <= value <= high:
            raise UsageError(
                f"--{key.replace('_', '-')}: from {low} to {high} is wanted, got {value}; choose a value in that range"
            )


def make_all(make: Callable[[Piece], Made], pieces: Sequence[Piece], workers: int) -> Iterator[Made]:
    """`make` of all `pieces`, each yielded as it is done, by `workers` processes (0: one per processor)."""
    workers = min(workers or os.cpu_count() or 1, len(pieces))
    if workers <= 1:
        yield from map(make, pieces)
        return
    # A forked child of a process that used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending = {pool.submit(make, piece) for piece in pieces}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
