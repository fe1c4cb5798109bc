"""Whole datasets of one generated product, on disk in the layout of MAD-Sim.

train/good, test/TYPE, ground_truth/TYPE, transforms.json; beside them `test_poses.json` (the true test cameras) and
`generator.json` (how it was made; it also marks the folder as ours). Every picture depends on the settings and its own
number alone, so a run that was stopped is taken up where it stood, and the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from prepare.atomic_write import write_json, write_with
from prepare.camera import Camera, focal_from_fov, look_at, to_opengl_cam_to_world
from prepare.errors import InputError, UsageError
from prepare.generate.defects import DEFECT_PX, DefectKind, photograph_defect
from prepare.generate.made_folder import check_name, check_ranges, claim_folder, make_all
from prepare.generate.objects import Family, make_object
from prepare.generate.parts import Assembly
from prepare.generate.raycast import LightMaps, light, photograph

CAMERA_ANGLE_X = 0.69111  # rad, MAD-Sim's lens
CAMERA_RADIUS = 3.0  # world units from the origin
TOP_ELEVATION_DEG = 82.0
GENERATOR_VERSION = 1  # raised whenever the same settings give other pictures
LEAST_DEFECT_PX = 4  # of --defect-px
KINDS: tuple[DefectKind, ...] = get_args(DefectKind)


@dataclass(frozen=True)
class Settings:
    """All that decides the pictures."""

    family: Family
    seed: int = 0
    views: int = 72  # train photos
    good: int = 12  # test photos without a defect
    defects: int = 8  # test photos of each defect type
    size_px: int = 400  # width and height
    supersample: int = 2  # rays per pixel along each axis
    noise: float = 0.004  # standard deviation of sensor noise in test photos, in units of white
    defect_px: tuple[float, float] = (
        DEFECT_PX  # least and most area of a defect's mask, px of a photo of 400 x 400
    )


@dataclass(frozen=True)
class Generated:
    """What `generate` left on disk."""

    folder: Path
    parts: int  # of the product
    written: int  # photos made by this call
    kept: int  # photos that were there already


@dataclass(frozen=True)
class Photo:
    """One photo to make. `group` is train, good, or a defect type."""

    group: str
    index: int

    @property
    def path(self) -> str:
        folder = "train/good" if self.group == "train" else f"test/{self.group}"
        return f"{folder}/{self.index}.png"

    @property
    def mask_path(self) -> str | None:
        return f"ground_truth/{self.group}/{self.index}_mask.png" if self.group in KINDS else None


def generate(
    out: Path,
    name: str,
    settings: Settings,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Write the dataset `out`/`name`; photos that are there already are kept. `workers` 0: one per processor.

    `on_progress` gets the number of photos done and the number of all. With more than one worker the caller's script
    needs the usual `if __name__ == "__main__"` guard.

    Raises: UsageError for settings out of range, a folder that something else made, or one made with other settings;
    InputError where the disk refuses, or where no defect of a type can be seen from a test camera.
    """
    _check(name, settings, workers)
    folder = out / name
    claim_folder(
        folder,
        "splatad generate",
        {
            "generator_version": GENERATOR_VERSION, "name": name, **asdict(settings),
            "defect_px": list(settings.defect_px),  # as JSON reads it
        },
        beside={"package_version": _package_version()},
        defaults={"defect_px": list(DEFECT_PX)},
    )  # fmt: skip
    photos = list(_photos(settings))
    waiting = [photo for photo in photos if not _is_there(folder, photo)]
    done = len(photos) - len(waiting)
    report = on_progress or (lambda _done, _all: None)
    report(done, len(photos))

    for _photo in make_all(partial(_make, folder, settings), waiting, workers):
        done += 1
        report(done, len(photos))
    # Written last: a folder with transforms.json is complete.
    write_json(folder / "test_poses.json", _test_poses(settings))
    write_json(folder / "transforms.json", _transforms(settings))
    parts = len(_product(settings.family, settings.seed).assembly.parts)
    return Generated(folder, parts, len(waiting), len(photos) - len(waiting))


def train_cameras(settings: Settings) -> list[Camera]:
    """Cameras on rings of equal elevation steps, their number on a ring in proportion to its length."""
    count = settings.views
    rings = max(1, min(count, round(0.95 * np.sqrt(count))))
    if rings == 1:
        elevations = np.array([20.0])
    else:
        elevations = np.linspace(TOP_ELEVATION_DEG, -TOP_ELEVATION_DEG, rings)
    ideal = np.cumsum(np.cos(np.deg2rad(elevations)))
    marks = np.round(ideal / ideal[-1] * (count - rings)).astype(int) + np.arange(1, rings + 1)
    cameras = []
    for ring, (elevation, on_ring) in enumerate(zip(elevations, np.diff(marks, prepend=0), strict=True)):
        start = 120.0 + 137.508 * ring  # rings are turned against each other, so that gaps do not line up
        for step in range(on_ring):
            cameras.append(_camera(settings.size_px, start + 360.0 * step / on_ring, float(elevation)))
    return cameras


def test_camera(settings: Settings, photo: Photo) -> Camera:
    """The camera of a test photo: any direction on the sphere, each equally likely."""
    rng = _rng(settings, photo, 0)
    azimuth, height = rng.uniform(0, 360), rng.uniform(-1, 1)
    return _camera(settings.size_px, float(azimuth), float(np.rad2deg(np.arcsin(height))))


