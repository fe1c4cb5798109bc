"""Writing a class of registered photos and points (`prepare.registered`): links to the user's photos, points of our own.

A sample that cannot be used is refused with a line and the others go on. A sample is done once its points are there, younger
than all its files: whatever was interrupted is completed by running the same command again. class.json is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from prepare.atomic_write import write_json, write_with
from prepare.datasets.scene_folder import RECORD, Progress, no_progress, place_file
from prepare.errors import InputError, UsageError
from prepare.generate.made_folder import MARKER, make_all
from prepare.image import image_size, read_mask_share
from prepare.organised_cloud import measured, write_xyz, xyz_size
from prepare.registered import (
    GOOD,
    PX,
    SPLITS,
    VARIANTS,
    RegisteredClass,
    check_count,
    nearest,
    pad_zero,
    read_levels,
    write_class,
)

Variant = Literal["rgb", "rgb-blacked"]
OWN_LICENCE = "made by splatad generate registered"


@dataclass(frozen=True)
class RawSample:
    """One sample of a dataset, as it lies there; every path may be missing on disk."""

    split: str
    defect: str
    stem: str
    rgb: Path
    points: tuple[Path, ...]  # all files its points come from
    gt: Path | None  # of a sample with a defect

    @property
    def name(self) -> str:
        return f"{self.split}/{self.defect}/{self.stem}"

    def at(self, what: str, suffix: str) -> str:
        """Its file's name in the prepared class, in MVTec 3D-AD's layout."""
        return f"{self.split}/{self.defect}/{what}/{self.stem}{suffix}"


@dataclass(frozen=True)
class Cleaned:
    """A sample's points once the background is gone."""

    xyz: Float[np.ndarray, "side side xyz=3"]  # metres, padded
    removed: Bool[np.ndarray, "h w"]  # True where a point of the sample was taken away; of the photo's size


@dataclass(frozen=True)
class Refused:
    name: str
    why: str  # one line


@dataclass(frozen=True)
class PreparedClass:
    """What a preparation left on disk."""

    folder: Path
    registered: RegisteredClass
    kept: int  # samples that were there already
    notes: tuple[str, ...]  # what else there is to say, a line each


