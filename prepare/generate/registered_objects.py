"""Small datasets of registered photos and points, in the folders of MVTec 3D-AD or of Eyecandies, so that nothing is downloaded.

Parts (`reliefs`) lie on a support, half a metre below a structured-light sensor (mvtec-3d), or 0.2 m below a camera that sees an
exact depth (eyecandies). Every sample depends on the seed, its class, split, kind and number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from prepare.atomic_write import write_text, write_with
from prepare.errors import UsageError
from prepare.generate.made_folder import check_name, check_ranges, claim_folder, make_all
from prepare.generate.relief_defects import FAULTS, SIMPLE, Fault, add_fault
from prepare.generate.relief_view import Lens, Light, Seen, look_down, measure, photo, see, seen_mask
from prepare.generate.reliefs import PARTS, PartName, Relief, make_relief
from prepare.organised_cloud import write_xyz
from prepare.registered import GOOD

GENERATOR_VERSION = 1
Layout = Literal["mvtec-3d", "eyecandies"]
DISTANCE = 0.5  # m, of the sensor from the support
FIELD = 0.145  # m, what it sees of the support
CANDY_FOCAL = 711.11 / 512  # Eyecandies' lens, of the width
LEAST_SEEN = 10  # px of a mask at 400 x 400 px
TRIES = 12
_STUDIO = (Light((0.5, 0.4, 0.8), 0.75, 0.55),)
_SIDES = {"bottom": (0.0, -1.0), "right": (1.0, 0.0), "top": (0.0, 1.0), "left": (-1.0, 0.0)}
_CANDY_LIGHTS: tuple[tuple[Light, ...], ...] = (
    tuple(Light((0.8 * x, 0.8 * y, 0.9), 0.28, 0.05) for x, y in _SIDES.values()),
    *((Light((0.8 * x, 0.8 * y, 0.9), 0.9, 0.12),) for x, y in _SIDES.values()),
    (Light((0.0, 0.0, 1.0), 0.0, 1.0),),
)
_CANDY_MASKS: dict[str, tuple[Fault, ...]] = {
    "bumps": ("contamination",), "dents": ("dent", "hole"), "colors": ("colour",), "normals": (),
}  # fmt: skip


@dataclass(frozen=True)
class RegisteredSettings:
    """What is made; part of every sample's identity."""

    layout: Layout = "mvtec-3d"
    classes: tuple[PartName, ...] = PARTS
    train: int = 40
    validation: int = 8
    good: int = 10  # test
    defects: int = 6  # test, of each kind
    kinds: tuple[Fault, ...] = SIMPLE
    px: int = 400
    noise_mm: float = 0.08  # of a point along its ray
    seed: int = 0


@dataclass(frozen=True)
class RegisteredSet:
    """What `generate_registered` left on disk."""

    folder: Path
    classes: tuple[Path, ...]
    made: int
    kept: int  # samples that were there already


@dataclass(frozen=True)
class _Piece:
    folder: Path  # the class's
    settings: RegisteredSettings
    part: PartName
    split: Literal["train", "validation", "test"]
    fault: Fault | None
    number: int  # among those of its split and fault
    stem: int  # among those of its folder


