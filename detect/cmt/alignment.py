"""View-agnostic local feature alignment (VLFA): matching vectors of cells that show the same surface point are drawn together.

Source: Looking 3D; InfoNCE after van den Oord et al. 2018, averaged keys after He et al. 2020 (MoCo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Pairs:
    """Cells of pictures and the same surface points' cells in other pictures."""

    anchor: Int[Tensor, "pairs"]  # picture
    key: Int[Tensor, "pairs"]  # picture
    anchor_cell: Int[Tensor, "pairs points"]
    key_cell: Int[Tensor, "pairs points"]
    valid: Bool[Tensor, "pairs points"]

    def to(self, device: torch.device) -> Pairs:
        """The pairs on `device`."""
        return Pairs(*(t.to(device) for t in self._tensors()))

    def flipped(self, columns: int) -> Pairs:
        """For all pictures mirrored left to right."""

        def mirrored(cell: Tensor) -> Tensor:
            return cell - cell % columns + (columns - 1 - cell % columns)

        return Pairs(self.anchor, self.key, mirrored(self.anchor_cell), mirrored(self.key_cell), self.valid)

    def renumbered(self, numbers: Int[Tensor, "pictures"]) -> Pairs:
        """For pictures of which the i-th is now called numbers[i]."""
        return Pairs(numbers[self.anchor], numbers[self.key], self.anchor_cell, self.key_cell, self.valid)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.anchor, self.key, self.anchor_cell, self.key_cell, self.valid


def join_pairs(
    parts: Sequence[Pairs] | Sequence[tuple[int, int, np.ndarray, np.ndarray]], points: int
) -> Pairs:
    """All in one; the tuples are (picture, other picture, cells, cells there), filled up to `points`."""
    if parts and isinstance(parts[0], Pairs):
        tensors = [part._tensors() for part in parts if isinstance(part, Pairs)]
        return Pairs(*(torch.cat(column) for column in zip(*tensors, strict=True)))
    rows = [part for part in parts if not isinstance(part, Pairs)]
    cells = torch.zeros(2, len(rows), points, dtype=torch.int64)
    valid = torch.zeros(len(rows), points, dtype=torch.bool)
    for number, (_, _, ours, theirs) in enumerate(rows):
        cells[0, number, : len(ours)] = torch.from_numpy(ours)
        cells[1, number, : len(theirs)] = torch.from_numpy(theirs)
        valid[number, : len(ours)] = True
    anchor = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    key = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    return Pairs(anchor, key, cells[0], cells[1], valid)


def alignment_loss(
    anchors: Float[Tensor, "pictures cells matching"],
    keys: Float[Tensor, "pictures cells matching"],
    share: Float[Tensor, "pictures cells"],
    xyz: Float[Tensor, "views cells xyz=3"],
    pairs: Pairs,
    temperature: float,
    near: float,
) -> Float[Tensor, ""]:
    """InfoNCE of each pair of pictures, summed over the pairs: the negatives are all cells of the part in the key picture.

    Of those, cells whose surface point lies within `near` (world units) of the true one are left out: they are no
    mistakes. Views come first among the pictures; `xyz` is theirs.
    """
    if len(pairs.anchor) == 0:
        return anchors.sum() * 0.0
    ours = _cells(anchors, pairs.anchor, pairs.anchor_cell)
    logits = (ours @ keys[pairs.key].transpose(1, 2)).float() / temperature
    points = xyz[pairs.key]
    true = _cells(xyz, pairs.key, pairs.key_cell)
    distance = torch.cdist(true.nan_to_num(nan=1e3), points.nan_to_num(nan=-1e3))
    counts = (share[pairs.key] > 0)[:, None] & (distance > near)
    counts = counts.scatter(2, pairs.key_cell[..., None], True)
    logits = logits.masked_fill(~counts, -math.inf)
    loss = logits.logsumexp(dim=-1) - logits.gather(2, pairs.key_cell[..., None])[..., 0]
    number = pairs.valid.sum(dim=1).clamp_min(1)
    return (torch.where(pairs.valid, loss, 0.0).sum(dim=1) / number).sum()


def alignment_loss_of_points(
    anchors: Float[Tensor, "pictures cells matching"],
    keys: Float[Tensor, "views cells matching"],
    pairs: Pairs,
    temperature: float,
) -> Float[Tensor, ""]:
    """The paper's form, summed over the pairs: the negatives are the other points of this and of all other pairs."""
    if len(pairs.anchor) == 0:
        return anchors.sum() * 0.0
    ours = _cells(anchors, pairs.anchor, pairs.anchor_cell)[pairs.valid]
    theirs = _cells(keys, pairs.key, pairs.key_cell)[pairs.valid]
    row = torch.arange(len(pairs.anchor), device=anchors.device)[:, None].expand_as(pairs.valid)[pairs.valid]
    logits = (ours @ theirs.T).float() / temperature
    loss = logits.logsumexp(dim=1) - logits.diagonal()
    number = pairs.valid.sum(dim=1).clamp_min(1)
    return (loss / number[row]).sum()


@torch.no_grad()
def pseudo_pairs(
    photos: Float[Tensor, "batch cells matching"],
    photo_share: Float[Tensor, "batch cells"],
    views: Float[Tensor, "batch cells matching"],
    view_share: Float[Tensor, "batch cells"],
    points: int,
    *,
    mutual: bool = True,
    confidence: float = 0.7,
    at: Int[Tensor, "batch points"] | None = None,
) -> tuple[Int[Tensor, "batch points"], Int[Tensor, "batch points"], Bool[Tensor, "batch points"]]:
    """(photo's cells, view's cells, whether trusted): each cell of the view with the photo's cell most like it.

    Trusted where the choice is mutual and the similarity is at least `confidence`; the most similar come first. `at` names
    the view's cells to match, as the paper's recipe does (which trusts all).
    """
    similarity = (views.float() @ photos.float().transpose(1, 2)).masked_fill(
        ~(photo_share > 0)[:, None], -math.inf
    )
    best, cell = similarity.max(dim=2)  # of each cell of the view
    trusted = (view_share > 0) & best.isfinite() & (best >= confidence)
    if mutual:
        from_view = similarity.masked_fill(~(view_share > 0)[..., None], -math.inf)
        back = from_view.argmax(dim=1)  # of each cell of the photo
        own = torch.arange(views.shape[1], device=views.device)
        trusted &= back.gather(1, cell) == own
    if at is None:
        at = best.masked_fill(~trusted, -math.inf).topk(min(points, best.shape[1]), dim=1).indices
    return cell.gather(1, at), at, trusted.gather(1, at)


def farthest_points(places: Float[Tensor, "points 2"], count: int) -> Int[Tensor, "count"]:
    """`count` of the points, each the farthest from those before; the first is the first."""
    chosen = [0]
    distance = (places - places[0]).square().sum(dim=1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (places - places[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen, device=places.device)


@torch.no_grad()
def average_into(average: nn.Module, network: nn.Module, keep: float) -> None:
    """average = keep average + (1 - keep) network, for parameters and for the floating buffers too."""
    for mean, new in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - keep)
    for held, now in zip(average.buffers(), network.buffers(), strict=True):
        if held.is_floating_point():
            held.lerp_(now, 1 - keep)
        else:
            held.copy_(now)


def _cells(
    values: Float[Tensor, "pictures cells channels"],
    picture: Int[Tensor, "pairs"],
    cell: Int[Tensor, "pairs points"],
) -> Float[Tensor, "pairs points channels"]:
    return values[picture[:, None], cell]
