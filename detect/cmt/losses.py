"""What training minimises. Every loss is a sum over photos: the caller divides by the size of the whole batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CHANGED_SHARE = 0.1  # of a cell that must differ for the cell to be called changed


def class_loss(logit: Float[Tensor, "batch"], label: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(logit, label, reduction="sum")


def box_loss(
    box: Float[Tensor, "batch 4"], truth: Float[Tensor, "batch 4"], has_box: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """5 L1 + 2 (1 - GIoU) of the photos that have a box; the paper's weights."""
    l1 = (box - truth).abs().sum(dim=1)
    overlap = 1 - generalised_iou(box, truth)
    return torch.where(has_box, 5 * l1 + 2 * overlap, 0.0).sum()


def iou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Intersection over union, in [0, 1], of boxes (cx, cy, w, h)."""
    return _overlap(a, b)[0]


def generalised_iou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """IoU less the share of the hull that neither covers, in [-1, 1]. Source: Rezatofighi et al. 2019."""
    ratio, union, hull = _overlap(a, b)
    return ratio - (hull - union) / hull.clamp_min(1e-9)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a_low, a_high = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    b_low, b_high = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    common = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(dim=-1)
    union = a[..., 2:].prod(dim=-1) + b[..., 2:].prod(dim=-1) - common
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(dim=-1)
    return common / union.clamp_min(1e-9), union, hull


def patch_loss(
    logits: Float[Tensor, "batch cells"],
    change: Float[Tensor, "batch cells"],
    counts: Bool[Tensor, "batch cells"],
    counted: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the cells that count, wrong ones weighing more, and soft Dice where something changed.

    `counted` leaves photos out. Sources: after Lin et al. 2017 (focal loss), Milletari et al. 2016 (Dice).
    """
    truth = (change > CHANGED_SHARE).float()
    share = logits.sigmoid()
    wrong = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = wrong * (0.25 + (share - truth).abs().detach()) * 4
    number = counts.sum(dim=1).clamp_min(1)
    focal = torch.where(counts, wrong, 0.0).sum(dim=1) / number
    here = truth * counts
    share = share * counts
    dice = 1 - (2 * (share * here).sum(dim=1) + 1) / (share.sum(dim=1) + here.sum(dim=1) + 1)
    total = focal + torch.where(here.any(dim=1), dice, 0.0)
    return (total if counted is None else torch.where(counted, total, 0.0)).sum()
