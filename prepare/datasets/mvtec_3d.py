"""MVTec 3D-AD: photos with an (x, y, z) TIFF of the same pixels, from a structured-light sensor above a support.

    <data>/<class>/{train,validation}/good/{rgb,xyz}/NNN.{png,tiff}   <data>/<class>/test/<good|defect>/{rgb,xyz,gt}/NNN.*

Points: the support plane is removed, the rest padded to a square of a whole number of hundreds of px, the largest cluster kept
(`prepare.foreground_cloud`). Published results differ most by what is done to the photos: CFM leaves them alone (variant "rgb"),
M3DM's later script blacks them out and pads them ("rgb-blacked").
Source: Bergmann et al., MVTec 3D-AD (VISAPP 2022); the preprocessing of CFM (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from prepare.datasets.mad_sim import chosen_classes
from prepare.datasets.registered_folder import (
    Cleaned,
    PreparedClass,
    RawSample,
    Variant,
    find_classes,
    prepare_registered,
)
from prepare.datasets.scene_folder import Progress, no_progress
from prepare.errors import InputError, UsageError
from prepare.foreground_cloud import CloudSettings, keep_part
from prepare.image import IMAGE_SUFFIXES, natural_key
from prepare.organised_cloud import measured, read_xyz
from prepare.registered import GOOD, SPLITS, hundreds, pad_zero

SOURCE = "mvtec-3d"
LICENCE = "MVTec 3D-AD: CC BY-NC-SA 4.0"
_XYZ_SUFFIXES = (".tiff", ".tif")


def prepare_mvtec_3d(
    data: Path,
    class_folder: Callable[[str], Path],
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    variant: Variant = "rgb",
    cloud: CloudSettings | None = None,
    copy: bool = False,
    workers: int = 0,
    progress: Progress = no_progress,
) -> list[PreparedClass]:
    """The classes of a dataset (or the one that `data` is), each in the folder for its name.

    The name is the class's, or `name` for a single one; of the variant "rgb-blacked", with that added.

    Raises: InputError for data that is not MVTec 3D-AD's or without a usable train sample; UsageError for a class that is not
    there, one name for several, or a folder that cannot be taken.
    """
    cloud = cloud or CloudSettings()
    folders = find_classes(data, _is_class, "a folder with train/good/rgb and train/good/xyz")
    chosen = chosen_classes(data, folders, classes)
    if name is not None and len(chosen) > 1:
        raise UsageError(f"--name {name}: is for one class, got {len(chosen)}; choose it with --class")
    return [
        prepare_registered(
            class_folder(prepared_name(name or title, name, variant)),
            _samples(folders[title]),
            partial(_clean, cloud),
            name=title,
            source=SOURCE,
            data=folders[title],
            variant=variant,
            settings={"cloud": asdict(cloud)},
            licence=LICENCE,
            copy=copy,
            workers=workers,
            progress=progress,
        )
        for title in chosen
    ]


def prepared_name(title: str, name: str | None, variant: str) -> str:
    """What the folder of a class is called; both variants of a class have room beside each other."""
    return title if name is not None or variant == "rgb" else f"{title}-{variant}"


def _is_class(folder: Path) -> bool:
    return (folder / "train" / GOOD / "rgb").is_dir() and (folder / "train" / GOOD / "xyz").is_dir()


def _samples(folder: Path) -> list[RawSample]:
    """Every stem that has a photo or points."""
    found = []
    for split in SPLITS:
        if not (folder / split).is_dir():
            continue
        for group in sorted(entry for entry in (folder / split).iterdir() if entry.is_dir()):
            photos = _files(group / "rgb", IMAGE_SUFFIXES)
            clouds = _files(group / "xyz", _XYZ_SUFFIXES)
            truths = _files(group / "gt", IMAGE_SUFFIXES)
            for stem in sorted({*photos, *clouds}, key=natural_key):
                found.append(
                    RawSample(
                        split,
                        group.name,
                        stem,
                        photos.get(stem, group / "rgb" / f"{stem}.png"),
                        (clouds.get(stem, group / "xyz" / f"{stem}.tiff"),),
                        None if group.name == GOOD else truths.get(stem, group / "gt" / f"{stem}.png"),
                    )
                )
    return found


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }


def _clean(cloud: CloudSettings, sample: RawSample) -> Cleaned:
    """Raises: InputError as `read_xyz` and `keep_part`."""
    path = sample.points[0]
    raw = read_xyz(path)
    try:
        part = keep_part(raw, cloud)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    side = hundreds((raw.shape[0], raw.shape[1]))
    return Cleaned(pad_zero(part, side), measured(raw) & ~measured(part))
