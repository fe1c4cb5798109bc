"""Photos of a turning part before a background that stays: told from photos taken all round, and cut apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import zoom

from prepare.datasets.photos import prepare_photos
from prepare.errors import InputError
from prepare.image import read_mask
from prepare.photo_choice import look_at_photos
from prepare.still_camera import groups_of_still_camera, is_turntable, turning_share, write_turning_masks

_HEIGHT, _WIDTH = 96, 128
_COUNT = 12


def _clutter(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([zoom(rng.uniform(0.2, 0.8, (6, 8)), 16, order=1) for _ in range(3)], axis=-1)


def _along_across(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place in the frame of a bar that turns about the photo's middle."""
    row, column = np.mgrid[0:_HEIGHT, 0:_WIDTH] + 0.5
    angle = np.pi * index / _COUNT
    x, y = column - _WIDTH / 2, row - _HEIGHT / 2
    return x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)


def _turning(index: int) -> np.ndarray:
    """A bar of 70 x 40 px."""
    along, across = _along_across(index)
    bar: np.ndarray = (np.abs(along) < 35) & (np.abs(across) < 20)
    return bar


def _photos(background: np.ndarray, seed: int, scale: int = 1) -> np.ndarray:
    """The bar, striped but for a middle of one colour, `scale` times as large, with noise, 3 % of flicker and a cast."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(_COUNT):
        along, across = _along_across(index)
        striped = (np.floor((along + across) / 5) % 2 == 0) & (along**2 + across**2 > 12**2)
        paint = np.where(striped[..., None], [0.95, 0.2, 0.1], [0.05, 0.1, 0.6])
        photo = np.where(_turning(index)[..., None], paint, background)
        photo = photo.repeat(scale, axis=0).repeat(scale, axis=1)
        photo = photo * (1 + 0.03 * rng.standard_normal()) * (1 + 0.01 * rng.standard_normal(3))
        out.append(photo + 0.01 * rng.standard_normal(photo.shape))
    return (np.stack(out).clip(0, 1) * 255).round().astype(np.uint8)


def _write(folder: Path, photos: np.ndarray, start: int = 0) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {f"{start + index}.png": folder / f"{start + index}.png" for index in range(len(photos))}
    for photo, path in zip(photos, paths.values(), strict=True):
        Image.fromarray(photo).save(path)
    return paths


def _iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / (found | true).sum())


def test_what_turns_is_told_from_the_background_through_noise_and_flicker() -> None:
    found = turning_share(_photos(_clutter(1), 2))
    ious = [_iou(mask, _turning(index)) for index, mask in enumerate(found)]
    assert np.median(ious) > 0.9
    assert min(ious) > 0.8


def test_a_middle_that_keeps_its_colour_is_filled() -> None:
    found = turning_share(_photos(_clutter(1), 2))
    along, across = _along_across(0)
    assert found[:, along**2 + across**2 < 11**2].all()


def test_where_nothing_turns_nothing_is_found() -> None:
    background = _clutter(1)
    rng = np.random.default_rng(0)
    still = np.stack([background + 0.01 * rng.standard_normal(background.shape) for _ in range(8)])
    found = turning_share((still.clip(0, 1) * 255).round().astype(np.uint8))
    assert found.mean() < 0.002


def test_places_of_the_camera_are_told_apart_and_single_photos_belong_to_none(tmp_path: Path) -> None:
    photos = _write(tmp_path, _photos(_clutter(1), 2))
    photos |= _write(tmp_path, _photos(_clutter(5), 3), start=20)
    photos |= _write(tmp_path, _photos(_clutter(9), 4)[:3], start=40)
    shuffled = dict(sorted(photos.items(), key=lambda item: item[0][::-1]))
    looks = look_at_photos(shuffled, lambda done: None)
    groups = groups_of_still_camera(looks)  # type: ignore[arg-type]
    assert sorted(sorted(map(int, (name[:-4] for name in group.names))) for group in groups) == [
        list(range(12)),
        list(range(20, 32)),
    ]
    assert is_turntable(groups, len(photos))  # 24 of 27
    assert not is_turntable(groups[:1], len(photos))


def test_a_camera_that_moves_and_a_plain_background_are_no_turntable(tmp_path: Path) -> None:
    moving = np.concatenate([_photos(_clutter(10 + seed), seed)[:1] for seed in range(12)])
    looks = look_at_photos(_write(tmp_path / "moving", moving), lambda done: None)
    assert groups_of_still_camera(looks) == []  # type: ignore[arg-type]
    white = look_at_photos(_write(tmp_path / "white", _photos(np.ones((96, 128, 3)), 2)), lambda done: None)
    groups = groups_of_still_camera(white)  # type: ignore[arg-type]
    assert not is_turntable(groups, len(white))


def test_masks_are_written_as_large_as_the_photos_beside_same_names(tmp_path: Path) -> None:
    large = _photos(_clutter(1), 2, scale=6)  # 768 x 576: masks are made smaller
    photos = _write(tmp_path / "in", large)
    looks = look_at_photos(photos, lambda done: None)
    told: list[int] = []
    masks = write_turning_masks(
        groups_of_still_camera(looks),  # type: ignore[arg-type]
        photos,
        tmp_path / "masks",
        told.append,
    )
    assert masks["3.png"] == tmp_path / "masks" / "3.png.png"
    assert told == list(range(1, 13))
    true = [_turning(index).repeat(6, axis=0).repeat(6, axis=1) for index in range(_COUNT)]
    found = [read_mask(masks[f"{index}.png"]).numpy() for index in range(_COUNT)]
    # Of so few photos next to none shows what is behind the bar's middle: rims are right, the middle may keep a hole.
    assert np.median([_iou(f, t) for f, t in zip(found, true, strict=True)]) > 0.7


def test_asked_for_where_no_camera_stood_still_it_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", minversion="4")
    moving = np.concatenate([_photos(_clutter(10 + seed), seed)[:1] for seed in range(6)])
    _write(tmp_path / "data", moving)
    with pytest.raises(
        InputError, match="--turntable yes, but no 5 photos show the same background; fix the"
    ):
        prepare_photos(tmp_path / "data", lambda name: tmp_path / "w" / name, turntable="yes")