def generate_registered(
    out: Path,
    name: str,
    settings: RegisteredSettings,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RegisteredSet:
    """The dataset OUT/NAME, a folder for each class. A stopped run is taken up where it stood.

    Raises: UsageError for settings out of range, or a folder that is someone else's or of other settings.
    """
    _check(name, settings, workers)
    folder = out / name
    wanted: dict[str, Any] = {"kind": "registered", "generator_version": GENERATOR_VERSION, "name": name}
    wanted |= {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(settings).items()}
    claim_folder(folder, "splatad generate registered", wanted)
    pieces = [piece for part in settings.classes for piece in _pieces(folder / part, settings, part)]
    missing = [piece for piece in pieces if not _last_file(piece).is_file()]
    kept = len(pieces) - len(missing)
    progress(kept, len(pieces))
    for done, _ in enumerate(make_all(_make, missing, workers), start=kept + 1):
        progress(done, len(pieces))
    return RegisteredSet(folder, tuple(folder / part for part in settings.classes), len(missing), kept)


def _pieces(folder: Path, settings: RegisteredSettings, part: PartName) -> list[_Piece]:
    counts: list[tuple[Literal["train", "validation", "test"], Fault | None, int]] = [
        ("train", None, settings.train), ("validation", None, settings.validation), ("test", None, settings.good),
        *(("test", kind, settings.defects) for kind in settings.kinds),
    ]  # fmt: skip
    pieces, together = [], 0
    for split, fault, count in counts:
        for number in range(count):
            # Eyecandies numbers good and bad test samples through.
            stem = together if split == "test" and settings.layout == "eyecandies" else number
            together += split == "test"
            pieces.append(_Piece(folder, settings, part, split, fault, number, stem))
    return pieces


def _last_file(piece: _Piece) -> Path:
    """The file that is written last: it says that the sample is whole."""
    if piece.settings.layout == "mvtec-3d":
        return piece.folder / piece.split / (piece.fault or GOOD) / "xyz" / f"{piece.stem:03d}.tiff"
    return _candy(piece, "depth.png")


def _make(piece: _Piece) -> None:
    settings = piece.settings
    key = [settings.seed, PARTS.index(piece.part), ("train", "validation", "test").index(piece.split)]
    key += [0 if piece.fault is None else 1 + FAULTS.index(piece.fault), piece.number]
    good = make_relief(piece.part, settings.px, np.random.default_rng([*key, 0]))
    rng = np.random.default_rng([*key, 1])
    if settings.layout == "mvtec-3d":
        lens = look_down(DISTANCE, settings.px * DISTANCE / FIELD, settings.px, tilt_deg=7.0)
    else:
        focal = CANDY_FOCAL * settings.px
        tilt, turn = 8 + rng.normal(0, 1.0), rng.normal(0, 0.3)
        lens = look_down(CANDY_FOCAL * FIELD, focal, settings.px, tilt_deg=tilt, turn_deg=turn, corner=0.0)
    relief, masks = good, dict[Fault, Bool[np.ndarray, "px px"]]()
    if piece.fault is None:
        seen = see(relief, lens)
    else:
        relief, masks, seen = _faulty(good, piece.fault, lens, np.random.default_rng([*key, 2]))
    write = _write_mvtec if settings.layout == "mvtec-3d" else _write_candy
    write(piece, relief, lens, seen, masks, rng)


def _faulty(
    good: Relief, fault: Fault, lens: Lens, rng: np.random.Generator
) -> tuple[Relief, dict[Fault, Bool[np.ndarray, "px px"]], Seen]:
    """With a fault that the camera sees: proposed until its mask is large enough."""
    least = max(2, round(LEAST_SEEN * (lens.px / 400) ** 2))
    for _ in range(TRIES):
        faulty = add_fault(good, fault, rng)
        seen = see(faulty.relief, lens)
        masks = {kind: seen_mask(mask, seen) for kind, mask in faulty.masks.items()}
        if all(mask.sum() >= least for mask in masks.values()):
            return faulty.relief, masks, seen
    raise AssertionError(f"no {fault} was seen in {TRIES} tries")


def _write_mvtec(
    piece: _Piece,
    relief: Relief,
    lens: Lens,
    seen: Seen,
    masks: dict[Fault, Bool[np.ndarray, "px px"]],
    rng: np.random.Generator,
) -> None:
    group = piece.folder / piece.split / (piece.fault or GOOD)
    name = f"{piece.stem:03d}"
    shown = photo(relief, lens, seen, _STUDIO)
    _write_png(group / "rgb" / f"{name}.png", _bytes(shown + rng.normal(0, 0.006, shown.shape)))
    if piece.split == "test":
        mask = np.logical_or.reduce([np.zeros((lens.px, lens.px), bool), *masks.values()])
        _write_png(group / "gt" / f"{name}.png", mask.astype(np.uint8) * 255)
    xyz = measure(relief, lens, seen, piece.settings.noise_mm / 1000, rng)
    write_xyz(_last_file(piece), xyz, compress=False)


def _write_candy(
    piece: _Piece,
    relief: Relief,
    lens: Lens,
    seen: Seen,
    masks: dict[Fault, Bool[np.ndarray, "px px"]],
    rng: np.random.Generator,
) -> None:
    """World of Eyecandies: 10 units a metre, y down into the support, z away from the viewer."""
    for number, lights in enumerate(_CANDY_LIGHTS):
        shown = photo(relief, lens, seen, lights)
        _write_png(_candy(piece, f"image_{number}.png"), _bytes(shown + rng.normal(0, 0.004, shown.shape)))
    none = np.zeros((lens.px, lens.px), bool)
    for name, kinds in (*_CANDY_MASKS.items(), ("", SIMPLE)):
        mask = np.logical_or.reduce([none, *(masks[kind] for kind in kinds if kind in masks)])
        file = f"{name}_mask.png" if name else "mask.png"
        _write_png(_candy(piece, file), mask[..., None].repeat(3, axis=-1).astype(np.uint8) * 255)
    in_cam = np.einsum("ij,hwj->hwi", lens.rotation, seen.normals) * [1, -1, -1]
    _write_png(_candy(piece, "normals.png"), np.round((in_cam + 1) * 127.5).astype(np.uint8))
    pose = np.eye(4)
    ours_of_theirs = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    pose[:3, :3] = np.einsum("ij,jk->ik", lens.rotation, ours_of_theirs)
    pose[:3, 3] = -10 * np.einsum("ij,j->i", lens.rotation, lens.centre)
    write_text(
        _candy(piece, "pose.txt"), "\n".join(" ".join(repr(float(v)) for v in row) for row in pose) + "\n"
    )
    depth = 10 * seen.depth
    low, high = float(depth.min()), float(depth.max())
    info = f"dtype: uint16\nnormalization:\n  max: {high!r}\n  min: {low!r}\n"
    write_text(_candy(piece, "info_depth.yaml"), info)
    _write_png(_candy(piece, "depth.png"), np.round((depth - low) / (high - low) * 65535).astype(np.uint16))


def _candy(piece: _Piece, file: str) -> Path:
    split = {"train": "train", "validation": "val", "test": "test_public"}[piece.split]
    digits = 3 if piece.split == "train" else 2
    return piece.folder / split / "data" / f"{piece.stem:0{digits}d}_{file}"


def _bytes(image: Float[np.ndarray, "px px rgb=3"]) -> UInt8[np.ndarray, "px px rgb=3"]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    write_with(
        path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)
    )


