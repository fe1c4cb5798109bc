"""Photos out of a video file: the sharpest frame of each stretch, read through imageio's ffmpeg plugin."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from prepare.atomic_write import write_bytes, write_json
from prepare.camera import fit_within
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.image import resize
from prepare.photo_choice import LOOK_PX, sharpness
from prepare.scene import read_json_object

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp")
_QUALITY = 95  # of the JPEG files


def sharpest_frames(
    video: Path, folder: Path, count: int, done: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """`count` JPEG files in `folder` (fewer for a shorter video), in time's order: of equal stretches the sharpest frames.

    Frames made of the same video before are used again. `done` is told of frames read, and how many there are.
    Raises: MissingPartError without the plugin; InputError for a file that it cannot read; UsageError for count < 2.
    """
    if count < 2:
        raise UsageError(f"--frames: must be 2 or more, got {count}")
    if video.stat().st_size == 0:
        raise InputError(f"{video}: is empty (0 bytes); copy the video again")
    status = video.stat()
    state = {"video": str(video), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "count": count}
    state_path = folder / "frames.json"
    if state_path.is_file():
        before = read_json_object(state_path)
        files = [folder / str(name) for name in before.get("files", [])]
        if (
            {key: before.get(key) for key in state} == state
            and files
            and all(file.is_file() for file in files)
        ):
            return files

    read, total = _open(video)
    stretch = max(1.0, total / count)
    files = []
    best: tuple[float, int, Any] | None = None
    current = 0
    try:
        for index, frame in enumerate(read):
            done(min(index + 1, total), total)
            if int(index / stretch) != current and best is not None:
                files.append(_write(folder, best[1], best[2]))
                best, current = None, int(index / stretch)
            grey = torch.from_numpy(frame).float().mean(dim=-1, keepdim=True) / 255.0
            sharp = sharpness(resize(grey, *fit_within(frame.shape[1], frame.shape[0], LOOK_PX))[..., 0])
            if best is None or sharp > best[0]:
                best = sharp, index, frame.copy()
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, StopIteration, IndexError) as error:
        raise _unreadable(video, error) from error
    if best is not None:
        files.append(_write(folder, best[1], best[2]))
    if not files:
        raise InputError(f"{video}: has no frames that can be read; record or export it again")
    write_json(state_path, {**state, "files": [file.name for file in files]})
    return files


def _open(video: Path) -> tuple[Any, int]:
    """An iterator over upright RGB frames, and about how many there are."""
    try:
        import imageio.v3 as imageio

        importlib.import_module("imageio_ffmpeg")  # imageio would tell of its absence late, and at length
    except ImportError as error:
        raise MissingPartError(
            f"{video}: reading a video needs imageio's ffmpeg plugin; pip install 'splatad[photos]', or give a folder of"
            " photos"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            about = imageio.immeta(video, plugin="FFMPEG")
            frames = round(float(about["fps"]) * float(about["duration"]))
            return imageio.imiter(video, plugin="FFMPEG"), max(1, frames)
    except (OSError, RuntimeError, ValueError, KeyError, IndexError, OverflowError, StopIteration) as error:
        raise _unreadable(video, error) from error


def _unreadable(video: Path, error: BaseException) -> InputError:
    # imageio repeats all that ffmpeg said, its version first and what is wrong last.
    said = [line.strip() for line in str(error).splitlines() if line.strip().strip("=")]
    reason = (said[-1].rpartition(": ")[2] if said else type(error).__name__)[:120]
    return InputError(f"{video}: is not a video that ffmpeg can read ({reason}); export it as MP4 (H.264)")


def _write(folder: Path, index: int, frame: Any) -> Path:
    path = folder / f"frame_{index:06d}.jpg"
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    write_bytes(path, buffer.getvalue())
    return path
