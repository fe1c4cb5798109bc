"""The part told from a plain background by the colour that the image's border shows.

Tolerances come from the noise measured at the border; no channel's exact value ever decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

_LEVEL = 1.0 / 255.0
_MIN_SHARE = 0.5  # of the border that must show one colour: the part may be cut by the frame
_MAX_NOISE = 0.02  # standard deviation of a plain background; above, it is a surface with texture
_SHADOW, _SHADOW_COLOUR = (
    0.8,
    0.03,
)  # of white ground: how light a soft shadow is at least, how coloured at most
_GAP_EDGE = 0.1  # least colour step around a see-through gap


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
    """`alpha` less the soft shadow that a part casts on white ground (`rgb` in [0, 1]).

    Shadow is what is light and without colour and borders on ground or on more of it; what the part encloses stays.
    """
    image, part = rgb.detach().cpu().numpy(), alpha.detach().cpu().numpy()
    low, high = image.min(axis=-1), image.max(axis=-1)
    ground = part <= 0
    shadow = (low > _SHADOW) & (high - low < _SHADOW_COLOUR) & ~ground
    regions, _ = ndimage.label(ground | shadow)
    open_to_ground = np.isin(regions, np.unique(regions[ground])) & (regions > 0)
    return torch.where(torch.from_numpy(shadow & open_to_ground).to(alpha.device), 0.0, alpha)


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