def prepare_registered(
    folder: Path,
    samples: Sequence[RawSample],
    clean: Callable[[RawSample], Cleaned],
    *,
    name: str,
    source: str,
    data: Path,
    variant: Variant,
    settings: Mapping[str, Any],
    licence: str,
    refused: Sequence[Refused] = (),
    copy: bool = False,
    workers: int = 0,
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> PreparedClass:
    """The class in `folder`. `clean` gives a sample's points (it must be picklable) and raises InputError for bad ones.

    variant "rgb": photos and truths are linked as they are. "rgb-blacked": photos are black wherever a point was removed (not
    where none was measured), and photos and truths are padded with black as the points are.

    Raises: UsageError for a folder that is part of the dataset, someone else's or of other settings; InputError where no good
    sample to train with is left.
    """
    if variant not in VARIANTS:
        raise UsageError(f"--variant {variant}: one of {', '.join(VARIANTS)} is wanted")
    if workers < 0:
        raise UsageError(f"--workers: 0 (one per processor) or more is wanted, got {workers}")
    told = {"kind": source, "source": str(data), "variant": variant, "settings": dict(settings)}
    _claim(folder, data, told)
    jobs = [_Job(number, folder, sample, variant, copy) for number, sample in enumerate(samples)]
    why: dict[int, str] = {}
    kept = 0
    progress(name, 0, len(jobs))
    for done, result in enumerate(make_all(partial(_prepared, clean), jobs, workers), start=1):
        kept += result.kept
        if result.why is not None:
            why[result.number] = result.why
        progress(name, done, len(jobs))
    usable = sorted(
        (sample for number, sample in enumerate(samples) if number not in why),
        key=lambda s: (SPLITS.index(s.split), s.defect != GOOD, s.defect, s.stem),
    )
    lost = [*refused, *(Refused(samples[number].name, text) for number, text in sorted(why.items()))]
    if not any(sample.split == "train" for sample in usable):
        first = f"; the first: {lost[0].why}" if lost else ""
        raise InputError(f"{data}: no usable train sample, {len(lost)} were refused{first}")
    write_class(
        folder,
        {
            "name": name,
            "source": source,
            "variant": variant,
            "defects": sorted({sample.defect for sample in usable} - {GOOD}),
            "refused": [asdict(item) for item in lost],
            "settings": dict(settings),
            "licence": OWN_LICENCE if _is_ours(data) else licence,
        },
        [_row(sample, variant) for sample in usable],
    )
    write_json(folder / RECORD, {**told, "complete": True})
    return PreparedClass(folder, RegisteredClass.open(folder), kept, tuple(notes))


def find_classes(data: Path, is_class: Callable[[Path], bool], wanted: str) -> dict[str, Path]:
    """The class folders in `data` by name, or `data` itself where it is one.

    Raises: InputError where there is none; `wanted` says what makes one.
    """
    root = data.resolve()
    if not root.is_dir():
        raise InputError(f"{data}: no such folder; give the dataset's folder, or one class's")
    if is_class(root):
        return {root.name: root}
    found = {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and is_class(folder)}
    if not found:
        raise InputError(f"{data}: has no class in it ({wanted}); give the dataset's folder, or one class's")
    return found


@dataclass(frozen=True)
class _Job:
    number: int
    folder: Path
    sample: RawSample
    variant: str
    copy: bool


@dataclass(frozen=True)
class _Result:
    number: int
    kept: bool
    why: str | None  # it was refused


def _prepared(clean: Callable[[RawSample], Cleaned], job: _Job) -> _Result:
    sample = job.sample
    target = job.folder / sample.at("xyz", ".tiff")
    try:
        _check_files(sample)
        kept = _is_done(job, target)
        if not kept:
            _write(clean, job, target)
        elif job.variant == "rgb":
            _place(job)
    except InputError as error:
        target.unlink(missing_ok=True)
        return _Result(job.number, False, " ".join(str(error).split()))
    return _Result(job.number, kept, None)


def _check_files(sample: RawSample) -> None:
    if not sample.rgb.is_file():
        raise InputError(f"{sample.rgb}: no photo for these points; copy the dataset again")
    for path in sample.points:
        if not path.is_file():
            raise InputError(f"{path}: no points for this photo; copy the dataset again")
    if sample.defect != GOOD and (sample.gt is None or not sample.gt.is_file()):
        raise InputError(
            f"{sample.gt or sample.rgb}: no ground truth for this defect; copy the dataset again"
        )


def _is_done(job: _Job, target: Path) -> bool:
    sample = job.sample
    if not target.is_file():
        return False
    files = [sample.rgb, *sample.points, *([sample.gt] if sample.gt is not None else [])]
    if any(path.stat().st_mtime_ns > target.stat().st_mtime_ns for path in files):
        return False
    try:
        xyz_size(target)
    except InputError:
        return False
    written = [_row(sample, job.variant)[key] for key in ("rgb", "gt")]
    return job.variant == "rgb" or all((job.folder / name).is_file() for name in written if name)


def _write(clean: Callable[[RawSample], Cleaned], job: _Job, target: Path) -> None:
    """Photo and truth, then the points: they say that the sample is done."""
    sample = job.sample
    photo = read_levels(sample.rgb)  # decoded whole: a truncated file shows here
    cleaned = clean(sample)
    size = (photo.shape[0], photo.shape[1])
    if cleaned.removed.shape != size:
        height, width = cleaned.removed.shape
        raise InputError(
            f"{sample.points[0]}: {width} x {height} points do not lie on a photo of {size[1]} x {size[0]} px;"
            " a point for each pixel is wanted"
        )
    if sample.gt is not None and image_size(sample.gt)[::-1] != size:
        width, height = image_size(sample.gt)
        raise InputError(
            f"{sample.gt}: {size[1]} x {size[0]} px as the photo are wanted, got {width} x {height}; export it again"
        )
    truth = None if sample.gt is None else read_mask_share(sample.gt).numpy() > 0.5
    valid = measured(nearest(cleaned.xyz, PX))
    check_count(int(valid.sum()), PX, str(sample.points[0]))
    if job.variant == "rgb":
        _place(job)
    else:
        side = len(cleaned.xyz)
        _write_png(
            job.folder / sample.at("rgb", ".png"),
            pad_zero(np.where(cleaned.removed[..., None], np.uint8(0), photo), side),
        )
        if truth is not None:
            _write_png(job.folder / sample.at("gt", ".png"), pad_zero(truth.astype(np.uint8) * 255, side))
    write_xyz(target, cleaned.xyz)


def _place(job: _Job) -> None:
    row = _row(job.sample, job.variant)
    place_file(job.sample.rgb, job.folder / row["rgb"], copy=job.copy)
    if job.sample.gt is not None:
        place_file(job.sample.gt, job.folder / row["gt"], copy=job.copy)


def _write_png(path: Path, pixels: UInt8[np.ndarray, "side side *rgb"]) -> None:
    write_with(
        path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)
    )


def _row(sample: RawSample, variant: str) -> dict[str, Any]:
    as_is = variant == "rgb"
    return {
        "name": sample.name,
        "split": sample.split,
        "defect": sample.defect,
        "rgb": sample.at("rgb", sample.rgb.suffix if as_is else ".png"),
        "xyz": sample.at("xyz", ".tiff"),
        "gt": None if sample.gt is None else sample.at("gt", sample.gt.suffix if as_is else ".png"),
    }


def _claim(folder: Path, data: Path, told: Mapping[str, Any]) -> None:
    target, source = folder.resolve(), data.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise UsageError(f"{folder}: would be written into the dataset itself; choose another --workspace")
    record = folder / RECORD
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            differing = [key for key, value in told.items() if before.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{record}: cannot be read; choose another --name") from error
        if differing:
            changes = ", ".join(f"{key} was {before.get(key)}, now {told[key]}" for key in differing)
            raise UsageError(
                f"{folder}: was prepared otherwise ({changes}); choose another --name, or delete this folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder}: holds files that `splatad prepare` did not write; choose another --name or --workspace"
        )
    write_json(record, {**told, "complete": False})


def _is_ours(data: Path) -> bool:
    return (data / MARKER).is_file() or (data.parent / MARKER).is_file()
