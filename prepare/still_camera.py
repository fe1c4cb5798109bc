"""The part told from what stands still, where the camera stood still and the part turned before it (a turntable).

Structure from motion would lock on the background, which is the same in every photo, and no splats could explain it. Photos
taken from one place form a group; a group's background is, pixel by pixel, the colour that most of its photos show.
What turns with the part (a plate, a printed page) stays with it; so does a shadow that moves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

from prepare.camera import fit_within
from prepare.image import image_size, read_image, resize, write_mask
from prepare.photo_choice import Look

LEAST_GROUP = 5  # photos from one place that show what is behind the part
LEAST_SHARE = 0.8  # of all photos must belong to groups, for a set to be called a turntable's
_MOST_EXPOSURE = 0.5  # log of the gain between two photos from one place
_MASK_PX = 640  # longer side at which masks are made; 120 photos of that size take 110 MB
_FRAME = 0.12  # of the shorter side: the rim where the part seldom is
_SAME_RIM = 0.7  # of the rim's pixels must agree for two photos to be from one place
_TOLERANCE = 4.0 / 255  # least difference of a channel that is more than noise, flicker and JPEG
_NOISES = 4.0  # and in standard deviations of the noise
_SHAKE_PX = 0.15  # a table that trembles moves edges by so much
_TEXTURE = 2.0  # tolerances: a rim of less contrast is one plain colour, and says nothing of the camera
_SUPPORT = 0.15  # of a group's photos must show a pixel's background, else it is taken for hidden in all
_CANDIDATES = 12  # photos whose colours are tried for a pixel's background
_LEAST_PIECE = 0.05  # of the largest piece's area; smaller ones are noise, or someone in the background


@dataclass(frozen=True)
class StillGroup:
    """Photos taken from one place."""

    names: tuple[str, ...]
    plain: bool  # the background is one plain colour: it shows the camera's place no better than another


def groups_of_still_camera(looks: Mapping[str, Look]) -> list[StillGroup]:
    """The photos that show the same rim, whatever is in the middle, in groups of LEAST_GROUP and more, in their order.

    Differences of exposure do not count.
    """
    members: list[list[str]] = []
    for name, look in looks.items():
        for group in members:
            first = looks[group[0]]
            if look.size == first.size and _same_rim(_rim_of(look), _rim_of(first)):
                group.append(name)
                break
        else:
            members.append([name])
    groups = []
    for group in members:
        if len(group) < LEAST_GROUP:
            continue
        middle = np.median(np.stack([_rim_of(looks[name]) for name in group]), axis=0)
        flat = float(middle.std()) < _TEXTURE * _TOLERANCE
        plain = sum(looks[name].plain for name in group) > len(group) / 2
        groups.append(StillGroup(tuple(group), plain=flat or plain))
    return groups


def is_turntable(groups: Sequence[StillGroup], count: int) -> bool:
    """Whether nearly all of `count` photos are in groups before a background that is not plain."""
    return sum(len(group.names) for group in groups if not group.plain) >= LEAST_SHARE * count


def turning_share(
    stack: UInt8[np.ndarray, "photos height width rgb=3"],
) -> Bool[np.ndarray, "photos height width"]:
    """True where a photo of a group shows something else than the group's background.

    The background is the middle of the largest cluster of a pixel's colours, exposure evened out; differences are held
    against the noise of the rim. A hole in what turns is filled unless its pixels show the background in other photos
    in one piece with the rim: a part's middle can keep its colour while it turns.
    """
    stack = _evened(stack)
    rim = _rim(*stack.shape[1:3])
    values = stack[:, rim].astype(np.float32) / 255
    noise = 1.4826 * float(np.median(np.abs(values - np.median(values, axis=0))))
    tolerance = max(_TOLERANCE, _NOISES * noise)
    background, support = _background(stack, tolerance)
    count = len(stack)
    hidden = support < max(3, math.ceil(_SUPPORT * count))
    allowed = tolerance + _SHAKE_PX * _local_range(background)

    differs = np.empty(stack.shape[:3], dtype=bool)
    for index in range(count):
        difference = stack[index].astype(np.float32) / 255 - background
        smooth = np.abs(ndimage.uniform_filter(difference, (3, 3, 0))).max(axis=-1)
        # The mean of 3 x 3 px lowers noise; the pixel itself keeps thin and finely patterned things.
        sharp = np.abs(difference).max(axis=-1)
        weak = (smooth > 0.6 * allowed) | (sharp > allowed)
        strong = (smooth > 1.2 * allowed) | (sharp > 2 * allowed) | hidden
        labels, number = ndimage.label(weak | hidden, structure=np.ones((3, 3), dtype=bool))
        kept = np.zeros(number + 1, dtype=bool)
        kept[np.unique(labels[strong])] = True
        kept[0] = False
        differs[index] = kept[labels]

    reach = max(1, round(0.01 * min(stack.shape[1:3])))
    closed = np.stack([_closed(mask, reach) for mask in differs])
    outside = np.stack([_outside(mask) for mask in closed])
    seldom = outside.mean(axis=0) < 0.1  # pixels that next to no photo shows to be background
    out = np.empty_like(closed)
    for index in range(count):
        # Smoothing reached one pixel beyond the outline.
        turning = ndimage.binary_erosion(
            closed[index] | (~outside[index] & seldom), np.ones((3, 3), dtype=bool), border_value=1
        )
        out[index] = _largest_pieces(turning)
    return out


def write_turning_masks(
    groups: Sequence[StillGroup],
    photos: Mapping[str, Path],
    folder: Path,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Path]:
    """For each photo of the groups the mask of what turns in it, of its size, written below `folder` under its name.

    `done` is told of photos that have theirs. Raises: InputError for a photo that cannot be read.
    """
    masks: dict[str, Path] = {}
    for group in groups:
        width, height = image_size(photos[group.names[0]])
        small = fit_within(width, height, _MASK_PX)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            stack = np.stack(list(pool.map(lambda name: _bytes_of(photos[name], small), group.names)))  # noqa: B023
        for name, mask in zip(group.names, turning_share(stack), strict=True):
            path = folder / PurePosixPath(name).with_suffix(PurePosixPath(name).suffix + ".png")
            share = torch.from_numpy(mask.astype(np.float32))[..., None]
            write_mask(path, resize(share, width, height)[..., 0] > 0.5)
            masks[name] = path
            done(len(masks))
    return masks


def _rim_of(look: Look) -> np.ndarray:
    """The grey values of a thumbnail's rim, in [0, 1]."""
    thumbnail = look.thumbnail.numpy()
    rim: np.ndarray = thumbnail[_rim(*thumbnail.shape)]
    return rim


