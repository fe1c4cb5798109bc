"""MAD-Real: photographed parts of MAD, released (10 classes) without cameras or foreground masks.

    <data>/<class>/train/[good/]*   test/<good|type>/*   ground_truth/<type>/*_mask.*

The layout is MAD-Sim's as far as it is known; what it may differ in is borne: any suffix, any case of the folders' names,
masks called as their photo or with `_mask`, other names for the folder of masks, no folder `good` below train.
Source: github.com/EricLee0224/PAD. The cameras are our own structure from motion's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from prepare.datasets.mad_sim import chosen_classes
from prepare.datasets.photos import find_photos, prepare_photos
from prepare.datasets.scene_folder import Progress, no_progress
from prepare.errors import InputError
from prepare.image import IMAGE_SUFFIXES
from prepare.scene import GOOD

_MASK_FOLDERS = ("ground_truth", "groundtruth", "gt", "mask", "masks")


def prepare_mad_real(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    classes: Sequence[str] | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The scene folders written, one for each class of MAD-Real (or for the one class that `data` is).

    Train photos become views with cameras found from themselves, test photos queries with their true masks.
    Raises: InputError for data that is not in this form, and as `prepare_photos` (the class is named); UsageError for a
    class that is not there.
    """
    folders = find_photo_classes(data)
    written = []
    for name in chosen_classes(data, folders, classes):
        folder = folders[name]
        train, test = subfolder(folder, "train"), subfolder(folder, "test")
        assert train is not None
        (scene,) = prepare_photos(
            train,
            scene_folder,
            name=name,
            copy=copy,
            queries=test if test is not None and _has_photos(test) else None,
            kind="mad-real",
            defect_mask=mask_finder(folder),
            progress=progress,
        )
        written.append(scene)
    return written


def find_photo_classes(data: Path) -> dict[str, Path]:
    """The folders by name, sorted, that hold a folder `train` with photos; `data` may itself be one.

    Raises: InputError where there is none.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give the folder that holds the classes with --data")
    data = data.resolve()
    candidates = [data, *sorted(entry for entry in data.iterdir() if entry.is_dir())]
    found = {}
    for folder in candidates:
        train = subfolder(folder, "train")
        if train is not None and _has_photos(train):
            found[folder.name] = folder
        if found and folder == data:
            return found
    if not found:
        raise InputError(
            f"{data}: no class in it; expected CLASS/train/good/0.png and CLASS/test/good/0.png, give the folder above"
            " the classes"
        )
    return found


def mask_finder(folder: Path) -> Callable[[PurePosixPath], Path | None]:
    """Finds the true mask of `<label>/<photo>` below the class's folder of masks; None for good photos and where none is."""
    masks = next((found for name in _MASK_FOLDERS if (found := subfolder(folder, name)) is not None), None)

    def find(query: PurePosixPath) -> Path | None:
        if masks is None or len(query.parts) < 2 or query.parts[0].lower() == GOOD:
            return None
        stems = (f"{query.stem}_mask", query.stem)
        for stem in stems:
            for suffix in IMAGE_SUFFIXES:
                candidate = masks / query.with_name(stem + suffix)
                if candidate.is_file():
                    return candidate
        return None

    return find


def subfolder(folder: Path, name: str) -> Path | None:
    """The folder of that name, in any case of its letters; None where there is none."""
    return next(
        (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.lower() == name), None
    )


def _has_photos(folder: Path) -> bool:
    try:
        return bool(find_photos(folder))
    except InputError:
        return False
