"""PIAD: parts under changing light, rendered (PIAD-synt) or filmed (PIAD-real), with cameras and foreground masks.

    <data>/<class>/transforms[_train].json   train/[good/]*   test/<good|type>/*   ground_truth/<type>/*_mask.*
    and foreground masks in a folder such as train_mask/ or masks/train/, or named by transforms.json itself.

Its folder tree is not published in what we know; this reads the form that its baseline code takes from MAD-Sim, and bears
what `mad_real` bears. A class without a transforms.json gets cameras by our own structure from motion.
Source: github.com/Kaichen-Yang/piad_baseline; PIAD, CVPR 2025, tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from prepare.camera import to_opengl_cam_to_world
from prepare.datasets.mad_real import find_photo_classes, mask_finder, subfolder
from prepare.datasets.mad_sim import chosen_classes
from prepare.datasets.photos import find_photos, lens_entry, prepare_photos
from prepare.datasets.scene_folder import (
    Progress,
    SceneWriter,
    no_progress,
    share_intrinsics,
    write_foreground_masks,
)
from prepare.errors import InputError
from prepare.image import IMAGE_SUFFIXES
from prepare.scene import load_scene
from prepare.undistort import Distortion

_CAMERA_FILES = ("transforms.json", "transforms_train.json", "train/transforms.json")
_FOREGROUND_FOLDERS = (
    "train_mask",
    "train_masks",
    "masks/train",
    "mask/train",
    "foreground/train",
    "masks",
    "mask",
)
_LENS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "p1", "p2")


def prepare_piad(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    classes: Sequence[str] | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The scene folders written, one for each class of PIAD (or for the one class that `data` is).

    Raises: InputError where a class's photos or cameras cannot be used; UsageError for a class that is not there.
    """
    folders = find_photo_classes(data)
    return [
        _prepare_class(name, folders[name], scene_folder, copy, progress)
        for name in chosen_classes(data, folders, classes)
    ]


def _prepare_class(
    name: str, folder: Path, scene_folder: Callable[[str], Path], copy: bool, progress: Progress
) -> Path:
    test = subfolder(folder, "test")
    try:
        tests = [] if test is None else find_photos(test)
    except InputError:  # a folder without photos
        tests = []
    cameras = next((folder / file for file in _CAMERA_FILES if (folder / file).is_file()), None)
    find_defect = mask_finder(folder)
    if cameras is None:
        train = subfolder(folder, "train")
        assert train is not None
        return prepare_photos(
            train,
            scene_folder,
            name=name,
            copy=copy,
            queries=test if tests else None,
            kind="piad",
            defect_mask=find_defect,
            progress=progress,
        )[0]

    source = load_scene(cameras)
    writer = SceneWriter(scene_folder(name), folder, "piad", copy, {"cameras": cameras.name})
    writer.missing.extend(source.missing)
    total, done = len(source.views) + len(tests), 0
    without_mask: dict[PurePosixPath, Path] = {}
    frame_of: dict[PurePosixPath, dict[str, Any]] = {}
    for view in source.views:
        photo = PurePosixPath(view.image_path.relative_to(folder).as_posix())
        entry: dict[str, Any] = {
            "file_path": writer.place(view.image_path, PurePosixPath("images") / photo),
            "transform_matrix": to_opengl_cam_to_world(view.camera.world_to_cam.double()).tolist(),
            **lens_entry(view.camera, view.distortion or Distortion()),
        }
        mask = view.mask_path or _foreground_mask(folder, photo)
        wanted = (PurePosixPath("masks") / photo).with_suffix(".png" if mask is None else mask.suffix)
        if mask is None:
            without_mask[wanted], frame_of[wanted] = view.image_path, entry
        else:
            entry["mask_path"] = writer.place(mask, wanted)
        writer.frames.append(entry)
        done += 1
        progress(name, done, total)
    for wanted, there in write_foreground_masks(without_mask, writer.folder, lambda: None).items():
        if there:
            frame_of[wanted]["mask_path"] = wanted.as_posix()

    for relative in tests:
        assert test is not None
        defect = find_defect(relative)
        writer.queries.append(
            {
                "file_path": writer.place(test / relative, PurePosixPath("images/test") / relative),
                "label": relative.parts[0] if len(relative.parts) > 1 else "",
                "mask_path": None
                if defect is None
                else writer.place(
                    defect, (PurePosixPath("ground_truth") / relative).with_suffix(defect.suffix)
                ),
            }
        )
        done += 1
        progress(name, done, total)
    return writer.finish(share_intrinsics(writer.frames, _LENS))


def _foreground_mask(folder: Path, photo: PurePosixPath) -> Path | None:
    """The mask of a train photo, called as it (or with `_mask`), at the same place below one of the known folders."""
    below = PurePosixPath(*photo.parts[1:]) if photo.parts[0].lower() == "train" else photo
    for name in _FOREGROUND_FOLDERS:
        for place in dict.fromkeys((below, PurePosixPath(photo.name))):
            for stem in (photo.stem, f"{photo.stem}_mask"):
                for suffix in IMAGE_SUFFIXES:
                    candidate = folder / name / place.with_name(stem + suffix)
                    if candidate.is_file():
                        return candidate
    return None