def _opaque(
    rgb: Float[Tensor, "height width rgb=3"], alpha: Float[Tensor, "height width"] | None
) -> Float[Tensor, "height width rgb=3"]:
    return rgb if alpha is None else rgb * alpha[..., None] + (1 - alpha[..., None])


def _bytes_of(path: Path, size: tuple[int, int]) -> np.ndarray:
    decoded = read_image(path)
    small = resize(_opaque(decoded.rgb, decoded.alpha), *size)
    levels: np.ndarray = (small * 255).round().clamp(0, 255).byte().numpy()
    return levels


def _rim(height: int, width: int) -> np.ndarray:
    rim = np.ones((height, width), dtype=bool)
    edge = max(1, round(_FRAME * min(height, width)))
    rim[edge:-edge, edge:-edge] = False
    return rim


def _same_rim(rim: np.ndarray, other: np.ndarray) -> bool:
    """Whether most pixels agree, after a gain: the median ratio of the two."""
    gain = float(np.median((rim + 0.02) / (other + 0.02)))
    if abs(math.log(gain)) > _MOST_EXPOSURE:
        return False
    off = np.abs((rim + 0.02) / gain - (other + 0.02))
    return float((off < _TOLERANCE).mean()) >= _SAME_RIM


def _evened(stack: np.ndarray) -> np.ndarray:
    """The photos with the gain of each channel taken out that the rim shows against the group's median."""
    rim = _rim(*stack.shape[1:3])
    values = stack[:, rim].astype(np.float32) + 1.0
    gains = np.median(values / np.median(values, axis=0), axis=1)  # (photos, 3)
    levels = np.arange(256, dtype=np.float32)
    out = np.empty_like(stack)
    for index, gain in enumerate(gains):
        for channel in range(3):
            table = ((levels + 1.0) / gain[channel] - 1.0).round().clip(0, 255).astype(np.uint8)
            out[index, ..., channel] = table[stack[index, ..., channel]]
    return out


