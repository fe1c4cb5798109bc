"""Metrics of a detector over photos whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detect.metrics import auroc, average_precision, f1_max, pro_curve

GOOD = "good"


@dataclass(frozen=True)
class Scored:
    """One photo's result beside its truth."""

    label: str  # "good" or the defect's type
    score: float
    values: Float[Tensor, "height width"]  # the map
    mask: Bool[Tensor, "height width"]  # the true defect at the map's size, all False for good photos


@dataclass(frozen=True)
class Metrics:
    """Rates in percent; None where the photos do not allow the figure (only one kind of truth)."""

    photos: int
    image_auroc: float | None
    image_ap: float | None
    image_f1: float | None  # best over thresholds
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1: float | None
    aupro_30: float | None  # per-region overlap, false-positive rates to 0.3
    aupro_05: float | None  # to 0.05


def evaluate(scored: Sequence[Scored], label: str | None = None) -> Metrics:
    """Metrics over all photos, or over the good ones and those with defect `label`. Exact: every score is a threshold."""
    used = [s for s in scored if label is None or s.label in (GOOD, label)]
    defective = np.array([s.label != GOOD for s in used])
    image_auroc = image_ap = image_f1 = None
    if defective.any() and not defective.all():
        scores = np.array([s.score for s in used])
        image_auroc = 100 * auroc(scores, defective)
        image_ap = 100 * average_precision(scores, defective)
        image_f1 = 100 * f1_max(scores, defective).f1
    pixel_auroc = pixel_ap = pixel_f1 = aupro_30 = aupro_05 = None
    if any(bool(s.mask.any()) for s in used):
        values = np.concatenate([s.values.numpy().reshape(-1) for s in used])
        truth = np.concatenate([s.mask.numpy().reshape(-1) for s in used])
        pixel_auroc = 100 * auroc(values, truth)
        pixel_ap = 100 * average_precision(values, truth)
        pixel_f1 = 100 * f1_max(values, truth).f1
        curve = pro_curve([s.values.numpy() for s in used], [s.mask.numpy() for s in used])
        aupro_30, aupro_05 = 100 * curve.area_to(0.3), 100 * curve.area_to(0.05)
    return Metrics(
        len(used), image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, pixel_f1, aupro_30, aupro_05
    )


def mask_at_map_size(
    mask: Bool[Tensor, "rows columns"], height: int, width: int
) -> Bool[Tensor, "height width"]:
    """A true mask at the map's size: a map pixel is defective where any mask pixel inside it is."""
    if tuple(mask.shape) == (height, width):
        return mask
    pooled = torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), (height, width))
    return pooled[0, 0] > 0
