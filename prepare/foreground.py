"""The part told from a plain background by the colour that the image's border shows.

Tolerances come from the noise measured at the border; no channel's exact value ever decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from prepare.camera import fit_within
from prepare.image import resize

_LEVEL = 1.0 / 255.0
_MIN_SHARE = 0.5  # of the border that must show one colour: the part may be cut by the frame
_MAX_NOISE = 0.02  # standard deviation of a plain background; above, it is a surface with texture
_SHADOW_PX = 400  # longest side of a picture at which shadows are told from the part
_GAP_EDGE = 0.1  # least colour step around a see-through gap
_WHITE = 1.0 - 2.5 * _LEVEL  # ground without any shadow
# Of white ground in a picture of 128 to 400 px: how light it is surely; how dark a shadow is at most, and how coloured; the
# largest step between neighbours within one, and from how light on it may have an edge; from how light on what is enclosed may
# be ground too.
_SURE, _DARKEST, _TINT, _STEP, _LIGHT, _ENCLOSED = 0.95, 0.35, 0.05, 0.06, 0.8, 0.7


@dataclass(frozen=True)
class Foreground:
    """Which share of each pixel is the part."""

    alpha: Float[Tensor, "height width"]  # in [0, 1]; fractions only along the silhouette
    background: (
        Float[Tensor, "rgb=3"] | None
    )  # None: the border shows no single colour, and alpha is 1 everywhere


@dataclass(frozen=True)
class Border:
    """The one colour that most of an image's border shows."""

    colour: Float[Tensor, "rgb=3"]  # in [0, 1]
    noise: float  # standard deviation about `colour` (largest channel), in [0, 0.02]
    share: float  # of the border's pixels within `tolerance`, in [0.5, 1]

    @property
    def tolerance(self) -> float:
        """Largest difference of a channel that still counts as background; 2 levels of 255 for a clean one."""
        return 2.5 * _LEVEL + 4.0 * self.noise


def border_colour(rgb: Float[Tensor, "height width rgb=3"]) -> Border | None:
    """The dominant colour of the image's border with its noise, or None where no colour holds half of it."""
    image = rgb.detach().cpu().numpy()
    ring = max(1, round(0.005 * min(image.shape[:2])))
    border = np.concatenate(
        [
            image[:ring].reshape(-1, 3),
            image[-ring:].reshape(-1, 3),
            image[:, :ring].reshape(-1, 3),
            image[:, -ring:].reshape(-1, 3),
        ]
    )
    # The fullest cell of a coarse colour histogram, smoothed so that a cell's wall through the cluster does no harm.
    cells = (border * 15.999).astype(np.int64).clip(0, 15)
    counts = (
        np.bincount(cells @ np.array([256, 16, 1]), minlength=4096).reshape(16, 16, 16).astype(np.float64)
    )
    fullest = np.unravel_index(ndimage.uniform_filter(counts, 3, mode="constant").argmax(), counts.shape)
    colour = (np.array(fullest) + 0.5) / 16.0
    for _ in range(3):
        members = border[np.abs(border - colour).max(axis=1) < 0.1]
        if len(members) == 0:
            return None
        colour = np.median(members, axis=0)
    # From the 80th percentile, not the median: of noise clipped at white more than half the pixels show none.
    noise = float(np.quantile(np.abs(members - colour), 0.8, axis=0).max() / 1.2816)
    measured = Border(torch.from_numpy(colour.astype(np.float32)), noise, 0.0)
    share = float((np.abs(border - colour).max(axis=1) <= measured.tolerance).mean())
    if noise > _MAX_NOISE or share < _MIN_SHARE:
        return None
    return Border(measured.colour, noise, share)


def foreground_alpha(rgb: Float[Tensor, "height width rgb=3"]) -> Foreground:
    """The part's share of each pixel in [0, 1], and the background colour measured at the border.

    Background is what is within the border's tolerance and connected to the border, and see-through gaps: enclosed
    regions of exactly that colour, of more than a few pixels, that end at an edge. Where the border is not of one
    colour (a cluttered photo) everything is the part and the colour is None.
    """
    border = border_colour(rgb)
    if border is None:
        return Foreground(torch.ones(rgb.shape[:2]), None)
    difference = rgb.detach().cpu().numpy() - border.colour.numpy()
    red, green, blue = np.abs(difference).transpose(2, 0, 1)
    distance = np.maximum(np.maximum(red, green), blue)  # several times faster than max(axis=2)
    background = _connected_to_border(distance, border)
    return Foreground(torch.from_numpy(_soft_edge(difference, background)), border.colour)


def without_shadow(
    rgb: Float[Tensor, "height width rgb=3"], alpha: Float[Tensor, "height width"]
) -> Float[Tensor, "height width"]:
    """`alpha` less the shadow that a part casts on white ground (`rgb` as for `part_on_white`).

    What is shadow is decided at _SHADOW_PX at most, by `part_on_white`; which pixels along its edge, by their own colour.
    """
    height, width = alpha.shape
    small = rgb
    if max(height, width) > _SHADOW_PX:
        small = resize(rgb, *fit_within(width, height, _SHADOW_PX))
    off_part = ~part_on_white(small).likely
    place = off_part[None, None].float()
    if small is not rgb:
        place = F.interpolate(F.max_pool2d(place, 3, stride=1, padding=1), size=(height, width))
    low, high = rgb.amin(dim=-1), rgb.amax(dim=-1)
    shade = (high - low < _TINT) & (low > _DARKEST)
    return torch.where(shade & (place[0, 0] > 0), 0.0, alpha)


