"""What follows from similarities between a photo's cells and the views' cells: the nearest view, and where a cell lies.

A cell's place is its row and column, row by row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pack(
    kept: Bool[Tensor, "batch cells"],
) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """The cells kept of each row, in order, as indices, and which of them are no padding. At least one wide."""
    most = max(1, int(kept.sum(dim=1).max()))
    index = kept.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, kept.gather(1, index)


def take(
    cells: Float[Tensor, "batch cells channels"], index: Int[Tensor, "batch rows"]
) -> Float[Tensor, "batch rows channels"]:
    """`cells[b, index[b, r]]`."""
    return cells.gather(1, index[..., None].expand(-1, -1, cells.shape[-1]))


def view_disagreement(
    similarity: Float[Tensor, "batch rows keys"],
    row_cell: Int[Tensor, "batch rows"],
    row_counts: Bool[Tensor, "batch rows"],
    key_cell: Int[Tensor, "batch keys"],
    key_view: Int[Tensor, "batch keys"],
    key_counts: Bool[Tensor, "batch keys"],
    views: int,
    columns: int,
) -> Float[Tensor, "batch views"]:
    """How far, in cells, the cells of each view lie on average from the photo's cells that match them best.

    The view from the photo's own side has its parts where the photo has them: the smallest is the photo's viewpoint.
    Infinite for a view without a cell that counts. Views are numbered from 0 in `key_view`; other numbers are left out.

    Source: Looking 3D's viewpoint prediction.
    """
    best = similarity.masked_fill(~row_counts[..., None], -torch.inf).argmax(dim=1)  # of each key, a row
    matched = row_cell.gather(1, best)
    across = (matched % columns - key_cell % columns).to(similarity.dtype)
    down = (matched // columns - key_cell // columns).to(similarity.dtype)
    distance = (across.square() + down.square()).sqrt()
    counts = (key_counts & (key_view >= 0) & (key_view < views) & row_counts.any(dim=1, keepdim=True)).to(
        distance
    )
    slot = key_view.clamp(0, views - 1)
    total = distance.new_zeros(len(distance), views).scatter_add_(1, slot, distance * counts)
    number = torch.zeros_like(total).scatter_add_(1, slot, counts)
    return torch.where(number > 0, total / number.clamp_min(1), torch.inf)


def nearest_direction(
    query: Float[Tensor, "batch 4 4"], views: Float[Tensor, "batch views 4 4"]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch views"]]:
    """The view seen from the side nearest to the photo's, and each view's angle to it in degrees, in [0, 180].

    Cameras are world_to_cam round the world's origin; the angle between their directions needs no wrapping round.
    """
    centre = -(query[:, :3, :3].transpose(1, 2) @ query[:, :3, 3:])[..., 0]
    centres = -(views[..., :3, :3].transpose(2, 3) @ views[..., :3, 3:])[..., 0]
    cosine = torch.nn.functional.cosine_similarity(centre[:, None], centres, dim=-1)
    angles = torch.rad2deg(cosine.clamp(-1, 1).acos())
    return angles.argmin(dim=1), angles


def position_prior(
    expected: Float[Tensor, "batch rows xyz=3"], keys: Float[Tensor, "batch keys xyz=3"], sigma: float
) -> Float[Tensor, "batch rows keys"]:
    """-|key - expected|^2 / (2 sigma^2), world units; 0 where either is unknown (NaN)."""
    known = expected.isfinite().all(-1)[..., None] & keys.isfinite().all(-1)[:, None]
    # Not by the expanded square: its rounding would matter to near ones.
    distance = torch.cdist(
        expected.nan_to_num(), keys.nan_to_num(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return torch.where(known, -distance.square() / (2 * sigma**2), 0.0)


def place_prior(
    row_cell: Int[Tensor, "batch rows"], key_cell: Int[Tensor, "batch keys"], columns: int, sigma: float
) -> Float[Tensor, "batch rows keys"]:
    """The same for places in one picture, in cells."""
    across = row_cell[:, :, None] % columns - key_cell[:, None] % columns
    down = row_cell[:, :, None] // columns - key_cell[:, None] // columns
    return -(across.square() + down.square()).float() / (2 * sigma**2)