def _background(stack: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each pixel's largest cluster of colours, in [0, 1], and how many photos are in it."""
    count, height, width, _ = stack.shape
    tried = np.unique(np.linspace(0, count - 1, min(count, _CANDIDATES)).round().astype(int))
    background = np.empty((height, width, 3), dtype=np.float32)
    support = np.empty((height, width), dtype=np.int64)
    reach = round(tolerance * 255)
    rows = max(1, 4_000_000 // (count * width * 3))
    for start in range(0, height, rows):
        block = stack[:, start : start + rows].astype(np.int16)
        best = np.zeros(block.shape[1:3], dtype=np.int64)
        chosen = block[0].copy()
        for index in tried:
            near = _near(block, block[index], reach).sum(axis=0)
            better = near > best
            best[better], chosen[better] = near[better], block[index][better]
        member = _near(block, chosen, reach)
        mean = (block * member[..., None]).sum(axis=0) / member.sum(axis=0)[..., None]
        background[start : start + rows] = mean / 255
        support[start : start + rows] = best
    return background, support


def _near(block: np.ndarray, colour: np.ndarray, reach: int) -> np.ndarray:
    """True where all three channels are within `reach` levels of `colour`."""
    red, green, blue = np.moveaxis(np.abs(block - colour) <= reach, -1, 0)  # faster than all(axis=-1)
    near: np.ndarray = red & green & blue
    return near


def _local_range(image: np.ndarray) -> np.ndarray:
    """The largest channel's greatest minus least value within a pixel of each one."""
    low = ndimage.minimum_filter(image, (3, 3, 1))
    high = ndimage.maximum_filter(image, (3, 3, 1))
    span: np.ndarray = (high - low).max(axis=-1)
    return span


def _disc(reach: int) -> np.ndarray:
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc: np.ndarray = row**2 + column**2 <= (reach + 0.5) ** 2
    return disc


def _closed(mask: np.ndarray, reach: int) -> np.ndarray:
    """The mask with cracks narrower than about twice `reach` filled; the photo's edge does no harm."""
    padded = np.pad(mask, 2 * reach + 1)
    closed: np.ndarray = ndimage.binary_closing(padded, _disc(reach))
    inner = slice(2 * reach + 1, -(2 * reach + 1))
    return closed[inner, inner]


def _outside(mask: np.ndarray) -> np.ndarray:
    """True on what is not in the mask and in one piece with the photo's edge."""
    labels, count = ndimage.label(~mask)
    outer = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outer[edge] = True
    outer[0] = False
    outside: np.ndarray = outer[labels]
    return outside


def _largest_pieces(mask: np.ndarray) -> np.ndarray:
    """The mask without specks and threads, and without pieces much smaller than the largest."""
    opened = ndimage.binary_opening(mask, _disc(1))
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    if count == 0:
        return mask
    sizes = np.bincount(labels[opened], minlength=count + 1)
    sizes[0] = 0
    kept = sizes >= max(1.0, _LEAST_PIECE * float(sizes.max()))
    kept[0] = False
    pieces: np.ndarray = kept[labels]
    return pieces
