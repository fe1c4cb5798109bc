"""What a defect may be: something added, something missing, or another colour; "changed" where nothing speaks for one.

Four kinds of evidence, strongest first; the limits stand where the detected defects of two generated toys part (16
burrs, 16 missing, 16 stains):

* silhouette: the photo's and the render's outlines differ by the defect;
* structure: where the photo's gradients follow the render's, the surface is there and only its colour is new;
* behind: with the splats that the defect hides or lacks taken away, the render comes nearer to the photo: missing;
* colour: a burr is of its surroundings' colours in another light, a stain is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from kornia.color import rgb_to_lab
from scipy import ndimage
from torch import Tensor

DefectKind = Literal["missing", "added", "discoloured", "changed"]
KINDS: tuple[DefectKind, ...] = get_args(DefectKind)

SILHOUETTE_SHARE = (
    0.35  # of a defect's pixels that must lie off one of the silhouettes for "missing" or "added"
)
STRUCTURE_KEPT = 0.8  # correlation of the gradients; missing pieces reach 0.65, stains on edges 0.81 to 0.93
LEAST_STRUCTURE = 1.0  # Lab units a pixel of root mean square gradient: below it a fit's noise is correlated
NEARER_BEHIND = (
    0.73  # of the difference is left with the splats gone: missing reach 0.70, others fall to 0.75
)
NOVEL_COLOUR = 0.025  # RGB distance, in [0, 1], to any surrounding colour in other light: stains lie above
OWN_COLOUR = 0.016  # burrs lie below; between the two a colour says nothing
SHADES = (0.5, 1.5)  # what other light may make of a colour: its RGB values times so much
LOST_EDGES = (
    0.8  # of the render's gradients: a photo smoother than that has lost structure, nothing was added
)
CORE_SHARE = 0.5  # of a defect's strong differences: what lies below is the map's blur around the defect
_COLOURS, _SAMPLES = 600, 400  # surrounding colours and defect pixels compared, spread evenly


@dataclass(frozen=True)
class KindEvidence:
    """What speaks for one kind or another."""

    gone: float  # share of the defect on the render's silhouette but off the photo's, in [0, 1]
    extra: float  # share on the photo's silhouette but off the render's, in [0, 1]
    structure: float  # correlation of the photo's and the render's gradients inside, in [-1, 1]; 0 where flat
    edges: float  # root mean square gradient of the photo over the render's
    behind: (
        float | None
    )  # difference to the render without the splats in front, over that to the render; None: not tried
    novelty: float  # median RGB distance to the surrounding colours in any light, in [0, 1]


def guess_kind(evidence: KindEvidence) -> DefectKind:
    """The kind that the evidence speaks for; "changed" where it is unclear."""
    if max(evidence.gone, evidence.extra) > SILHOUETTE_SHARE:
        return "missing" if evidence.gone > evidence.extra else "added"
    if evidence.structure >= STRUCTURE_KEPT:
        return "discoloured"
    if evidence.behind is not None and evidence.behind < NEARER_BEHIND:
        return "missing"
    if evidence.novelty > NOVEL_COLOUR:
        return "discoloured"
    if evidence.novelty < OWN_COLOUR and evidence.edges >= LOST_EDGES:
        return "added"
    return "changed"


def kind_evidence(
    region: Bool[np.ndarray, "height width"],
    photo: Float[Tensor, "height width rgb=3"],
    render: Float[Tensor, "height width rgb=3"],
    behind: Float[Tensor, "height width rgb=3"] | None,
    photo_alpha: Float[np.ndarray, "height width"],
    render_alpha: Float[np.ndarray, "height width"],
) -> KindEvidence:
    """The evidence in `region`, which must not be empty; images in [0, 1] and in the same light.

    `behind` is the render without the splats that the region is made of. `photo_alpha` of ones says that the photo's
    silhouette is not known.
    """
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    pixel = max(region.shape) / 400  # distances below are those of a photo of 400 px
    margin = max(6 * pixel, 0.5 * float(np.sqrt(region.sum())))  # how far the surroundings reach
    window = tuple(
        slice(max(0, int(ends[0] - margin)), int(ends[-1] + margin) + 1) for ends in (rows, columns)
    )
    inside = region[window]
    shot, shown = (image[window].clamp(0, 1).cpu() for image in (photo, render))
    lab_shot, lab_shown = _lab(shot), _lab(shown)
    apart = np.linalg.norm(lab_shot - lab_shown, axis=2)
    core = inside & (apart >= CORE_SHARE * np.quantile(apart[inside], 0.9))

    gone = extra = 0.0
    if (photo_alpha < 0.98).any():
        there, expected = photo_alpha[window][inside] > 0.5, render_alpha[window][inside] > 0.5
        gone, extra = float((expected & ~there).mean()), float((there & ~expected).mean())

    slopes_shot, slopes_shown = _slopes(lab_shot, pixel), _slopes(lab_shown, pixel)
    reach = max(1, round(2 * pixel))
    inner = ndimage.binary_erosion(core, iterations=reach)
    inner = inner if inner.sum() >= 10 else core
    a, b = slopes_shot[:, inner], slopes_shown[:, inner]
    energy_a, energy_b = (float((s * s).sum()) for s in (a, b))
    structured = energy_b / inner.sum() > LEAST_STRUCTURE**2 and energy_a > 0
    structure = float((a * b).sum()) / float(np.sqrt(energy_a * energy_b)) if structured else 0.0
    wide = ndimage.binary_dilation(core, iterations=reach)
    steep_shot, steep_shown = (
        float(np.sqrt((s[:, wide] ** 2).sum(axis=0).mean())) for s in (slopes_shot, slopes_shown)
    )

    nearer = None
    if behind is not None:
        without = np.linalg.norm(lab_shot - _lab(behind[window].clamp(0, 1).cpu()), axis=2)
        nearer = float(without[core].mean() / max(float(apart[core].mean()), 1e-6))
    novelty = float(np.median(_novelty(shot.numpy()[core], shown.numpy().reshape(-1, 3))))
    return KindEvidence(gone, extra, structure, steep_shot / max(steep_shown, 1e-6), nearer, novelty)


def _novelty(
    colours: Float[np.ndarray, "n rgb=3"], surroundings: Float[np.ndarray, "m rgb=3"]
) -> Float[np.ndarray, " k"]:
    """RGB distance of (up to _SAMPLES of) the colours to the third nearest of the surroundings, each in its best light."""
    some, known = (
        _spread(rows, most).astype(np.float64)
        for rows, most in ((colours, _SAMPLES), (surroundings, _COLOURS))
    )
    product, length = some @ known.T, (known * known).sum(axis=1)
    light = np.clip(product / np.maximum(length, 1e-4), *SHADES)
    squared = (some * some).sum(axis=1)[:, None] + light * (light * length - 2 * product)
    distance = np.sqrt(np.maximum(squared, 0.0))
    third = min(3, distance.shape[1]) - 1  # one pixel alone may be an edge's mixture
    return np.partition(distance, third, axis=1)[:, third]


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _lab(rgb: Float[Tensor, "height width rgb=3"]) -> Float[np.ndarray, "height width lab=3"]:
    return rgb_to_lab(rgb.permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def _slopes(
    lab: Float[np.ndarray, "height width lab=3"], pixel: float
) -> Float[np.ndarray, "slope height width"]:
    """Gradients of each channel along both axes, Lab units a pixel, over a little smoothing against noise."""
    smooth = ndimage.gaussian_filter(lab, (0.7 * pixel, 0.7 * pixel, 0))
    return np.concatenate([np.gradient(smooth, axis=axis) for axis in (0, 1)], axis=2).transpose(2, 0, 1)


def lit(
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    background: Float[Tensor, "rgb=3"],
    gain: tuple[float, float, float],
    bias: tuple[float, float, float],
) -> Float[Tensor, "height width rgb=3"]:
    """A render over `background` with the part in the photo's light (gain * part + bias), the background as it is."""
    off = (1.0 - alpha)[..., None]
    part = rgb - off * background.to(rgb)
    return part * rgb.new_tensor(gain) + (1.0 - off) * rgb.new_tensor(bias) + off * background.to(rgb)