@dataclass(frozen=True)
class PartOnWhite:
    """What of a picture on white ground is the part. Its shadow looks like a grey part: where it may be either, bounds."""

    surely: Bool[Tensor, "height width"]  # the part; holds neither shadows nor the outline's mixed pixels
    likely: Bool[Tensor, "height width"]  # the best guess without knowing the part
    possibly: Bool[Tensor, "height width"]  # all but ground that is surely white


def part_on_white(rgb: Float[Tensor, "height width rgb=3"]) -> PartOnWhite:
    """Bounds of the part in a picture of some hundred px (`rgb` is 1 where the ground is, more where it is lighter than that).

    Shadow is without colour and goes on from the ground, changing little from pixel to pixel: an edge ends it unless it is very
    light. What light grey the part encloses may be a shadow too.
    """
    image = rgb.detach().cpu().numpy()
    low, high = image.min(axis=-1), image.max(axis=-1)
    neutral = (high - low < _TINT) & (low < 2.0 - _SURE)
    white = (low > _WHITE) & neutral
    ground = _reached(white | (neutral & (low > _SURE)), white)
    grey = image.mean(axis=-1)
    shade = neutral & (low > _DARKEST)
    soft = (_largest_step(grey) < _STEP) | (low > _LIGHT)
    cast = _reached(ground | (shade & soft), ground)
    cast |= ndimage.binary_dilation(cast) & shade
    possibly = ~ground
    surely = possibly & ~cast & ~(neutral & (low > _ENCLOSED))
    rim = surely & ndimage.binary_dilation(~surely, structure=np.ones((3, 3), dtype=bool))
    bounds = (surely & ~rim, possibly & ~cast, possibly)
    return PartOnWhite(*(torch.from_numpy(mask).to(rgb.device) for mask in bounds))


def _reached(mask: Bool[np.ndarray, "h w"], start: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels of `mask` that are connected to one of `start`, which lies within it."""
    regions, count = ndimage.label(mask)
    open_regions = np.zeros(count + 1, dtype=bool)
    open_regions[regions[start]] = True
    open_regions[0] = False
    return open_regions[regions]


def _largest_step(plane: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The largest difference of each pixel to its four neighbours."""
    steps = np.zeros_like(plane)
    for axis in (0, 1):
        step = np.abs(np.diff(plane, axis=axis))
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        steps[tuple(before)] = np.maximum(steps[tuple(before)], step)
        steps[tuple(after)] = np.maximum(steps[tuple(after)], step)
    return steps


def _connected_to_border(distance: np.ndarray, border: Border) -> np.ndarray:
    """True where the background shows, given each pixel's distance from its colour."""
    labels, count = ndimage.label(
        distance <= border.tolerance
    )  # 4-connected: no leak through a diagonal edge
    if count == 0:
        return np.zeros(distance.shape, dtype=bool)
    is_background = np.zeros(count + 1, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_background[edge] = True
    is_background[0] = False

    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    few = max(8, round(1e-4 * distance.size))
    exactly = 0.75 * _LEVEL + 2.0 * border.noise
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero((sizes >= few) & ~is_background):
        if label == 0:
            continue
        rows, columns = boxes[label - 1]
        around = (
            slice(max(0, rows.start - 5), rows.stop + 5),
            slice(max(0, columns.start - 5), columns.stop + 5),
        )
        region, near = labels[around] == label, distance[around]
        one, two, four, five = (ndimage.binary_dilation(region, iterations=px) for px in (1, 2, 4, 5))
        step = float(np.median(near[two & ~one]))
        further = float(np.median(near[five & ~four]))
        # A gap ends within a pixel; a highlight, saturated to the background's colour, fades out over many.
        is_background[label] = np.median(near[region]) <= exactly and step >= max(_GAP_EDGE, 0.6 * further)
    background: np.ndarray = is_background[labels]
    return background | _specks(distance, background, border, few)


def _specks(distance: np.ndarray, background: np.ndarray, border: Border, few: int) -> np.ndarray:
    """True on lone groups of fewer than `few` pixels that stand out only as the border's noise sometimes does."""
    labels, count = ndimage.label(~background, structure=np.ones((3, 3), dtype=bool))
    if count < 2:
        return np.zeros_like(background)
    weak = ndimage.maximum(distance, labels, np.arange(count + 1)) <= 2 * border.tolerance
    weak &= np.bincount(labels.ravel(), minlength=count + 1) < few
    weak[0] = False
    specks: np.ndarray = weak[labels]
    return specks


def _soft_edge(difference: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Alpha: 0 on the background, 1 on the part, and in between on part pixels that touch the background.

    There the pixel mixes the background with the part's colour, taken from its neighbours further in: alpha is the
    mixing ratio that fits best. A part with no inner neighbour (a thin wire) stays 1.
    """
    alpha = (~background).astype(np.float32)
    inner = ~ndimage.binary_dilation(background, structure=np.ones((3, 3), dtype=bool))
    rows, columns = np.nonzero(~background & ~inner)
    if len(rows) == 0:
        return alpha
    total = np.zeros((len(rows), 3), dtype=np.float32)
    number = np.zeros(len(rows), dtype=np.float32)
    height, width = background.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            at_row, at_column = rows + down, columns + right
            inside = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
            at_row, at_column = at_row.clip(0, height - 1), at_column.clip(0, width - 1)
            use = inside & inner[at_row, at_column]
            total[use] += difference[at_row[use], at_column[use]]
            number[use] += 1
    part = total / np.maximum(number, 1)[:, None]
    strength = (part * part).sum(axis=1)
    mixed = (difference[rows, columns] * part).sum(axis=1) / np.maximum(strength, 1e-12)
    known = (number > 0) & (strength > (8 * _LEVEL) ** 2)
    alpha[rows, columns] = np.where(known, mixed.clip(0.0, 1.0), 1.0)
    return alpha