def _camera(size_px: int, azimuth_deg: float, elevation_deg: float) -> Camera:
    azimuth, elevation = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    flat = CAMERA_RADIUS * np.cos(elevation)
    position = torch.tensor(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), CAMERA_RADIUS * np.sin(elevation)],
        dtype=torch.float64,
    )
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    focal = focal_from_fov(size_px, CAMERA_ANGLE_X)
    world_to_cam = look_at(position, torch.zeros_like(position), up)
    return Camera(world_to_cam, focal, focal, 0.5 * size_px, 0.5 * size_px, size_px, size_px)


@dataclass(frozen=True)
class _Product:
    assembly: Assembly
    maps: LightMaps


@lru_cache(maxsize=1)
def _product(family: Family, seed: int) -> _Product:
    assembly = make_object(family, seed)
    return _Product(assembly, light(assembly))


def _photos(settings: Settings) -> Iterator[Photo]:
    """All photos; the slow ones (with defects) first, so that no worker is left with them at the end."""
    for kind in KINDS:
        yield from (Photo(kind, index) for index in range(settings.defects))
    yield from (Photo("good", index) for index in range(settings.good))
    yield from (Photo("train", index) for index in range(settings.views))


def _rng(settings: Settings, photo: Photo, purpose: int) -> np.random.Generator:
    """Random numbers of one photo for one purpose (0 camera, 1 defect, 2 noise), independent of all others."""
    groups = ("train", "good", *KINDS)
    return np.random.default_rng([settings.seed, groups.index(photo.group), photo.index, purpose])


def _make(folder: Path, settings: Settings, photo: Photo) -> Photo:
    """Render one photo, and its mask where it has one, into `folder`."""
    product = _product(settings.family, settings.seed)
    if photo.group == "train":
        camera = train_cameras(settings)[photo.index]
    else:
        camera = test_camera(settings, photo)
    mask = None
    if photo.group in KINDS:
        kind: DefectKind = KINDS[KINDS.index(photo.group)]  # type: ignore[arg-type]
        rng = _rng(settings, photo, 1)
        faulty = photograph_defect(
            kind, product.assembly, product.maps, camera, settings.supersample, rng, settings.defect_px
        )
        if faulty is None:
            raise InputError(
                f"{folder / photo.path}: no {kind} defect of the wanted area is visible enough from this camera at "
                f"{settings.size_px} px; try a larger --size-px, a wider --defect-px or another --seed"
            )
        rgb, mask = faulty.view.rgb, faulty.mask
    else:
        rgb = photograph(product.assembly, product.maps, camera, settings.supersample).rgb
    if photo.group != "train" and settings.noise > 0:
        rgb = rgb + _rng(settings, photo, 2).normal(0.0, settings.noise, rgb.shape)
    if mask is not None and photo.mask_path is not None:
        _write_png(folder / photo.mask_path, mask.astype(np.uint8) * 255)
    # The photo follows its mask: where it stands, both are there.
    _write_png(folder / photo.path, np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return photo


def _write_png(path: Path, pixels: UInt8[np.ndarray, "height width *rgb"]) -> None:
    write_with(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))


def _is_there(folder: Path, photo: Photo) -> bool:
    return (folder / photo.path).is_file() and (
        photo.mask_path is None or (folder / photo.mask_path).is_file()
    )


def _transforms(settings: Settings) -> dict[str, object]:
    frames = [
        {"file_path": Photo("train", index).path, "transform_matrix": _cam_to_world(camera)}
        for index, camera in enumerate(train_cameras(settings))
    ]
    return {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}


def _test_poses(settings: Settings) -> dict[str, object]:
    tests = [photo for photo in _photos(settings) if photo.group != "train"]
    poses = {photo.path: _cam_to_world(test_camera(settings, photo)) for photo in tests}
    return {"camera_angle_x": CAMERA_ANGLE_X, "poses": poses}


def _cam_to_world(camera: Camera) -> list[list[float]]:
    return to_opengl_cam_to_world(camera.world_to_cam).tolist()


def _package_version() -> str:
    try:
        return metadata.version("splatad")
    except metadata.PackageNotFoundError:
        return "not installed"


def _check(name: str, settings: Settings, workers: int) -> None:
    """Raises: UsageError for a value out of its range."""
    if settings.family not in get_args(Family):
        raise UsageError(
            f"--family: one of {', '.join(get_args(Family))} is wanted, got {settings.family!r}; choose one"
        )
    check_name(name)
    ranges = {
        "seed": (0, 2**31 - 1),
        "views": (1, 10_000),
        "good": (0, 10_000),
        "defects": (0, 10_000),
        "size_px": (32, 4096),
        "supersample": (1, 4),
        "noise": (0.0, 0.2),
    }
    check_ranges(settings, ranges)
    smallest, largest = settings.defect_px
    if not LEAST_DEFECT_PX <= smallest < largest <= 400**2:
        raise UsageError(
            f"--defect-px: two areas, the smaller (at least {LEAST_DEFECT_PX}) first, are wanted, got {smallest:g} "
            f"{largest:g}; give for example --defect-px 25 100"
        )
    if workers < 0:
        raise UsageError(
            f"--workers: 0 (one per processor) or more is wanted, got {workers}; choose a value in that range"
        )
