"""Which of a folder's photos are worth using: blurred ones and doubles are left out, by name and with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import fit_within
from prepare.errors import InputError
from prepare.foreground import border_colour
from prepare.image import read_image, resize

LOOK_PX = 640  # sharpness is judged at this longer side: finer blur does no harm
THUMBNAIL_PX = 48
NEIGHBOURS = 4  # photos before and after, which show much the same
BLURRED_BELOW = (
    0.25  # of the neighbours' median sharpness. Good sets: 0.44 and more (plush, fox, mad_car, test_colmap)
)
SAME_BELOW = (
    6 / 255
)  # greatest difference of two doubles' thumbnails; different photos of those sets: 60 / 255 and more


@dataclass(frozen=True)
class Look:
    """What one reading of a photo says about it."""

    sharpness: float  # see `sharpness`
    thumbnail: Float[Tensor, "side side"]  # grey, in [0, 1], the whole photo squeezed into a square
    size: tuple[int, int] = (0, 0)  # width and height of the whole photo, px
    plain: bool = False  # its border is of one colour


@dataclass(frozen=True)
class Dropped:
    """A photo that is not used."""

    name: str
    reason: str  # starts with "blurred", "double" or "unreadable"


def sharpness(grey: Float[Tensor, "height width"]) -> float:
    """Variance of the Laplacian over the variance of the image: falls with blur, and exposure does not change it.

    0 for an image of one colour. Source: Pech-Pacheco et al. 2000 for the numerator.
    """
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = 4 * middle - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    variance = float(grey.var())
    return float(laplacian.var()) / variance if variance > 1e-8 else 0.0


def look_at_photo(path: Path) -> Look:
    """The photo's sharpness and thumbnail. Raises: InputError as `read_image`."""
    rgb = read_image(path).rgb
    grey = rgb.mean(dim=-1, keepdim=True)
    height, width = grey.shape[:2]
    small = resize(grey, *fit_within(width, height, LOOK_PX))
    thumbnail = resize(small, THUMBNAIL_PX, THUMBNAIL_PX)[..., 0]
    return Look(sharpness(small[..., 0]), thumbnail, (width, height), border_colour(rgb) is not None)


def look_at_photos(photos: Mapping[str, Path], done: Callable[[int], None]) -> dict[str, Look | InputError]:
    """Each photo's look, or why it could not be read; `done` is told how many are through."""

    def look(path: Path) -> Look | InputError:
        try:
            return look_at_photo(path)
        except InputError as error:
            return error

    looks: dict[str, Look | InputError] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for name, found in zip(photos, pool.map(look, photos.values()), strict=True):
            looks[name] = found
            done(len(looks))
    return looks


def choose_photos(
    looks: Mapping[str, Look | InputError], *, keep_all: bool = False
) -> tuple[list[str], list[Dropped]]:
    """The names to use, in their order, and those left out.

    Photos that cannot be read are always left out. A double goes for the sharper one of the two; a photo is blurred
    where it has less than BLURRED_BELOW of its neighbours' median sharpness, the order being that of the names.
    """
    dropped = [
        Dropped(name, f"unreadable: {look}") for name, look in looks.items() if isinstance(look, InputError)
    ]
    readable = {name: look for name, look in looks.items() if isinstance(look, Look)}
    if keep_all or not readable:
        return list(readable), dropped

    kept = list(readable)
    for name, same_as in _doubles(readable).items():
        kept.remove(name)
        dropped.append(Dropped(name, f"double of {same_as}"))
    left = []
    for index, name in enumerate(kept):
        near = kept[max(0, index - NEIGHBOURS) : index] + kept[index + 1 : index + 1 + NEIGHBOURS]
        if near:
            usual = float(torch.tensor([readable[other].sharpness for other in near]).median())
            if readable[name].sharpness < BLURRED_BELOW * usual:
                share = round(100 * readable[name].sharpness / usual)
                dropped.append(Dropped(name, f"blurred: {share} % as sharp as the photos beside it"))
                continue
        left.append(name)
    order = {name: index for index, name in enumerate(looks)}
    return left, sorted(dropped, key=lambda one: order[one.name])


def _doubles(looks: Mapping[str, Look]) -> dict[str, str]:
    """Each superfluous photo and the kept one that shows the same; the sharpest of a group is kept, then the first."""
    names = sorted(looks, key=lambda name: -looks[name].sharpness)  # stable: in order where equally sharp
    thumbnails = torch.stack([looks[name].thumbnail for name in names]).flatten(1)
    kept: list[int] = []
    doubles = {}
    for index in range(len(names)):
        if kept:
            difference = (thumbnails[kept] - thumbnails[index]).abs().amax(dim=1)
            nearest = int(difference.argmin())
            if float(difference[nearest]) < SAME_BELOW:
                doubles[names[index]] = names[kept[nearest]]
                continue
        kept.append(index)
    return doubles
