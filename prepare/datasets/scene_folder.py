"""Writing a prepared scene: links to the user's photos, masks of our own, `queries.json`, and `transforms.json` last.

The user's files are only read. Whatever was interrupted is completed by running the same command again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from prepare.atomic_write import write_json, write_with
from prepare.errors import InputError, UsageError
from prepare.foreground import foreground_alpha
from prepare.image import image_size, read_image, write_mask
from prepare.scene import QUERIES_VERSION, read_json_object

RECORD = "prepare.json"
RECORD_VERSION = 1

Progress = Callable[[str, int, int], None]
"""Called with the scene's name, how many of its files are done, and how many there are."""


def no_progress(name: str, done: int, total: int) -> None:
    """Reports to nobody."""


@dataclass
class SceneWriter:
    """Collects what a scene holds while its files are put in place; `finish` makes it a scene.

    Until `finish` a folder holds no new transforms.json, so an interrupted preparation is never taken for a whole one.
    """

    folder: Path
    source: Path  # the dataset's folder, absolute
    kind: str  # the command that prepared it
    copy: bool  # copy the photos instead of linking them
    config: Mapping[str, Any]  # what else the command was told, for the record
    frames: list[dict[str, Any]] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder.resolve() in (self.source, *self.source.parents):
            raise UsageError(
                f"{self.folder}: the scene would be written over the dataset itself; choose another --workspace"
            )
        record = self.folder / RECORD
        if record.is_file():
            before = read_json_object(record)
            if before.get("source") != str(self.source) or before.get("kind") != self.kind:
                raise UsageError(
                    f"{self.folder}: was prepared from {before.get('source')};"
                    " choose another --workspace, or delete this folder"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UsageError(
                f"{self.folder}: holds files that `splatad prepare` did not write; choose another --workspace"
            )
        self._write_record(complete=False)

    def place(self, source: Path, name: PurePosixPath) -> str:
        """`name`, now a link to (or copy of) `source` in the scene; what is already right is left alone."""
        target = self.folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self.copy and _link(source, target):
                return name.as_posix()
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written ({error.strerror or error}); choose another --workspace"
            ) from error
        if target.is_symlink() or not _is_copy_of(target, source):
            write_with(target, lambda temporary: shutil.copy2(source, temporary))
        return name.as_posix()

    def finish(self, header: Mapping[str, Any]) -> Path:
        """The folder, made a scene: queries.json, the record and, last, transforms.json are written."""
        if not self.frames:
            raise InputError(
                f"{self.source}: none of its listed photos is there"
                + (f", the first is {self.missing[0]}" if self.missing else "")
                + "; copy the dataset again"
            )
        write_json(self.folder / "queries.json", {"version": QUERIES_VERSION, "queries": self.queries})
        self._write_record(complete=True)
        write_json(self.folder / "transforms.json", {**header, "frames": self.frames})
        return self.folder

    def _write_record(self, *, complete: bool) -> None:
        write_json(
            self.folder / RECORD,
            {
                "version": RECORD_VERSION,
                "kind": self.kind,
                "source": str(self.source),
                "copy": self.copy,
                **self.config,
                "complete": complete,
                "missing": self.missing,
            },
        )


def read_missing(scene_folder: Path) -> tuple[str, ...]:
    """The files that the dataset of a prepared scene lists and does not have, by their names there."""
    missing = read_json_object(scene_folder / RECORD).get("missing", [])
    return tuple(str(name) for name in missing)


def read_summary(scene_folder: Path) -> tuple[str, ...]:
    """What its preparation has to say about a scene, line by line; nothing for most kinds."""
    return tuple(str(line) for line in read_json_object(scene_folder / RECORD).get("summary", []))


def prepared_kind(scene_folder: Path) -> str | None:
    """Which `splatad prepare` made the scene ("mesh", "mad-sim", ...); None for a folder of someone else's."""
    record = scene_folder / RECORD
    return str(read_json_object(record).get("kind")) if record.is_file() else None


def intrinsics(width: int, height: int, fl_x: float, fl_y: float) -> dict[str, Any]:
    """nerfstudio's keys for a pinhole camera whose principal point is the image's centre; lengths in px."""
    return {
        "camera_model": "OPENCV",
        "fl_x": fl_x,
        "fl_y": fl_y,
        "cx": width / 2,
        "cy": height / 2,
        "w": width,
        "h": height,
    }


def share_intrinsics(frames: Sequence[dict[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """Moves those of `keys` on which all frames agree out of the frames, and returns them for the file's head."""
    shared = {}
    for key in list(keys):
        values = [frame.get(key) for frame in frames]
        if values and values[0] is not None and all(value == values[0] for value in values):
            shared[key] = values[0]
            for frame in frames:
                del frame[key]
    return shared


def write_foreground_masks(
    photos: Mapping[PurePosixPath, Path], folder: Path, done: Callable[[], None]
) -> dict[PurePosixPath, bool]:
    """For each mask name whether there is a mask now: written from the photo's foreground, none for a cluttered photo.

    A mask that is younger than its photo and of its size is kept. `done` is called after each photo, from any thread.
    """

    def write(item: tuple[PurePosixPath, Path]) -> tuple[PurePosixPath, bool]:
        name, photo = item
        made = _write_foreground_mask(photo, folder / name)
        done()
        return name, made

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(pool.map(write, photos.items()))


def _write_foreground_mask(photo: Path, mask_path: Path) -> bool:
    if mask_path.is_file() and mask_path.stat().st_mtime_ns >= photo.stat().st_mtime_ns:
        try:
            if image_size(mask_path) == image_size(photo):
                return True
        except InputError:
            pass  # not whole: written again below, where the photo itself is judged
    foreground = foreground_alpha(read_image(photo).rgb)
    if foreground.background is None:
        mask_path.unlink(missing_ok=True)
        return False
    write_mask(mask_path, foreground.alpha)
    return True


def _link(source: Path, target: Path) -> bool:
    """True where `target` is now a symbolic link to `source`; False where this file system has no links."""
    if target.is_symlink() and target.readlink() == source:
        return True
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        temporary.symlink_to(source)
        temporary.replace(target)
    except (OSError, NotImplementedError):
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _is_copy_of(target: Path, source: Path) -> bool:
    if not target.is_file():
        return False
    ours, theirs = target.stat(), source.stat()
    return ours.st_size == theirs.st_size and ours.st_mtime_ns == theirs.st_mtime_ns