def _check(name: str, settings: RegisteredSettings, workers: int) -> None:
    """Raises: UsageError for a value out of its range."""
    check_name(name)
    ranges: dict[str, tuple[float | int, float | int]] = {
        "train": (1, 999), "validation": (0, 99), "good": (0, 99), "defects": (0, 99), "px": (100, 1000),
        "noise_mm": (0.0, 2.0), "seed": (0, 2**31 - 1),
    }  # fmt: skip
    check_ranges(settings, ranges)
    _check_names("--classes", settings.classes, PARTS)
    _check_names("--kinds", settings.kinds, FAULTS)
    if settings.layout == "mvtec-3d" and settings.px % 100:
        raise UsageError(
            f"--px: a multiple of 100 is wanted, as in MVTec 3D-AD, got {settings.px}; choose 400"
        )
    if settings.layout == "eyecandies" and settings.good + settings.defects * len(settings.kinds) > 100:
        raise UsageError(
            "--good, --defects: Eyecandies numbers up to 100 test samples with two digits; ask for fewer"
        )
    if workers < 0:
        raise UsageError(f"--workers: 0 (one per processor) or more is wanted, got {workers}")


def _check_names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise UsageError(f"{flag} {value}: one of {', '.join(known)} is wanted")
    if not given or len(set(given)) < len(given):
        raise UsageError(
            f"{flag}: each name once is wanted, and at least one, got {' '.join(given) or 'none'}"
        )
